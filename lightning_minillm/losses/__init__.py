"""Losses on target tokens; every one is a :class:`TokenLoss`."""

from lightning_minillm.losses.base import TokenLoss
from lightning_minillm.losses.composite import KDLoss, WeightedLoss
from lightning_minillm.losses.divergences import (
    AdaptiveKL,
    AlphaBetaDivergence,
    ForwardKL,
    GeneralizedJSD,
    Jeffreys,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    TeacherCrossEntropy,
    TotalVariation,
)
from lightning_minillm.losses.language_modeling import LanguageModelingLoss
from lightning_minillm.losses.policy_gradient import MiniLLMLoss

__all__ = [
    "AdaptiveKL",
    "AlphaBetaDivergence",
    "ForwardKL",
    "GeneralizedJSD",
    "Jeffreys",
    "KDLoss",
    "LanguageModelingLoss",
    "MiniLLMLoss",
    "ReverseKL",
    "SkewedForwardKL",
    "SkewedReverseKL",
    "TeacherCrossEntropy",
    "TokenLoss",
    "TotalVariation",
    "WeightedLoss",
]
