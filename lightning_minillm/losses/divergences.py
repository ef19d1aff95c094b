"""Divergences between student and teacher as losses: each is one line of mathematics on ``TokenLoss``."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lightning_minillm.functional import divergences
from lightning_minillm.losses.base import DEFAULT_CHUNK_SIZE, TokenLoss
from lightning_minillm.losses.chunking import ChunkSize
from lightning_minillm.types import TokenSignals, TokenValues


def teacher_logits(signals: TokenSignals) -> Tensor:
    """Return the teacher's logits ``[N, V]`` of a loss that needs a teacher."""
    assert signals.teacher_logits is not None  # TokenLoss.forward has checked it
    return signals.teacher_logits


class ForwardKL(TokenLoss):
    """KL(teacher || student), word-level distillation (Hinton et al., arXiv 1503.02531)."""

    is_divergence: ClassVar[bool] = True

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the divergence of each token."""
        value = divergences.forward_kl(signals.student_logits, teacher_logits(signals))
        return TokenValues(value, {"forward_kl": value})


class ReverseKL(TokenLoss):
    """KL(student || teacher), exact over the vocabulary (MiniLLM, arXiv 2306.08543)."""

    is_divergence: ClassVar[bool] = True

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the divergence of each token."""
        value = divergences.reverse_kl(signals.student_logits, teacher_logits(signals))
        return TokenValues(value, {"reverse_kl": value})


class GeneralizedJSD(TokenLoss):
    """Generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649).

    Args:
        beta: weight of the teacher in the mixture, strictly inside (0, 1).
        chunk_size: see :class:`TokenLoss`.

    Raises:
        ValueError: beta outside (0, 1).
    """

    is_divergence: ClassVar[bool] = True

    def __init__(self, beta: float = 0.5, chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE) -> None:
        super().__init__(chunk_size)
        if not 0 < beta < 1:
            raise ValueError(f"beta must lie inside (0, 1), got {beta}; use ForwardKL or ReverseKL at the ends")
        self.beta = beta

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the divergence of each token."""
        value = divergences.generalized_jsd(signals.student_logits, teacher_logits(signals), self.beta)
        return TokenValues(value, {"generalized_jsd": value})


class TeacherCrossEntropy(TokenLoss):
    """-sum p log q: the forward KL's gradient with the value that the official code logs as ``ds_loss``."""

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the cross-entropy of each token."""
        value = divergences.cross_entropy(signals.student_logits, teacher_logits(signals))
        return TokenValues(value, {"teacher_cross_entropy": value})
