"""Jeffreys divergence: both Kullback-Leibler divergences together."""

from __future__ import annotations

from typing import ClassVar

from lightning_minillm.functional import jeffreys
from lightning_minillm.losses.base import TokenLoss
from lightning_minillm.losses.divergences import teacher_logits
from lightning_minillm.types import TokenSignals, TokenValues


class Jeffreys(TokenLoss):
    """KL(p || q) + KL(q || p) (Jeffreys 1946): symmetric, and as large as the larger of the two."""

    is_divergence: ClassVar[bool] = True

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the divergence of each token."""
        value = jeffreys(signals.student_logits, teacher_logits(signals))
        return TokenValues(value, {"jeffreys": value})
