"""Weighted sums of losses that share one projection of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_minillm.checks import check_range
from lightning_minillm.losses.base import TokenLoss
from lightning_minillm.losses.chunking import ChunkSize
from lightning_minillm.losses.divergences import TeacherCrossEntropy
from lightning_minillm.losses.language_modeling import LanguageModelingLoss
from lightning_minillm.types import TokenSignals, TokenValues


class WeightedLoss(TokenLoss):
    """sum_i weight_i loss_i over the same tokens.

    Args:
        losses: at least one loss by name.
        weights: a finite weight for each of these names. A loss with weight 0 is not computed.
        chunk_size: of the sum; those of the summands are ignored.

    Raises:
        ValueError: names and weights differ, or every weight is 0.
    """

    def __init__(
        self, losses: Mapping[str, TokenLoss], weights: Mapping[str, float], chunk_size: ChunkSize = "auto"
    ) -> None:
        super().__init__(chunk_size)
        if set(losses) != set(weights):
            raise ValueError(f"losses and weights must have the same names, got {sorted(losses)} and {sorted(weights)}")
        if not any(weights.values()):
            raise ValueError("all weights are 0, so the loss would be 0 for any student; set at least one weight")
        self.weights = {name: float(weights[name]) for name in losses if weights[name]}
        # a list, because nn.ModuleDict refuses names of its own methods, such as "forward"
        self.losses = nn.ModuleList(losses[name] for name in self.weights)
        self.token_inputs = tuple(dict.fromkeys(key for loss in self._summands.values() for key in loss.token_inputs))

    @property
    def _summands(self) -> dict[str, TokenLoss]:
        named = zip(self.weights, self.losses, strict=True)
        return {name: loss for name, loss in named if isinstance(loss, TokenLoss)}

    @property
    def reads_teacher(self) -> bool:
        """Whether any summand needs teacher logits."""
        return any(loss.reads_teacher for loss in self._summands.values())

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the weighted sum, and the parts of all summands.

        A summand without parts is a part itself, under its name. A part that an earlier summand has reported too gets
        the name of its summand as a prefix.
        """
        total = torch.zeros_like(signals.student_logits[:, 0])
        parts: dict[str, Tensor] = {}
        for name, loss in self._summands.items():
            values = loss.token_values(signals)
            total = total + self.weights[name] * values.loss
            reported = values.parts or {name: values.loss}
            parts |= {f"{name}_{key}" if key in parts else key: value for key, value in reported.items()}
        return TokenValues(total, parts)


class KDLoss(TokenLoss):
    """(1 - kd_ratio) cross-entropy with the target + kd_ratio divergence from the teacher.

    The loss of word-level KD and of MiniLLM's pretraining batch (official finetune.py and losses.pt_loss).

    Args:
        kd_ratio: weight of the teacher in [0, 1] (official 0.5).
        divergence: any loss against the teacher; the official code's cross-entropy by default.
    """

    def __init__(
        self, kd_ratio: float = 0.5, divergence: TokenLoss | None = None, chunk_size: ChunkSize = "auto"
    ) -> None:
        super().__init__(chunk_size)
        check_range(0 <= kd_ratio <= 1, "kd_ratio", "in [0, 1]", kd_ratio)
        self.mixture = WeightedLoss(
            {"language_modeling": LanguageModelingLoss(), "divergence": divergence or TeacherCrossEntropy()},
            {"language_modeling": 1 - kd_ratio, "divergence": kd_ratio},
        )
        self.token_inputs = self.mixture.token_inputs

    @property
    def reads_teacher(self) -> bool:
        """Whether the teacher's weight is positive."""
        return self.mixture.reads_teacher

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the weighted sum, with ``lm_loss`` and the divergence as parts."""
        return self.mixture.token_values(signals)
