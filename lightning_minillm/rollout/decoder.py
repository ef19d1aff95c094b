"""One model while sampling: it reads the prompts, then one token per row and step.

A model whose cache does not give the states of full passes is sampled from without one, by a full pass per token.

Legend: B rows, A rows still running, P prompt tokens, H hidden size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache

from lightning_minillm._reach import is_out_of_memory
from lightning_minillm.distributed.sharding import is_sharded
from lightning_minillm.functional.grouping import equal_groups
from lightning_minillm.functional.masking import position_ids
from lightning_minillm.models.split import CacheKind, SplitCausalLM, pass_groups
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
        stock_cache: use transformers' own cache, into which prompts are read together.

    Raises:
        ValueError: the model keeps states and is sharded.
    """

    def __init__(
        self,
        model: SplitCausalLM,
        prompts: PromptBatch,
        lengths: Sequence[int],
        max_new_tokens: int,
        static: bool | None = None,
        *,
        stock_cache: bool = False,
    ) -> None:
        self._model = model
        mask = prompts.attention_mask.bool()
        self._positions = mask.sum(-1, keepdim=True)
        num_rows, width = mask.shape
        config = model.model.config
        self._cache = (
            DynamicCache(config=config) if stock_cache else make_cache(config, num_rows, width, max_new_tokens)
        )
        own = self._cache if isinstance(self._cache, InPlaceCache) else None
        if own is not None and own.has_states and is_sharded(model.model):
            raise ValueError("prompts are read by length, and ranks that gather shards must take the same passes")
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
    """Read the prompts with a cache that is right for the model, or without one; see :class:`Decoder`.

    Which cache is right is tried once per model on three short rows, with a warning if none is.
    """
    if model.cache_kind is None:
        model.cache_kind, obstacle = _right_cache(model, prompts.input_ids.device)
        if model.cache_kind == "none":
            warnings.warn(
                f"{type(model.model).__name__} is sampled from without a cache, by a full pass per token, which is much"
                f" slower: {obstacle}",
                stacklevel=2,
            )
    if model.cache_kind == "none":
        return FullPassDecoder(model, prompts)
    return Decoder(model, prompts, lengths, max_new_tokens, static, stock_cache=model.cache_kind == "stock")


def _right_cache(model: SplitCausalLM, device: torch.device) -> tuple[CacheKind, str]:
    """Return the cache whose states are those of full passes, and why others are not.

    Raises:
        ValueError: full passes fail as well.
    """
    lengths = [4, 2, 2]
    ids = torch.arange(1, 13, device=device).view(3, 4) % model.model.config.get_text_config().vocab_size
    mask = torch.arange(4, device=device) >= 4 - torch.tensor(lengths, device=device)[:, None]
    prompts = PromptBatch(ids, mask, torch.arange(3, device=device))
    expected, obstacle = _try_steps(lambda: FullPassDecoder(model, prompts), ids)
    if expected is None:
        raise ValueError(f"{type(model.model).__name__} cannot be sampled from: {obstacle}")
    exact = expected.dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    allowed = (_TOLERANCE if exact else _HALF_TOLERANCE) * expected.float().abs().max()
    reasons = []
    kinds: tuple[CacheKind, ...] = ("ours", "stock")
    for kind in kinds:
        decoder = partial(Decoder, model, prompts, lengths, 2, static=False, stock_cache=kind == "stock")
        given, obstacle = _try_steps(decoder, ids)
        if given is not None:
            difference = (given.float() - expected.float()).abs().max()
            if bool(difference <= allowed):
                return kind, ""
            obstacle = f"with its cache the states differ by {float(difference):.2g}"
        reasons.append(obstacle)
    return "none", reasons[0]


def _try_steps(make: Callable[[], Decoder | FullPassDecoder], ids: Tensor) -> tuple[Tensor | None, str]:
    """Return the states after two tokens, between which a row leaves the batch; ``None`` and the error if it fails."""
    kept = torch.tensor([0, 2], device=ids.device)
    try:
        decoder = make()
        decoder.advance(ids[:, 0])
        decoder.keep(kept)
        decoder.advance(ids[kept, 1])
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        return None, f"{type(error).__name__}: {error}"
    return decoder.state, ""
