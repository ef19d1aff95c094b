"""Adaptive mixture of forward and reverse KL (AKL, arXiv 2404.02657)."""

from __future__ import annotations

from typing import ClassVar

from lightning_minillm.functional.adaptive_kl import adaptive_kl, check_head_mass
from lightning_minillm.losses.base import DEFAULT_CHUNK_SIZE, TokenLoss
from lightning_minillm.losses.chunking import ChunkSize
from lightning_minillm.losses.divergences import teacher_logits
from lightning_minillm.types import TokenSignals, TokenValues


class AdaptiveKL(TokenLoss):
    """w KL(p || q) + (1 - w) KL(q || p), w the share of the difference that lies in the teacher's head.

    w is taken for each token anew and carries no gradient.

    Args:
        head_mass: mu in (0, 1), the teacher's probability that the head holds at most.
        chunk_size: see :class:`TokenLoss`.

    Raises:
        ValueError: head_mass outside (0, 1).
    """

    is_divergence: ClassVar[bool] = True

    def __init__(self, head_mass: float = 0.5, chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE) -> None:
        super().__init__(chunk_size)
        check_head_mass(head_mass)
        self.head_mass = head_mass

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the divergence of each token."""
        value = adaptive_kl(signals.student_logits, teacher_logits(signals), self.head_mass)
        return TokenValues(value, {"adaptive_kl": value})
