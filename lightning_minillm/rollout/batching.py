"""Cutting, joining and trimming batches of rollouts.

Legend: B rows, P prompt tokens, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_minillm.types import PromptBatch, RolloutBatch

_PROMPT_FIELDS = {
    "prompt_ids": "prompt_mask",
    "prompt_mask": "prompt_mask",
    "teacher_prompt_ids": "teacher_prompt_mask",
    "teacher_prompt_mask": "teacher_prompt_mask",
}
"""Columns of prompts, and the mask that gives their width."""
_ID_FIELDS = ("prompt_ids", "response_ids", "teacher_prompt_ids")
_ROW_FIELDS = ("indices",)


def select_prompts(prompts: PromptBatch, rows: Tensor) -> PromptBatch:
    """Return ``rows`` of a prompt batch, without the padding that all of them have."""
    mask = prompts.attention_mask[rows]
    width = int(mask.sum(-1).max())
    teacher = None if prompts.teacher is None else select_prompts(prompts.teacher, rows)
    return PromptBatch(prompts.input_ids[rows][:, -width:], mask[:, -width:], prompts.indices[rows], teacher)


def select_rollouts(rollouts: RolloutBatch, rows: Tensor) -> RolloutBatch:
    """Return ``rows`` of a rollout batch, trimmed to their longest prompt and response.

    Args:
        rollouts: B rows.
        rows: ``[b]`` int64 in ``[0, B)``.
    """
    chosen = _map(rollouts, lambda _, value: value[rows])
    columns = chosen.columns()
    widths = {name: int(columns[name].sum(-1).max()) for name in _PROMPT_FIELDS.values() if name in columns}
    response_width = int(chosen.lengths.max())

    def trim(name: str, value: Tensor) -> Tensor:
        if name in _ROW_FIELDS:
            return value
        if name in _PROMPT_FIELDS:
            return value[:, -widths[_PROMPT_FIELDS[name]] :]
        return value[:, :response_width]

    return _map(chosen, trim)


def concatenate_rollouts(batches: Sequence[RolloutBatch], pad_token_id: int) -> RolloutBatch:
    """Join batches of different widths: prompts padded on the left, responses on the right.

    Args:
        batches: at least one; all with the same optional fields.
        pad_token_id: fills id columns; masks, not ids, say what counts.
    """
    widths = {
        name: max(batch.columns()[name].shape[1] for batch in batches)
        for name in batches[0].columns()
        if name in _PROMPT_FIELDS
    }
    response_width = max(batch.response_ids.shape[1] for batch in batches)

    def widen(name: str, value: Tensor) -> Tensor:
        fill = pad_token_id if name in _ID_FIELDS else 0
        if name in _ROW_FIELDS:
            return value
        if name in _PROMPT_FIELDS:
            return pad(value, (widths[name] - value.shape[1], 0), value=fill)
        missing = response_width - value.shape[1]
        return pad(value, (0, 0) * (value.ndim - 2) + (0, missing), value=fill)

    widened = [_map(batch, widen) for batch in batches]
    columns = [batch.columns() for batch in widened]
    return _map(widened[0], lambda name, _: torch.cat([of_batch[name] for of_batch in columns]))


def _map(rollouts: RolloutBatch, function: Callable[[str, Tensor], Tensor]) -> RolloutBatch:
    """Apply ``function(name, tensor)`` to every field that is present."""
    return RolloutBatch.from_columns({name: function(name, value) for name, value in rollouts.columns().items()})
