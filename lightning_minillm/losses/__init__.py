"""Losses on target tokens; every one is a :class:`TokenLoss`."""

from lightning_minillm.losses.base import TokenLoss
from lightning_minillm.losses.composite import KDLoss, WeightedLoss
from lightning_minillm.losses.divergences import ForwardKL, GeneralizedJSD, ReverseKL, TeacherCrossEntropy
from lightning_minillm.losses.language_modeling import LanguageModelingLoss
from lightning_minillm.losses.minillm import MiniLLMLoss

__all__ = [
    "ForwardKL",
    "GeneralizedJSD",
    "KDLoss",
    "LanguageModelingLoss",
    "MiniLLMLoss",
    "ReverseKL",
    "TeacherCrossEntropy",
    "TokenLoss",
    "WeightedLoss",
]
