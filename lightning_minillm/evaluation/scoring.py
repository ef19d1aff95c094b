"""The likelihood of given responses under a model.

Legend: B rows, L tokens, N target tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_minillm.functional.logprobs import target_logprobs
from lightning_minillm.models import ModelPair
from lightning_minillm.types import TokenBatch


def row_sums(values: Tensor, mask: Tensor) -> list[float]:
    """Sum token values over the rows that they come from, in float64.

    Args:
        values: ``[N]``, one per ``True`` of the mask, row by row.
        mask: ``[B, L]`` bool.

    Returns:
        B sums.

    Example:
        >>> row_sums(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[True, True], [False, True]]))
        [3.0, 3.0]
    """
    rows = mask.cpu().nonzero()[:, 0]
    sums: list[float] = torch.zeros(len(mask), dtype=torch.float64).index_add_(0, rows, values.double().cpu()).tolist()
    return sums


def target_scores(pair: ModelPair, batch: TokenBatch) -> list[float]:
    """Return the student's log q of each row of a batch on the pair's device, summed over its target tokens."""
    states, target_ids = pair.token_states(batch)
    return row_sums(target_logprobs(states, target_ids), batch.target_mask)


def response_scores(pair: ModelPair, batch: TokenBatch) -> list[float]:
    """Return the student's log q(response | prompt) of each row of a batch on any device; responses are the targets.

    The eos at the end of every response does not count: the response may be the beginning of a longer text.
    """
    places = torch.arange(batch.target_mask.shape[1])
    last = batch.attention_mask.sum(-1, keepdim=True) - 1
    return target_scores(pair, replace(batch, target_mask=batch.target_mask & (places != last)).to(pair.device))
