"""Cutting a batch of rows of different lengths so that little of what is computed is padding.

Legend: B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WASTE = 0.1  # share of a group that may be padding


def left_aligned(mask: Tensor) -> Tensor:
    """Return the order that puts each row's tokens on the left, as indices for ``gather`` along the columns.

    Args:
        mask: ``[B, L]`` bool.

    Returns:
        ``[B, l]`` int64, l the most tokens of a row; what follows a row's tokens is its padding.

    Example:
        >>> left_aligned(torch.tensor([[False, True, True], [True, False, False]])).tolist()
        [[1, 2], [0, 1]]
    """
    width = int(mask.sum(-1).max())
    return (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, :width]


def length_groups(lengths: Sequence[int], min_tokens: int, max_tokens: int | None = None) -> list[slice]:
    """Split rows into runs of like length, of which at most a tenth or so is padding.

    Args:
        lengths: tokens of each row, falling.
        min_tokens: a group has at least that many, padding included, unless it is the last.
        max_tokens: a group has at most that many, unless it is a single row; ``None`` for no limit.

    Returns:
        Consecutive row slices.

    Example:
        >>> length_groups([600, 590, 300], min_tokens=512)
        [slice(0, 2, None), slice(2, 3, None)]
    """
    groups, start, tokens = [], 0, 0
    for row, length in enumerate(lengths):
        padded = lengths[start] * (row - start)
        with_row = lengths[start] * (row + 1 - start)
        wasteful = padded >= max(min_tokens, 1) and tokens + length < (1 - _WASTE) * with_row
        full = max_tokens is not None and row > start and with_row > max_tokens
        if wasteful or full:
            groups.append(slice(start, row))
            start, tokens = row, 0
        tokens += length
    return [*groups, slice(start, len(lengths))]


def equal_groups(lengths: Sequence[int]) -> list[slice]:
    """Split rows, sorted by length, into runs of one length, so that nothing is padding.

    Example:
        >>> equal_groups([5, 5, 3])
        [slice(0, 2, None), slice(2, 3, None)]
    """
    starts = [row for row, length in enumerate(lengths) if row == 0 or length != lengths[row - 1]]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(lengths)], strict=True)]
