"""Frozen containers that travel through the package, with the shape of every field, and the protocols of their sources.

Legend: B rows, P prompt tokens, Q prompt tokens of the teacher, T response tokens, L = P + T tokens, N valid target
tokens, H hidden size.
Masks are boolean and ``True`` counts. New values make a new object (``dataclasses.replace``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

_Batch = TypeVar("_Batch", bound="DeviceMovable")


@dataclass(frozen=True)
class DeviceMovable:
    """Gives a frozen dataclass the ``.to(device)`` by which Lightning moves batches."""

    def to(self: _Batch, device: torch.device | str, non_blocking: bool = False) -> _Batch:
        """Return a copy whose tensors (nested batches included) are on ``device``."""
        moved = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, (Tensor, DeviceMovable)):
                moved[entry.name] = value.to(device, non_blocking=non_blocking)
        return replace(self, **moved)


@dataclass(frozen=True)
class PromptBatch(DeviceMovable):
    """Left-padded prompts to respond to."""

    input_ids: Tensor
    """``[B, P]`` int64, padding on the left."""
    attention_mask: Tensor
    """``[B, P]`` bool."""
    indices: Tensor
    """``[B]`` int64, each prompt's row in its data set: seeds the row's sampling noise."""
    teacher: PromptBatch | None = None
    """The same rows as the teacher is shown them, if its prompts differ from the student's."""

    @property
    def of_teacher(self) -> PromptBatch:
        """The prompts that the teacher is shown."""
        return self.teacher or self


@dataclass(frozen=True)
class TokenBatch(DeviceMovable):
    """Right-padded token sequences, some tokens of which are targets."""

    input_ids: Tensor
    """``[B, L]`` int64."""
    attention_mask: Tensor
    """``[B, L]`` bool."""
    target_mask: Tensor
    """``[B, L]`` bool; ``True`` at ``t`` means that token ``t`` itself is to be predicted from those before it.
    Never ``True`` at ``t = 0``. Not shifted: the one shift is in ``functional.logprobs``."""
    indices: Tensor
    """``[B]`` int64, rows in the data set."""
    normalizer: float
    """What summed token losses are divided by: target tokens of the whole optimiser step (all ranks and
    micro-batches) divided by (ranks x micro-batches). Lightning's averages over both then give the exact mean
    over the tokens of the global batch."""
    teacher: TokenBatch | None = None
    """The same rows and targets after the teacher's prompts, if these differ from the student's."""

    @property
    def of_teacher(self) -> TokenBatch:
        """The sequences that the teacher reads.

        Raises:
            ValueError: a row has a different number of targets there.
        """
        if self.teacher is None:
            return self
        own, theirs = self.target_mask.sum(-1), self.teacher.target_mask.sum(-1)
        if not torch.equal(own, theirs):
            raise ValueError(
                f"student and teacher must have the same targets in every row, got {own.tolist()} and"
                f" {theirs.tolist()} of them"
            )
        return self.teacher


@dataclass(frozen=True)
class EvaluationBatch(DeviceMovable):
    """Prompts with their references, and the same rows as teacher-forced sequences."""

    prompts: PromptBatch
    tokens: TokenBatch
    """Prompt + first reference; targets are the reference's tokens."""
    references: tuple[tuple[str, ...], ...]
    """B tuples of acceptable responses, at least one each."""
    tasks: tuple[str, ...]
    """B task names (``""`` where the data set has none)."""
    exact: tuple[bool, ...]
    """B flags: the row has one right answer, so that exact match means something."""
    prompt_texts: tuple[str, ...]
    """B instructions as a person would read them (for tables)."""


@dataclass(frozen=True)
class RolloutBatch(DeviceMovable):
    """Sampled responses with the log-probabilities they were sampled with."""

    prompt_ids: Tensor
    """``[B, P]`` int64, padding on the left."""
    prompt_mask: Tensor
    """``[B, P]`` bool."""
    response_ids: Tensor
    """``[B, T]`` int64, padding on the right; a row ends with its first eos, which counts."""
    response_mask: Tensor
    """``[B, T]`` bool, made from lengths, never from the pad id."""
    indices: Tensor
    """``[B]`` int64, rows of the prompts."""
    student_logprobs: Tensor
    """``[B, T]`` float32, log q(y_t) at the sampling temperature; 0 where masked."""
    teacher_logprobs: Tensor | None
    """``[B, T]`` float32, log p(y_t) at the sampling temperature; ``None`` when sampled without a teacher."""
    mixture_logprobs: Tensor
    """``[B, T]`` float32, log mu(y_t) of the distribution that was sampled from."""
    reward_logprobs: Tensor | None
    """``[B, T]`` float32, log p(y_t) at the reward's temperature (``teacher_reward_temperature``)."""
    teacher_hidden: Tensor | None = None
    """``[B, T, H]``, the teacher's last hidden states that predict each response token, if cached."""
    teacher_prompt_ids: Tensor | None = None
    """``[B, Q]`` int64, the teacher's prompts with padding on the left, if they differ from the student's."""
    teacher_prompt_mask: Tensor | None = None
    """``[B, Q]`` bool."""

    def __len__(self) -> int:
        return self.response_ids.shape[0]

    @classmethod
    def from_columns(cls, columns: Mapping[str, Tensor]) -> RolloutBatch:
        """Return the batch of :meth:`columns`; optional fields that are missing are ``None``."""
        optional = dict.fromkeys(("teacher_logprobs", "reward_logprobs"))
        fields: dict[str, Any] = {**optional, **columns}
        return cls(**fields)

    def columns(self) -> dict[str, Tensor]:
        """Return the fields that are present, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def of_teacher(self) -> RolloutBatch:
        """The same responses to the prompts that the teacher is shown."""
        if self.teacher_prompt_ids is None or self.teacher_prompt_mask is None:
            return self
        ids, mask = self.teacher_prompt_ids, self.teacher_prompt_mask
        return replace(self, prompt_ids=ids, prompt_mask=mask, teacher_prompt_ids=None, teacher_prompt_mask=None)

    def for_prompts(self, prompts: PromptBatch) -> RolloutBatch:
        """Return the same responses to the given prompts, and to the teacher's where these have some."""
        teacher = prompts.teacher
        return replace(
            self,
            prompt_ids=prompts.input_ids,
            prompt_mask=prompts.attention_mask.bool(),
            teacher_prompt_ids=None if teacher is None else teacher.input_ids,
            teacher_prompt_mask=None if teacher is None else teacher.attention_mask.bool(),
        )

    @property
    def lengths(self) -> Tensor:
        """``[B]`` int64, response tokens of each row, eos included."""
        return self.response_mask.sum(-1)


@dataclass(frozen=True)
class PolicyBatch(DeviceMovable):
    """One micro-batch of a rollout phase, ready for the policy-gradient loss."""

    rollouts: RolloutBatch
    advantages: Tensor
    """``[B, T]`` float32, whitened over the whole optimiser step; no gradient."""
    importance_weights: Tensor
    """``[B, T]`` float32, w_t = q(y_t) / mu(y_t) when sampled; no gradient."""
    normalizer: float
    """As in :class:`TokenBatch`, counted over response tokens."""
    lm: TokenBatch | None = None
    """Pretraining rows of the same step."""


@dataclass(frozen=True)
class TokenSignals:
    """What a token loss sees: everything about N valid target tokens."""

    student_logits: Tensor
    """``[N, V]`` float32, already divided by the temperature."""
    target_ids: Tensor
    """``[N]`` int64."""
    teacher_logits: Tensor | None
    """``[N, V]`` float32 without gradient; ``None`` for a loss whose ``reads_teacher`` is false."""
    inputs: Mapping[str, Tensor]
    """Per-token inputs ``[N]`` that the loss named in ``token_inputs``."""


@dataclass(frozen=True)
class TokenValues:
    """What a token loss returns."""

    loss: Tensor
    """``[N]`` per-token loss values, with gradient."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Named per-token values ``[N]`` to be averaged and logged beside the loss; gradients through them are dropped."""


@dataclass(frozen=True)
class LossOutput:
    """A reduced loss."""

    loss: Tensor
    """Scalar with gradient: sum over the tokens divided by the normaliser."""
    parts: Mapping[str, Tensor]
    """Detached scalars, each a sum over the tokens divided by the same normaliser."""


# --- what a training module and its data speak of -------------------------------------------------------------------


class PromptSet(Protocol):
    """Training rows, as prompts to respond to and as prompt-response pairs."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def prompt_batch(self, indices: Tensor) -> PromptBatch:
        """Return the prompts of the rows ``indices`` (``[B]`` int64)."""

    def token_batch(self, indices: Tensor, normalizer: float) -> TokenBatch:
        """Return the pairs of the rows ``indices`` (``[B]`` int64), with all that is learned from as targets."""

    def response_batch(self, indices: Tensor, normalizer: float) -> TokenBatch:
        """Return the same pairs with the responses, which end the rows, as targets."""


class TokenBatches(Protocol):
    """An endless stream of micro-batches; its only state is the number of the batch."""

    def batch(self, step: int) -> TokenBatch:
        """Return this rank's ``step``-th micro-batch since the beginning of training."""


class TrainingData(Protocol):
    """What a training module may ask of the data module."""

    @property
    def train_set(self) -> PromptSet:
        """Training rows."""

    @property
    def lm_stream(self) -> TokenBatches | None:
        """Micro-batches for the pretraining loss; ``None`` without a corpus."""

    @property
    def batch_size(self) -> int:
        """Rows of an optimiser step over all ranks."""

    @property
    def micro_batch_size(self) -> int:
        """Rows of a forward pass on one rank."""

    def pair_loader(self) -> Iterable[TokenBatch]:
        """Return the training pairs as this rank's micro-batches."""


@runtime_checkable
class MeasuredData(Protocol):
    """A data module that knows the lengths of its rows, and which ids they have."""

    def longest_rows(self) -> Mapping[str, tuple[int, int]]:
        """Return the tokens of the longest prompt, and of the longest pair, of ``"train"`` and other splits."""

    def rows_with(self, token_ids: Sequence[int]) -> Mapping[str, Sequence[int]]:
        """Return the rows that have any of these ids, of what is trained and validated on; no split without them."""


@runtime_checkable
class TrainLoaderBuilder(Protocol):
    """A module that makes its own training batches, such as rollouts of its student."""

    def build_train_loader(self, data: TrainingData) -> Iterable[DeviceMovable]:
        """Return this rank's micro-batches; the data module calls this in ``train_dataloader``."""


# --- what some loggers take -----------------------------------------------------------------------------------------


@runtime_checkable
class TableLogger(Protocol):
    """A Lightning logger that takes tables, such as W&B's."""

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], *, step: int | None = None) -> None:
        """Log a table with named columns."""


@runtime_checkable
class ImageLogger(Protocol):
    """A Lightning logger that takes images, such as W&B's."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log images, given as files or arrays."""
