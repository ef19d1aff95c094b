"""Reliability diagrams: how often a model is right when it says how sure it is.

Legend: N predictions, K bins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ReliabilityBins(NamedTuple):
    """Predictions by confidence; a bin without predictions has 0 everywhere."""

    counts: Tensor
    """``[K]`` int64."""
    confidence: Tensor
    """``[K]`` float64, mean confidence."""
    accuracy: Tensor
    """``[K]`` float64, share of right predictions."""


def reliability_bins(confidence: Tensor, correct: Tensor, num_bins: int = 10) -> ReliabilityBins:
    """Sort predictions into ``num_bins`` bins of equal width, ``(k / K, (k + 1) / K]``.

    Args:
        confidence: ``[N]`` probability of the predicted class, in [0, 1].
        correct: ``[N]`` bool, whether the prediction is right.
        num_bins: K, at least 1.

    Returns:
        Counts and means of each bin. The expected calibration error is
        ``(counts * (confidence - accuracy).abs()).sum() / N``, torchmetrics' ``MulticlassCalibrationError``.

    Raises:
        ValueError: no bin, or tensors of different length.

    Example:
        >>> bins = reliability_bins(torch.tensor([0.6, 0.9]), torch.tensor([True, False]), num_bins=2)
        >>> bins.counts.tolist(), bins.accuracy.tolist()
        ([0, 2], [0.0, 0.5])
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    if confidence.shape != correct.shape:
        raise ValueError(f"{len(confidence)} confidences and {len(correct)} outcomes: they must have the same length")
    places = (confidence.double() * num_bins).ceil().long().clamp(1, num_bins) - 1
    counts = torch.bincount(places, minlength=num_bins)
    of_bin = counts.clamp_min(1)
    return ReliabilityBins(
        counts,
        torch.bincount(places, confidence.double(), minlength=num_bins) / of_bin,
        torch.bincount(places, correct.double(), minlength=num_bins) / of_bin,
    )
