"""Alpha-beta divergence (ABKD, arXiv 2505.04560)."""

from __future__ import annotations

from typing import ClassVar

from lightning_minillm.functional.alpha_beta import alpha_beta_divergence, check_exponents
from lightning_minillm.losses.base import DEFAULT_CHUNK_SIZE, TokenLoss
from lightning_minillm.losses.chunking import ChunkSize
from lightning_minillm.losses.divergences import teacher_logits
from lightning_minillm.types import TokenSignals, TokenValues


class AlphaBetaDivergence(TokenLoss):
    """-1 / (alpha beta) sum [p^alpha q^beta - alpha / s p^s - beta / s q^s], s = alpha + beta.

    Args:
        alpha: exponent of the teacher, at least 0; (1, 0) is the forward KL.
        beta: exponent of the student, at least 0; (0, 1) is the reverse KL.
        chunk_size: see :class:`TokenLoss`.

    Raises:
        ValueError: a negative exponent, or both 0.
    """

    is_divergence: ClassVar[bool] = True

    def __init__(self, alpha: float = 0.2, beta: float = 0.7, chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE) -> None:
        super().__init__(chunk_size)
        check_exponents(alpha, beta)
        self.alpha, self.beta = alpha, beta

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the divergence of each token."""
        value = alpha_beta_divergence(signals.student_logits, teacher_logits(signals), self.alpha, self.beta)
        return TokenValues(value, {"alpha_beta_divergence": value})
