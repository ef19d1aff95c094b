"""Training on given text: supervised fine-tuning, and word-level knowledge distillation."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_minillm.losses import KDLoss, LanguageModelingLoss, TokenLoss
from lightning_minillm.modules.base import CausalLMModule, ModelSource
from lightning_minillm.types import TokenBatch


class SFTModule(CausalLMModule):
    """Supervised fine-tuning; on a teacher's responses it is SeqKD (Kim and Rush, arXiv 1606.07947).

    Args:
        student: see :class:`CausalLMModule`.
        tokenizer: see :class:`CausalLMModule`.
        loss: a loss on the target tokens; next-token cross-entropy by default.
        kwargs: of :class:`CausalLMModule`. A teacher, if given, only measures ``val/reverse_kl``.
    """

    def __init__(
        self, student: ModelSource, tokenizer: PreTrainedTokenizerBase, *, loss: TokenLoss | None = None, **kwargs: Any
    ) -> None:
        super().__init__(student, tokenizer, **kwargs)
        self.loss = loss or LanguageModelingLoss()

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch."""
        output = self.apply_loss(self.loss, batch)
        self.check_finite(output.loss, batch.indices)
        self.log_training(output, len(batch.indices))
        return output.loss


class KDModule(SFTModule):
    """Word-level knowledge distillation on given text: (1 - kd_ratio) LM loss + kd_ratio divergence.

    Args:
        student: see :class:`CausalLMModule`.
        tokenizer: see :class:`CausalLMModule`.
        teacher: see :class:`CausalLMModule`; required.
        loss: any loss; ``KDLoss(0.5)`` by default, the official baseline.
        kwargs: of :class:`CausalLMModule`.
    """

    def __init__(
        self,
        student: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: ModelSource,
        loss: TokenLoss | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, tokenizer, teacher=teacher, loss=loss or KDLoss(0.5), **kwargs)
