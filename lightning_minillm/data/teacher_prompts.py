"""The prompts of a teacher that is shown a different template than the student.

Responses are the same token ids for both, so that they can be compared token by token.

Legend: B rows, L tokens, Q tokens of the teacher's prompt and the response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_minillm.data.chat import EncodedRow
from lightning_minillm.types import TokenBatch


def after_prompts(
    batch: TokenBatch, starts: Tensor, prompts: Sequence[npt.NDArray[Any]], pad_token_id: int
) -> TokenBatch:
    """Return the responses of a batch after other prompts, with the same targets.

    Args:
        batch: B right-padded rows, whose targets are in the response.
        starts: ``[B]`` int64, tokens of each row's prompt.
        prompts: the other prompt of each row, none empty.
        pad_token_id: pads the ids.

    Returns:
        ``[B, Q]``, padded on the right.
    """
    ids, masks = [], []
    lengths = batch.attention_mask.sum(-1).tolist()
    for row, (start, stop, prompt) in enumerate(zip(starts.tolist(), lengths, prompts, strict=True)):
        before = torch.from_numpy(prompt.astype(np.int64))
        ids.append(torch.cat([before, batch.input_ids[row, start:stop]]))
        masks.append(torch.cat([torch.zeros(len(before), dtype=torch.bool), batch.target_mask[row, start:stop]]))
    input_ids = pad_sequence(ids, batch_first=True, padding_value=pad_token_id)
    attention_mask = pad_sequence([torch.ones_like(mask) for mask in masks], batch_first=True)
    target_mask = pad_sequence(masks, batch_first=True)
    return TokenBatch(input_ids, attention_mask, target_mask, batch.indices, batch.normalizer)


def check_single_targets(number: int, row: EncodedRow) -> None:
    """Check that all targets of a record are in its response, which student and teacher have in common.

    Raises:
        ValueError: earlier turns of the assistant are targets; the teacher's template writes these differently.
    """
    if any(start < len(row.prompt) for start, _ in row.spans):
        raise ValueError(
            f"record {number + 1}: earlier turns of the assistant are targets, and the teacher has a template of its"
            " own, in which only the last response is the same: set data.datamodule.targets=last, or"
            " teacher.template=null"
        )
