"""Text sources: a phase of distillation uses references, the teacher's text, the student's, or several in turn.

A source is asked for the text of one phase and is given functions that write it; it never sees a model. Its random
draws come from (seed, phase) alone, so that all ranks make the same choice and a resumed run repeats it.

Legend: B rows of a rank, N rows of a phase over all ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lightning_minillm.checks import check_range
from lightning_minillm.types import PromptBatch, RolloutBatch

Writer = Callable[[PromptBatch], RolloutBatch]


@dataclass(frozen=True)
class TextRequest:
    """What a source is asked for, and the functions it may use.

    Attributes:
        prompts: B prompts of this rank.
        phase: number of the phase, from 0.
        progress: share of the training that is done, in [0, 1].
        seed: of the run.
        reference: returns the data set's responses to prompts.
        student: samples the student's, with its current weights.
        teacher: samples the teacher's.
        rows: ``[B]`` int64, the place of each prompt among the N of the phase; ``None`` for one rank.
        num_rows: N; ``None`` for B.
        gather: returns the N rows of all ranks, of which each gives its B, in their places; every rank has to call it.
    """

    prompts: PromptBatch
    phase: int
    progress: float
    seed: int
    reference: Writer
    student: Writer
    teacher: Writer
    rows: Tensor | None = None
    num_rows: int | None = None
    gather: Callable[[RolloutBatch], RolloutBatch] = lambda text: text

    @property
    def total(self) -> int:
        """N."""
        return len(self.prompts.indices) if self.num_rows is None else self.num_rows

    def share(self, values: Tensor) -> Tensor:
        """Return this rank's B of ``[N, ...]`` values."""
        return values if self.rows is None else values[self.rows.to(values.device)]

    def draw(self) -> float:
        """Return a number in [0, 1) that is the same on all ranks."""
        return float(np.random.default_rng((self.seed, self.phase)).random())


class TextSource(ABC):
    """Decides whose text a phase consists of.

    Subclasses implement :meth:`text`; those with a state also :meth:`state_dict` and :meth:`load_state_dict`, which
    checkpoints hold.
    """

    @property
    def is_on_policy(self) -> bool:
        """Whether all text is the student's, sampled in its phase, so that its log-probabilities are the student's."""
        return False

    @abstractmethod
    def text(self, request: TextRequest) -> RolloutBatch:
        """Return B rows of prompts with responses."""

    def on_validation(self, loss: float) -> None:  # noqa: B027 - most sources ignore it
        """Receive a validation loss; the same value on all ranks."""

    def metrics(self) -> dict[str, float]:
        """Return values to log as ``rollout/...`` in every phase; the names are the same in all phases."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state to keep in a checkpoint; the same on all ranks."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most sources have no state
        """Restore what :meth:`state_dict` gave."""


class ReferenceText(TextSource):
    """The data set's own responses: off-policy distillation (Hinton et al., arXiv 1503.02531)."""

    def text(self, request: TextRequest) -> RolloutBatch:
        """Return the references."""
        return request.reference(request.prompts)


class TeacherText(TextSource):
    """The teacher's responses, sampled again in every phase (SeqKD, arXiv 1606.07947, has one response per prompt)."""

    def text(self, request: TextRequest) -> RolloutBatch:
        """Return the teacher's responses."""
        return request.teacher(request.prompts)


class StudentText(TextSource):
    """The student's responses in a share of the phases, references in the others (GKD, arXiv 2306.13649, Alg. 1).

    Args:
        student_fraction: lambda in [0, 1]; 1 is purely on-policy, 0 off-policy.
    """

    def __init__(self, student_fraction: float = 1.0) -> None:
        check_range(0 <= student_fraction <= 1, "student_fraction", "in [0, 1]", student_fraction)
        self.student_fraction = student_fraction

    @property
    def is_on_policy(self) -> bool:
        """Whether no phase consists of references."""
        return self.student_fraction == 1

    def text(self, request: TextRequest) -> RolloutBatch:
        """Return the student's responses or the references."""
        write = request.student if request.draw() < self.student_fraction else request.reference
        return write(request.prompts)


class MixedText(TextSource):
    """Several sources, one of which is drawn for each phase.

    Args:
        sources: at least one by name.
        weights: one per name; not negative, and not all 0. They need not sum to 1.

    Raises:
        ValueError: names differ, or weights out of range.
    """

    def __init__(self, sources: Mapping[str, TextSource], weights: Mapping[str, float]) -> None:
        if set(sources) != set(weights):
            raise ValueError(f"sources {sorted(sources)} and weights {sorted(weights)} must have the same names")
        if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
            raise ValueError(f"weights must be at least 0, and not all 0; got {dict(weights)}")
        self.sources = dict(sources)
        total = sum(weights.values())
        self._bounds = np.cumsum([weights[name] / total for name in self.sources])

    def text(self, request: TextRequest) -> RolloutBatch:
        """Return the text of the source that is drawn."""
        generator = np.random.default_rng((request.seed, request.phase, 1))  # not the number that a source draws
        place = min(int(np.searchsorted(self._bounds, generator.random(), side="right")), len(self.sources) - 1)
        return list(self.sources.values())[place].text(request)

    def on_validation(self, loss: float) -> None:
        """Pass it on to every source."""
        for source in self.sources.values():
            source.on_validation(loss)

    def metrics(self) -> dict[str, float]:
        """Return the values of every source, with its name in front."""
        return {f"{n}_{key}": value for n, source in self.sources.items() for key, value in source.metrics().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every source."""
        return {name: source.state_dict() for name, source in self.sources.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore every source."""
        for name, source in self.sources.items():
            source.load_state_dict(state[name])
