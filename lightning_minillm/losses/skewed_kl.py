"""Kullback-Leibler divergences against a mixture (DistiLLM, arXiv 2402.03898)."""

from __future__ import annotations

from typing import ClassVar

from lightning_minillm.functional.divergences import check_skew, skewed_forward_kl, skewed_reverse_kl
from lightning_minillm.losses.base import DEFAULT_CHUNK_SIZE, TokenLoss
from lightning_minillm.losses.chunking import ChunkSize
from lightning_minillm.losses.divergences import teacher_logits
from lightning_minillm.types import TokenSignals, TokenValues


class SkewedForwardKL(TokenLoss):
    """KL(p || alpha p + (1 - alpha) q): the loss of DistiLLM.

    Args:
        alpha: share of the teacher in the mixture, in [0, 1); 0 is the forward KL.
        chunk_size: see :class:`TokenLoss`.

    Raises:
        ValueError: alpha outside [0, 1).
    """

    is_divergence: ClassVar[bool] = True

    def __init__(self, alpha: float = 0.1, chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE) -> None:
        super().__init__(chunk_size)
        self.alpha = check_skew(alpha)

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the divergence of each token."""
        value = skewed_forward_kl(signals.student_logits, teacher_logits(signals), self.alpha)
        return TokenValues(value, {"skewed_forward_kl": value})


class SkewedReverseKL(TokenLoss):
    """KL(q || alpha q + (1 - alpha) p): DistiLLM's other loss.

    Args:
        alpha: share of the student in the mixture, in [0, 1); 0 is the reverse KL.
        chunk_size: see :class:`TokenLoss`.

    Raises:
        ValueError: alpha outside [0, 1).
    """

    is_divergence: ClassVar[bool] = True

    def __init__(self, alpha: float = 0.1, chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE) -> None:
        super().__init__(chunk_size)
        self.alpha = check_skew(alpha)

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the divergence of each token."""
        value = skewed_reverse_kl(signals.student_logits, teacher_logits(signals), self.alpha)
        return TokenValues(value, {"skewed_reverse_kl": value})
