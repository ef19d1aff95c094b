"""Total variation distance between student and teacher."""

from __future__ import annotations

from typing import ClassVar

from lightning_minillm.functional import total_variation
from lightning_minillm.losses.base import TokenLoss
from lightning_minillm.losses.divergences import teacher_logits
from lightning_minillm.types import TokenSignals, TokenValues


class TotalVariation(TokenLoss):
    """1/2 sum |p - q| (f-distill, arXiv 2307.15190): bounded, and deaf to tokens that both find unlikely."""

    is_divergence: ClassVar[bool] = True

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the divergence of each token."""
        value = total_variation(signals.student_logits, teacher_logits(signals))
        return TokenValues(value, {"total_variation": value})
