"""Training on given text: supervised fine-tuning, and word-level knowledge distillation."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_minillm.losses import KDLoss, LanguageModelingLoss, TokenLoss
from lightning_minillm.models import ModelFactory
from lightning_minillm.modules.base import CausalLMModule
from lightning_minillm.modules.options import TrainingOptions, ValidationOptions
from lightning_minillm.types import TokenBatch


class SFTModule(CausalLMModule):
    """Supervised fine-tuning; on a teacher's responses it is SeqKD (Kim and Rush, arXiv 1606.07947).

    Args:
        student: as for :class:`CausalLMModule`, as are the arguments that follow ``teacher``.
        loss: a loss on the target tokens; next-token cross-entropy by default.
        teacher: only measures ``val/reverse_kl``, unless the loss reads it; ``None`` for none.
    """

    def __init__(
        self,
        student: ModelFactory,
        tokenizer: PreTrainedTokenizerBase,
        *,
        loss: TokenLoss | None = None,
        teacher: ModelFactory | None = None,
        training: TrainingOptions | None = None,
        validation: ValidationOptions | None = None,
    ) -> None:
        super().__init__(student, tokenizer, teacher=teacher, training=training, validation=validation)
        self.loss = loss or LanguageModelingLoss()

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch."""
        return self.finish_step(self.apply_loss(self.loss, batch), batch.indices)


class KDModule(CausalLMModule):
    """Word-level knowledge distillation on given text: (1 - kd_ratio) LM loss + kd_ratio divergence.

    Args:
        student: as for :class:`CausalLMModule`, as are the other arguments.
        loss: any loss without inputs of its own; ``KDLoss(0.5)`` by default, the official baseline.
    """

    def __init__(
        self,
        student: ModelFactory,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: ModelFactory,
        loss: TokenLoss | None = None,
        training: TrainingOptions | None = None,
        validation: ValidationOptions | None = None,
    ) -> None:
        super().__init__(student, tokenizer, teacher=teacher, training=training, validation=validation)
        self.loss = loss or KDLoss(0.5)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch."""
        return self.finish_step(self.apply_loss(self.loss, batch), batch.indices)
