"""The base class of all losses on target tokens.

A loss receives logits, ids and named per-token inputs of N valid tokens and returns N values. The base class projects
hidden states in chunks, cuts the vocabularies to the shared ids, and reduces values and parts.

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

DEFAULT_CHUNK_SIZE: ChunkSize = "auto"


class TokenLoss(nn.Module, ABC):
    """Base class of losses that add up one value per target token, and named parts beside it.

    Subclasses implement :meth:`token_values` and set the class attributes.

    Args:
        chunk_size: target tokens that are projected at a time, at least 1; ``"auto"`` chooses by vocabulary and device;
            ``None`` projects all at once. With chunks, the gradient of each chunk is computed together with its loss,
            so that peak memory does not grow with tokens x vocabulary. If the weights of the projection are unknown or
            sharded, the logits are recomputed in the backward pass instead.

    Raises:
        ValueError: chunk_size below 1, or a word other than ``"auto"``.
    """

    needs_teacher: ClassVar[bool] = True
    """Whether :meth:`token_values` reads ``teacher_logits``."""
    is_divergence: ClassVar[bool] = False
    """Whether the loss is at least 0, and 0 only where student and teacher agree."""
    token_inputs: tuple[str, ...] = ()
    """Names of the per-token inputs that the loss reads from ``signals.inputs``."""

    def __init__(self, chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE) -> None:
        super().__init__()
        self.chunk_size = check_chunk_size(chunk_size)

    @abstractmethod
    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the loss and its parts for each of the n tokens of ``signals``."""

    @property
    def reads_teacher(self) -> bool:
        """Whether the loss reads teacher logits with the options it was given."""
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
            teacher: the teacher's states of the same tokens; no gradient flows into them.
            inputs: the per-token inputs ``[N]`` named in ``token_inputs``.
            normalizer: the sum is divided by it; ``None`` for N, which is correct for one batch on one device.
                ``TokenBatch.normalizer`` explains the value for several devices and micro-batches.
            temperature: divides the logits of student and teacher; positive.

        Returns:
            The loss with gradient, and the detached parts.

        Raises:
            ValueError: no target tokens, no teacher although the loss reads one, a different number of teacher
                tokens, or a missing input.
        """
        inputs = self._checked_inputs(student, teacher, inputs or {})
        normalizer = float(len(student)) if normalizer is None else normalizer
        parameters = student.parameters
        if parameters is not None and not any(value.requires_grad for value in inputs.values()):
            parameters = (*parameters, *self.parameters())
        else:
            parameters = None

        def compute(hidden: Tensor, start: int, stop: int) -> dict[str, Tensor]:
            return self._chunk_sums(
                replace(student, hidden=hidden), target_ids, teacher, inputs, temperature, start, stop
            )

        sums = sum_over_chunks(compute, student.hidden, parameters, tokens_per_chunk(self.chunk_size, student))
        loss = sums.pop("loss")
        return LossOutput(loss / normalizer, {name: value / normalizer for name, value in sums.items()})

    def _checked_inputs(
        self, student: TokenStates, teacher: TokenStates | None, inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        name = type(self).__name__
        if len(student) == 0:
            raise ValueError(
                f"{name} got no target tokens: all tokens of the batch are masked; check lengths and masks"
            )
        if self.reads_teacher and teacher is None:
            raise ValueError(f"{name} reads a teacher, but none was given; pass teacher=... to the module")
        if teacher is not None and len(teacher) != len(student):
            raise ValueError(
                f"{name} got {len(student)} student and {len(teacher)} teacher tokens; pass the same tokens"
            )
        missing = [key for key in self.token_inputs if key not in inputs]
        if missing:
            raise ValueError(f"{name} reads the per-token inputs {missing}, but got only {sorted(inputs)}")
        return {key: inputs[key] for key in self.token_inputs}

    def _chunk_sums(
        self,
        student: TokenStates,
        target_ids: Tensor,
        teacher: TokenStates | None,
        inputs: Mapping[str, Tensor],
        temperature: float,
        start: int,
        stop: int,
    ) -> dict[str, Tensor]:
        """Sum the values of the tokens ``start:stop``, the only ones in ``student``."""
        student_logits = student.logits(temperature=temperature)
        teacher_logits = None
        if teacher is not None and self.reads_teacher:
            with torch.no_grad():
                teacher_logits = teacher.logits(start, stop, temperature)
            shared = min(student_logits.shape[-1], teacher_logits.shape[-1])
            student_logits, teacher_logits = student_logits[:, :shared], teacher_logits[:, :shared]
        chunk_inputs = {key: value[start:stop] for key, value in inputs.items()}
        values = self.token_values(TokenSignals(student_logits, target_ids[start:stop], teacher_logits, chunk_inputs))
        sums = {name: value.detach().float().sum() for name, value in values.parts.items()}
        return {**sums, "loss": values.loss.float().sum()}
