"""The one base class of every loss on target tokens.

A loss sees logits, ids and named per-token inputs of N valid tokens and returns N values. Selecting the tokens,
projecting hidden states in chunks, cutting vocabularies to the shared ids, reducing and reporting happen here, once.

Legend: N valid target tokens, n tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_minillm.functional.logprobs import TokenStates
from lightning_minillm.losses.chunking import ChunkSize, check_chunk_size, sum_over_chunks, tokens_per_chunk
from lightning_minillm.types import LossOutput, TokenSignals, TokenValues


class TokenLoss(nn.Module, ABC):
    """Turns student and teacher signals on target tokens into one scalar and named parts.

    Subclasses implement :meth:`token_values` and set the class attributes.

    Args:
        chunk_size: target tokens whose logits exist at the same time, at least 1; ``"auto"`` chooses by vocabulary and
            device; ``None`` projects all at once. In chunks, gradients are taken chunk by chunk as the loss is
            computed (or, where the weights of a projection are unknown or sharded, logits are computed again in the
            backward pass), so that peak memory does not grow with tokens x vocabulary.
    """

    needs_teacher: ClassVar[bool] = True
    """Whether :meth:`token_values` reads ``teacher_logits``."""
    is_divergence: ClassVar[bool] = False
    """Whether the loss is at least 0, and 0 exactly where student and teacher agree."""
    token_inputs: tuple[str, ...] = ()
    """Names of the per-token inputs that the loss reads."""

    def __init__(self, chunk_size: ChunkSize = "auto") -> None:
        super().__init__()
        self.chunk_size = check_chunk_size(chunk_size)

    @abstractmethod
    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the loss and its parts for each of the n tokens of ``signals``."""

    @property
    def reads_teacher(self) -> bool:
        """Whether this object, as configured, needs teacher logits."""
        return self.needs_teacher

    def forward(
        self,
        student: TokenStates,
        target_ids: Tensor,
        teacher: TokenStates | None = None,
        inputs: Mapping[str, Tensor] | None = None,
        normalizer: float | None = None,
        temperature: float = 1.0,
    ) -> LossOutput:
        """Reduce the token values to their sum divided by ``normalizer``.

        Args:
            student: states of N target tokens.
            target_ids: ``[N]`` int64.
            teacher: the teacher's states of the same tokens; its gradient is cut off here.
            inputs: the per-token inputs ``[N]`` named in ``token_inputs``.
            normalizer: what the sum is divided by; ``None`` means N, which is right for one batch on one device.
                See :class:`~lightning_minillm.types.TokenBatch`.
            temperature: divides the logits of student and teacher; positive.

        Returns:
            The loss with gradient, and the detached parts.

        Raises:
            ValueError: no target token, no teacher where one is needed, or a missing input.
        """
        inputs = self._checked_inputs(student, teacher, inputs or {})
        normalizer = float(len(student)) if normalizer is None else normalizer
        is_known = student.parameters is not None and not any(value.requires_grad for value in inputs.values())
        parameters = (*(student.parameters or ()), *self.parameters()) if is_known else None

        def compute(hidden: Tensor, start: int, stop: int) -> dict[str, Tensor]:
            logits, teacher_logits = replace(student, hidden=hidden).logits(temperature=temperature), None
            if teacher is not None and self.reads_teacher:
                with torch.no_grad():
                    teacher_logits = teacher.logits(start, stop, temperature)
                shared = min(logits.shape[-1], teacher_logits.shape[-1])
                logits, teacher_logits = logits[:, :shared], teacher_logits[:, :shared]
            chunk = {key: value[start:stop] for key, value in inputs.items()}
            values = self.token_values(TokenSignals(logits, target_ids[start:stop], teacher_logits, chunk))
            sums = {name: value.detach().float().sum() for name, value in values.parts.items()}
            return {**sums, "loss": values.loss.float().sum()}

        sums = sum_over_chunks(compute, student.hidden, parameters, tokens_per_chunk(self.chunk_size, student))
        loss = sums.pop("loss")
        return LossOutput(loss / normalizer, {name: value / normalizer for name, value in sums.items()})

    def _checked_inputs(
        self, student: TokenStates, teacher: TokenStates | None, inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        name = type(self).__name__
        if len(student) == 0:
            raise ValueError(f"{name} got no target token: every label of the batch is masked; check lengths and masks")
        if self.reads_teacher and teacher is None:
            raise ValueError(f"{name} compares with a teacher, but none was given: pass teacher=... to the module")
        if teacher is not None and len(teacher) != len(student):
            raise ValueError(f"{name} got {len(student)} student and {len(teacher)} teacher tokens; give the same")
        missing = [key for key in self.token_inputs if key not in inputs]
        if missing:
            raise ValueError(f"{name} needs the per-token inputs {missing}; got {sorted(inputs)}")
        return {key: inputs[key] for key in self.token_inputs}
