"""Losses on target tokens; every one is a :class:`TokenLoss`."""

from lightning_minillm.losses.adaptive_kl import AdaptiveKL
from lightning_minillm.losses.alpha_beta import AlphaBetaDivergence
from lightning_minillm.losses.base import TokenLoss
from lightning_minillm.losses.composite import KDLoss, WeightedLoss
from lightning_minillm.losses.divergences import ForwardKL, GeneralizedJSD, ReverseKL, TeacherCrossEntropy
from lightning_minillm.losses.jeffreys import Jeffreys
from lightning_minillm.losses.language_modeling import LanguageModelingLoss
from lightning_minillm.losses.policy_gradient import MiniLLMLoss
from lightning_minillm.losses.skewed_kl import SkewedForwardKL, SkewedReverseKL
from lightning_minillm.losses.total_variation import TotalVariation

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
