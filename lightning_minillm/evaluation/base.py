"""What an evaluation is: items in batches, a record of each, and findings made from all records.

The records are what is kept while an evaluation runs, one JSON line an item, so that one that was stopped goes on from
them; everything that is reported is computed from them, on one rank as on many.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lightning_minillm.models import ModelPair

Record = dict[str, Any]
"""What is known of one item: plain JSON values, with its number under ``"item"``."""


@dataclass(frozen=True)
class Measure:
    """How a value is shown."""

    title: str
    """Head of its column."""
    decimals: int = 2
    higher_is_better: bool | None = None
    """``None``: neither."""


@dataclass(frozen=True)
class Curve:
    """A line of a picture."""

    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Picture:
    """Axes on which every model has a curve; evaluations name their pictures, models fill them."""

    title: str
    x_label: str
    y_label: str
    kind: Literal["line", "bars", "reliability"] = "line"
    """``reliability``: curves with the diagonal of perfect calibration."""
    x_ticks: Sequence[str] | None = None
    """Names of x = 0, 1, ...; ``None`` for numbers."""


@dataclass(frozen=True)
class Findings:
    """What an evaluation found out about one model."""

    values: Mapping[str, Sequence[float]]
    """By metric, one value a repetition (one where nothing is repeated)."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """By the name of a picture."""


class Evaluation(ABC):
    """One thing that is measured of a model.

    The order of calls: :meth:`prepare` (before any model is loaded), then, as often as there are models,
    :meth:`batches`, :meth:`step` for the batches that have no records yet, dealt over ranks, and :meth:`findings` of
    all records on the first rank.
    """

    name: ClassVar[str]
    """Of the evaluation in ``evaluation=[...]``, in files and in reports."""
    needs_teacher: ClassVar[bool] = False
    slow_findings: ClassVar[bool] = False
    """Whether :meth:`findings` may take longer than the ranks of a process group wait for each other (10 minutes)."""
    measures: Mapping[str, Measure]
    """How each value of the findings is shown, in the order of columns."""
    pictures: Mapping[str, Picture]
    """The axes of each curve of the findings."""

    @abstractmethod
    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the data and tokenise it.

        Raises:
            ValueError: data that is missing, empty or lacks a field, with what to do.
        """

    @abstractmethod
    def batches(self) -> list[list[int]]:
        """Return the numbers of all items, in batches; the same whenever it is called and on every rank."""

    @abstractmethod
    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Measure one batch; no gradient, models in eval mode, ``pair.teacher`` is there if it is needed.

        Ranks that share sharded models step together: a step makes the same number of forward passes whatever the
        items (the sampler sees to that by itself).

        Args:
            pair: student, teacher and tokenizer.
            items: numbers of one of :meth:`batches`.

        Returns:
            A record an item, in their order, each with its ``"item"``.
        """

    @abstractmethod
    def findings(self, records: Sequence[Record]) -> Findings:
        """Compute everything from the records of all items, which come sorted by item, on the first rank alone.

        Metrics of torchmetrics are to be made here: those made before would wait for the other ranks.
        """

    def texts(self, records: Sequence[Record]) -> Mapping[str, list[Record]]:
        """Return what is to be read of the records, by the name of a file; nothing unless an evaluation says so.

        Rows with ``index``, ``task``, ``prompt``, ``references`` and ``response`` are also shown side by side.
        """
        return {}

    def identity(self) -> Mapping[str, Any]:
        """Return what decides the records, so that those of another set-up are not gone on with; plain JSON."""
        return {"name": self.name}
