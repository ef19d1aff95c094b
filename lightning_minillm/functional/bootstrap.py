"""Paired bootstrap: whether one model's scores are higher than another's by more than the choice of rows.

Legend: N rows, S resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PairedDifference(NamedTuple):
    """Difference of two models' mean scores on the same rows."""

    mean: float
    low: float
    """2.5th percentile over resamples."""
    high: float
    """97.5th percentile."""
    p_value: float
    """Two-sided; at least 1 / (S + 1)."""


def paired_bootstrap(first: Tensor, second: Tensor, *, num_resamples: int = 2000, seed: int = 0) -> PairedDifference:
    """Resample rows with replacement, the same rows of both models (Koehn 2004, W04-3250).

    Args:
        first: ``[N]`` scores of one model.
        second: ``[N]`` scores of the other model on the same rows.
        num_resamples: S, at least 1.
        seed: of the resamples.

    Returns:
        ``mean(first) - mean(second)`` with a 95 % interval, and twice the smaller share of resamples on one side of 0.

    Raises:
        ValueError: no rows, tensors of different length, or no resample.

    Example:
        >>> paired_bootstrap(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])).mean
        1.0
    """
    if first.shape != second.shape or first.dim() != 1 or not len(first):
        raise ValueError(f"paired scores must have the same length, at least 1; got {len(first)} and {len(second)}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    differences = first.double() - second.double()
    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(num_resamples, dtype=torch.float64)
    for number in range(num_resamples):  # one at a time: S x N indices would not fit for large sets
        rows = torch.randint(len(differences), (len(differences),), generator=generator)
        means[number] = differences[rows].mean()
    smaller = min(int((means <= 0).sum()), int((means >= 0).sum()))
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    p_value = min(1.0, 2 * (smaller + 1) / (num_resamples + 1))
    return PairedDifference(differences.mean().item(), low, high, p_value)
