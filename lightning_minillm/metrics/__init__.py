"""Metrics of responses, of the distance to a teacher, and of what follows from it."""

from lightning_minillm.metrics.diversity import DistinctNGrams, RepeatedNGrams
from lightning_minillm.metrics.exposure_bias import ExposureBias
from lightning_minillm.metrics.responses import ExactMatch, RougeL, RougeLByLength, RowMean, normalize, rouge_l

__all__ = [
    "DistinctNGrams",
    "ExactMatch",
    "ExposureBias",
    "RepeatedNGrams",
    "RougeL",
    "RougeLByLength",
    "RowMean",
    "normalize",
    "rouge_l",
]
