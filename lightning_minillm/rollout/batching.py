"""Cutting, joining and trimming batches of rollouts.

Legend: B rows, P prompt tokens, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_minillm.types import PromptBatch, RolloutBatch

_PROMPT_FIELDS = ("prompt_ids", "prompt_mask")
_ROW_FIELDS = ("indices",)


def select_prompts(prompts: PromptBatch, rows: Tensor) -> PromptBatch:
    """Return ``rows`` of a prompt batch, without the padding that all of them have."""
    mask = prompts.attention_mask[rows]
    width = int(mask.sum(-1).max())
    return PromptBatch(prompts.input_ids[rows][:, -width:], mask[:, -width:], prompts.indices[rows])


def select_rollouts(rollouts: RolloutBatch, rows: Tensor) -> RolloutBatch:
    """Return ``rows`` of a rollout batch, trimmed to their longest prompt and response.

    Args:
        rollouts: B rows.
        rows: ``[b]`` int64 in ``[0, B)``.
    """
    chosen = _map(rollouts, lambda _, value: value[rows])
    prompt_width = int(chosen.prompt_mask.sum(-1).max())
    response_width = int(chosen.lengths.max())

    def trim(name: str, value: Tensor) -> Tensor:
        if name in _ROW_FIELDS:
            return value
        return value[:, -prompt_width:] if name in _PROMPT_FIELDS else value[:, :response_width]

    return _map(chosen, trim)


def concatenate_rollouts(batches: Sequence[RolloutBatch], pad_token_id: int) -> RolloutBatch:
    """Join batches of different widths: prompts padded on the left, responses on the right.

    Args:
        batches: at least one; all with the same optional fields.
        pad_token_id: fills id columns; masks, not ids, say what counts.
    """
    prompt_width = max(batch.prompt_ids.shape[1] for batch in batches)
    response_width = max(batch.response_ids.shape[1] for batch in batches)

    def widen(name: str, value: Tensor) -> Tensor:
        fill = pad_token_id if name in ("prompt_ids", "response_ids") else 0
        if name in _ROW_FIELDS:
            return value
        if name in _PROMPT_FIELDS:
            return pad(value, (prompt_width - value.shape[1], 0), value=fill)
        missing = response_width - value.shape[1]
        return pad(value, (0, 0) * (value.ndim - 2) + (0, missing), value=fill)

    widened = [_map(batch, widen) for batch in batches]
    columns = [batch.columns() for batch in widened]
    return _map(widened[0], lambda name, _: torch.cat([of_batch[name] for of_batch in columns]))


def _map(rollouts: RolloutBatch, function: Callable[[str, Tensor], Tensor]) -> RolloutBatch:
    """Apply ``function(name, tensor)`` to every field that is present."""
    return RolloutBatch.from_columns({name: function(name, value) for name, value in rollouts.columns().items()})
