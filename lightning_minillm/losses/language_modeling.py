"""Next-token cross-entropy."""

from __future__ import annotations

from typing import ClassVar

from lightning_minillm.functional.logprobs import gather_logprobs
from lightning_minillm.losses.base import TokenLoss
from lightning_minillm.types import TokenSignals, TokenValues


class LanguageModelingLoss(TokenLoss):
    """-log q of the target token; the loss of SFT, of SeqKD, and of the pretraining batch (paper, L_PT)."""

    needs_teacher: ClassVar[bool] = False

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the negative log-likelihood of each token."""
        value = -gather_logprobs(signals.student_logits, signals.target_ids)
        return TokenValues(value, {"lm_loss": value})
