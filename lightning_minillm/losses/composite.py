"""Weighted sums of losses that share one projection of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_minillm.losses.base import DEFAULT_CHUNK_SIZE, TokenLoss
from lightning_minillm.losses.chunking import ChunkSize
from lightning_minillm.losses.divergences import TeacherCrossEntropy
from lightning_minillm.losses.language_modeling import LanguageModelingLoss
from lightning_minillm.types import TokenSignals, TokenValues


class WeightedLoss(TokenLoss):
    """sum_i weight_i loss_i over the same tokens.

    Args:
        losses: at least one loss by name.
        weights: a finite weight for every name. A loss of weight 0 is not computed.
        chunk_size: see :class:`TokenLoss`; those of the summands are not used.

    Raises:
        ValueError: names and weights differ, or every weight is 0.
    """

    def __init__(
        self,
        losses: Mapping[str, TokenLoss],
        weights: Mapping[str, float],
        chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE,
    ) -> None:
        super().__init__(chunk_size)
        if set(losses) != set(weights):
            raise ValueError(f"losses {sorted(losses)} and weights {sorted(weights)} must name the same summands")
        if not any(weights.values()):
            raise ValueError("every weight is 0: the loss would be 0 for any student; set at least one weight")
        self.weights = {name: float(weights[name]) for name in losses if weights[name]}
        # a list: as keys of a ModuleDict, natural names such as "forward" are taken by nn.Module
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

        A part that an earlier summand has reported too gets its summand's name in front.
        """
        total = torch.zeros_like(signals.student_logits[:, 0])
        parts: dict[str, Tensor] = {}
        for name, loss in self._summands.items():
            values = loss.token_values(signals)
            total = total + self.weights[name] * values.loss
            parts |= {f"{name}_{key}" if key in parts else key: value for key, value in values.parts.items()}
        return TokenValues(total, parts)


class KDLoss(WeightedLoss):
    """(1 - kd_ratio) cross-entropy with the target + kd_ratio divergence from the teacher.

    The loss of word-level KD and of MiniLLM's pretraining batch (official finetune.py and losses.pt_loss).

    Args:
        kd_ratio: weight of the teacher in [0, 1] (official 0.5).
        divergence: any loss against the teacher; the official code's cross-entropy by default.
        chunk_size: see :class:`TokenLoss`.

    Raises:
        ValueError: kd_ratio outside [0, 1].
    """

    def __init__(
        self,
        kd_ratio: float = 0.5,
        divergence: TokenLoss | None = None,
        chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE,
    ) -> None:
        if not 0 <= kd_ratio <= 1:
            raise ValueError(f"kd_ratio must lie in [0, 1], got {kd_ratio}")
        losses = {"language_modeling": LanguageModelingLoss(), "divergence": divergence or TeacherCrossEntropy()}
        super().__init__(losses, {"language_modeling": 1 - kd_ratio, "divergence": kd_ratio}, chunk_size)
        self.kd_ratio = kd_ratio
