"""One model while sampling: it reads the prompts, then one token per row and step.

A model whose cache does not give the states of full passes is sampled from without one, by a full pass per token.

Legend: B rows, A rows still running, P prompt tokens, H hidden size.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lightning_minillm._reach import is_out_of_memory
from lightning_minillm.distributed.sharding import is_sharded
from lightning_minillm.functional.grouping import equal_groups
from lightning_minillm.functional.masking import position_ids
from lightning_minillm.models.split import SplitCausalLM, pass_groups
from lightning_minillm.rollout.cache import InPlaceCache, make_cache
from lightning_minillm.rollout.full_pass import FullPassDecoder
from lightning_minillm.rollout.static_step import StaticStep, StaticStepError, check_agreement, has_static_step
from lightning_minillm.types import PromptBatch

_FAILURES = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
_TOLERANCE, _HALF_TOLERANCE = 0.01, 0.2  # of the largest state; without a token or with padding, more than that


class Decoder:
    """A model's running state: cache, attention mask, and the hidden state that predicts the next token.

    Args:
        model: the model, split.
        prompts: left-padded, the longest first, without a column that is padding in all rows.
        lengths: tokens of each prompt.
        max_new_tokens: most tokens that will follow.
        static: take steps of fixed shapes if the model can, which a GPU replays as graphs; ``None``: on a GPU.
    """

    def __init__(
        self,
        model: SplitCausalLM,
        prompts: PromptBatch,
        lengths: Sequence[int],
        max_new_tokens: int,
        static: bool | None = None,
    ) -> None:
        self._model = model
        mask = prompts.attention_mask.bool()
        self._positions = mask.sum(-1, keepdim=True)
        num_rows, width = mask.shape
        self._cache = make_cache(model.model.config, num_rows, width, max_new_tokens)
        own = self._cache if isinstance(self._cache, InPlaceCache) else None
        self.has_states = own is not None and own.has_states
        """Whether prompts of different lengths are read in passes of their own."""
        no_attention = own is not None and not own.has_attention
        self._mask = None if no_attention or min(lengths) == max(lengths) else mask
        self.state: Tensor
        """``[A, H]``."""
        if isinstance(self._cache, InPlaceCache):
            groups = [slice(0, num_rows)]
            if self._cache.has_states:
                groups = equal_groups(lengths)
            elif not is_sharded(model.model):  # ranks that gather shards must make the same number of passes
                groups = pass_groups(lengths, mask.device)
            self.state = torch.cat([self._read(prompts, self._cache, group, lengths) for group in groups])
            self._cache.finish_prefill()
        else:
            hidden, _ = model.hidden(prompts.input_ids, mask, cache=self._cache)
            self.state = hidden[:, -1]
        wanted = mask.is_cuda if static is None else static
        self.is_static = wanted and isinstance(self._cache, InPlaceCache) and has_static_step(model, self._cache)
        """Whether steps have fixed shapes; a different number of rows then costs a new capture."""
        self._step: StaticStep | None = None
        if self.is_static:
            self._mask = mask

    def _read(self, prompts: PromptBatch, cache: InPlaceCache, group: slice, lengths: Sequence[int]) -> Tensor:
        """Read the prompts of some rows; return their last states."""
        cache.start_prefill(group)
        longest = lengths[group.start]
        ids, mask = prompts.input_ids[group, -longest:], prompts.attention_mask[group, -longest:].bool()
        full = lengths[group.stop - 1] == longest
        hidden, _ = self._model.hidden(ids, None if full else mask, positions=position_ids(mask), cache=cache)
        return hidden[:, -1]

    def logits(self, vocabulary: int) -> Tensor:
        """Project the current state: ``[A, vocabulary]`` float32."""
        return self._model.project(self.state)[:, :vocabulary].float()

    def advance(self, token_ids: Tensor) -> None:
        """Feed the sampled tokens ``[A]``."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(token_ids), 1)], dim=1)
        self.state = self._static_step(token_ids) if self.is_static else self._plain_step(token_ids)
        self._positions = self._positions + 1

    def _plain_step(self, token_ids: Tensor) -> Tensor:
        hidden, _ = self._model.hidden(token_ids[:, None], self._mask, positions=self._positions, cache=self._cache)
        return hidden[:, -1]

    def _static_step(self, token_ids: Tensor) -> Tensor:
        """Take a step of fixed shapes; switch to plain steps if the model turns out not to support it."""
        assert isinstance(self._cache, InPlaceCache)
        assert self._mask is not None
        length, first = self._cache.length, self._step is None
        try:
            if self._step is None or not self._step.fits(self._cache, len(token_ids)):
                self._step = StaticStep(self._model, self._cache, self._mask[:, :-1])
            state = self._step(token_ids, self._positions)
            if first:  # a model that reads the mask differently is detected before its output is used
                self._cache.rewind(length)
                check_agreement(state, self._plain_step(token_ids))
        except StaticStepError as error:
            self.is_static = self._model.may_be_static = False
            self._step = None
            self._cache.rewind(length)
            name = type(self._model.model).__name__
            warnings.warn(f"{name} is sampled from step by step, more slowly: {error}", stacklevel=2)
            return self._plain_step(token_ids)
        return state

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` ``[A']``."""
        self._mask = None if self._mask is None else self._mask[rows]
        self._positions, self.state = self._positions[rows], self.state[rows]
        self._cache.reorder_cache(cast(torch.LongTensor, rows))


def make_decoder(
    model: SplitCausalLM, prompts: PromptBatch, lengths: Sequence[int], max_new_tokens: int, static: bool | None = None
) -> Decoder | FullPassDecoder:
    """Read the prompts with a cache if the model's is right, else without one; see :class:`Decoder`.

    Whether it is right is tried once per model on three short rows, with a warning if it is not.
    """
    if model.may_be_cached is None:
        obstacle = _cache_obstacle(model, prompts.input_ids.device)
        model.may_be_cached = obstacle is None
        if obstacle is not None:
            warnings.warn(
                f"{type(model.model).__name__} is sampled from without a cache, by a full pass per token, which is much"
                f" slower: {obstacle}",
                stacklevel=2,
            )
    if not model.may_be_cached:
        return FullPassDecoder(model, prompts)
    return Decoder(model, prompts, lengths, max_new_tokens, static)


def _cache_obstacle(model: SplitCausalLM, device: torch.device) -> str | None:
    """Return why states with a cache are not those of full passes; ``None`` if they are.

    Raises:
        ValueError: full passes fail as well.
    """
    lengths = [4, 2, 2]
    vocabulary = model.model.config.get_text_config().vocab_size
    ids = torch.arange(1, 13, device=device).view(3, 4) % vocabulary
    mask = torch.arange(4, device=device) >= 4 - torch.tensor(lengths, device=device)[:, None]
    prompts = PromptBatch(ids, mask, torch.arange(3, device=device))
    try:
        without = _steps(FullPassDecoder(model, prompts), ids)
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{type(model.model).__name__} cannot be sampled from: {type(error).__name__}: {error}"
        ) from error
    try:
        decoder = Decoder(model, prompts, lengths, max_new_tokens=2, static=False)
        if decoder.has_states and is_sharded(model.model):
            return (
                "prompts of different lengths take different numbers of passes, and ranks that gather shards the same"
            )
        with_cache = _steps(decoder, ids)
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}"
    difference = (with_cache.float() - without.float()).abs().max()
    exact = with_cache.dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    tolerance = _TOLERANCE if exact else _HALF_TOLERANCE
    agree = bool(difference <= tolerance * without.float().abs().max())
    return None if agree else f"with its cache the states differ by {float(difference):.2g}"


def _steps(decoder: Decoder | FullPassDecoder, ids: Tensor) -> Tensor:
    """Return the states after two tokens, between which a row leaves the batch."""
    kept = torch.tensor([0, 2], device=ids.device)
    decoder.advance(ids[:, 0])
    decoder.keep(kept)
    decoder.advance(ids[kept, 1])
    return decoder.state
