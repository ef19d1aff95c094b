"""Masks made from lengths, and positions made from masks.

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
