"""Masks made from lengths, and means over them.

Legend: B rows, T response tokens. Masks are boolean; ``True`` counts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lengths_to_mask(lengths: Tensor, width: int) -> Tensor:
    """Return the mask of the first ``lengths[b]`` of ``width`` positions.

    Args:
        lengths: ``[B]`` int64, each in ``[0, width]``.
        width: number of columns.

    Returns:
        ``[B, width]`` bool.

    Example:
        >>> lengths_to_mask(torch.tensor([1, 3]), 3).int().tolist()
        [[1, 0, 0], [1, 1, 1]]
    """
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def response_lengths(response_ids: Tensor, eos_token_id: int | list[int]) -> Tensor:
    """Count the tokens of each response, its first eos included.

    Args:
        response_ids: ``[B, T]`` int64. What follows a row's first eos is ignored, so that a pad id equal to
            the eos id does no harm.
        eos_token_id: the id (or ids) that end a response.

    Returns:
        ``[B]`` int64 in ``[0, T]``; ``T`` for a row without eos.

    Example:
        >>> response_lengths(torch.tensor([[5, 9, 9], [5, 6, 7]]), eos_token_id=9).tolist()
        [2, 3]
    """
    ends = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
    is_end = torch.isin(response_ids, torch.tensor(ends, device=response_ids.device))
    ended_before = is_end.cumsum(-1) - is_end.long() > 0
    return (~ended_before).sum(-1)


def position_ids(attention_mask: Tensor) -> Tensor:
    """Number the tokens of each row from 0, whatever the padding on its left.

    Args:
        attention_mask: ``[B, L]`` bool or int.

    Returns:
        ``[B, L]`` int64; 0 on the padding.

    Example:
        >>> position_ids(torch.tensor([[0, 0, 1, 1]])).tolist()
        [[0, 0, 0, 1]]
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum ``values`` where ``mask`` is ``True``; what lies elsewhere has no effect, even NaN.

    Args:
        values: any shape.
        mask: bool, same shape.

    Returns:
        Scalar.

    Example:
        >>> masked_sum(torch.tensor([1.0, float("nan")]), torch.tensor([True, False])).item()
        1.0
    """
    return values.masked_fill(~mask, 0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average ``values`` where ``mask`` is ``True``.

    Args:
        values: any shape.
        mask: bool, same shape.

    Returns:
        Scalar.

    Raises:
        ValueError: ``mask`` selects nothing: a mean over no tokens hides a wrong mask.
    """
    count = mask.sum()
    if count == 0:
        raise ValueError("the mask selects no element: there is nothing to average; check lengths and masks")
    return masked_sum(values, mask) / count
