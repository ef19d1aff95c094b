"""One model's part in sampling: it reads the prompts, then one token a row at a time.

Legend: B rows, A rows still running, P prompt tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_minillm.functional.masking import position_ids
from lightning_minillm.models.sharding import is_sharded
from lightning_minillm.models.split import SplitCausalLM, pass_groups
from lightning_minillm.rollout.cache import InPlaceCache, make_cache
from lightning_minillm.types import PromptBatch


class Decoder:
    """A model's running state: cache, attention mask, and the hidden state that predicts the next token.

    Args:
        model: the model, split.
        prompts: left-padded, the longest first, without a column that is padding in all rows.
        lengths: tokens of each prompt.
        max_new_tokens: most tokens that will follow.
    """

    def __init__(self, model: SplitCausalLM, prompts: PromptBatch, lengths: Sequence[int], max_new_tokens: int) -> None:
        self._model = model
        mask = prompts.attention_mask.bool()
        self._mask = None if min(lengths) == max(lengths) else mask
        self._positions = mask.sum(-1, keepdim=True)
        num_rows, width = mask.shape
        self._cache = make_cache(model.model.config, num_rows, width, max_new_tokens)
        self.state: Tensor
        """``[A, H]``."""
        if isinstance(self._cache, InPlaceCache):
            groups = [slice(0, num_rows)]
            if not is_sharded(model.model):  # ranks that gather shards must make the same number of passes
                groups = pass_groups(lengths, mask.device)
            self.state = torch.cat([self._read(prompts, self._cache, group, lengths) for group in groups])
            self._cache.finish_prefill()
        else:
            hidden, _ = model.hidden(prompts.input_ids, mask, cache=self._cache)
            self.state = hidden[:, -1]

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
        hidden, _ = self._model.hidden(token_ids[:, None], self._mask, positions=self._positions, cache=self._cache)
        self._positions = self._positions + 1
        self.state = hidden[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` ``[A']``."""
        self._mask = None if self._mask is None else self._mask[rows]
        self._positions, self.state = self._positions[rows], self.state[rows]
        self._cache.batch_select_indices(rows)
