"""The contract of an evaluation: items in batches, one record per item, and findings computed from all records.

Records are what an evaluation keeps while it runs, one JSON line per item, so that an interrupted evaluation resumes
from them. Everything that is reported is computed from the records, so the number of ranks does not matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from lightning_minillm.models import ModelPair
from lightning_minillm.tokens import AddBos

T = TypeVar("T")
Record = dict[str, Any]
"""The measurements of one item: plain JSON values, with the item's number under ``"item"``."""


@dataclass(frozen=True)
class Measure:
    """How a value is shown."""

    title: str
    """Head of its column."""
    decimals: int = 2
    higher_is_better: bool | None = None
    """``None``: neither direction is better."""


@dataclass(frozen=True)
class Curve:
    """One line of a picture."""

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
    """The results of an evaluation for one model."""

    values: Mapping[str, Sequence[float]]
    """By metric, one value per repetition (one value if nothing is repeated)."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """By the name of a picture."""


def join_sets(found: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Return the values of all data sets by one key; if there are several, the key begins with the data set's name.

    Example:
        >>> join_sets({"dolly": {"loss": 1}}), join_sets({"dolly": {"loss": 1}, "vicuna": {"loss": 2}})
        ({'loss': 1}, {'dolly/loss': 1, 'vicuna/loss': 2})
    """
    return {
        f"{name}/{key}" if len(found) > 1 else key: value for name, own in found.items() for key, value in own.items()
    }


def pictures_of_sets(pictures: Mapping[str, Picture], data_sets: Sequence[str]) -> dict[str, Picture]:
    """Return the pictures of each data set, given those of one; among several, titles name theirs."""
    if len(data_sets) < 2:
        return dict(pictures)
    titled = {
        name: {key: replace(picture, title=f"{name}: {picture.title}") for key, picture in pictures.items()}
        for name in data_sets
    }
    return join_sets(titled)


class Evaluation(ABC):
    """One kind of measurement of a model.

    The order of calls: :meth:`prepare` once, before any model is loaded; then for each model :meth:`batches`,
    :meth:`step` for the batches without records, divided over ranks, and :meth:`findings` with all records on the
    first rank.
    """

    name: ClassVar[str]
    """Name of the evaluation in ``evaluation=[...]``, in files and in reports."""
    needs_teacher: ClassVar[bool] = False
    add_bos: AddBos = "auto"
    """What prompts begin with, as for ``DistillationDataModule``; set before :meth:`prepare`."""
    slow_findings: ClassVar[bool] = False
    """Whether :meth:`findings` may take longer than the timeout of a process group (10 minutes)."""
    measures: Mapping[str, Measure]
    """How each value of the findings is shown, in the order of columns."""
    pictures: Mapping[str, Picture] = {}
    """The axes of each curve of the findings."""
    data_sets: Sequence[str] = ()
    """The values of ``"data_set"`` in records, for :meth:`summarise`."""

    @abstractmethod
    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the data and tokenise it.

        Raises:
            ValueError: data is missing, is empty or lacks a field; the message says what to do.
        """

    @abstractmethod
    def batches(self) -> list[list[int]]:
        """Return the numbers of all items, in batches: the same batches in every call and on every rank."""

    @abstractmethod
    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Measure one batch, without gradients and with the models in eval mode.

        Ranks that share sharded models step together: a step makes the same number of forward passes whatever the
        items are (the sampler takes care of its own passes).

        Args:
            pair: student, teacher (if there is one; always if ``needs_teacher``) and tokenizer.
            items: one of :meth:`batches`.

        Returns:
            One record per item, in the order of the items, each with its ``"item"``.
        """

    def findings(self, records: Sequence[Record]) -> Findings:
        """Compute everything that is reported from the records of all items: by default, the summary of each data set.

        This runs on the first rank alone, so nothing here may wait for other ranks: use functions, or torchmetrics
        classes with ``sync_on_compute=False``.

        Args:
            records: of all items, sorted by item.
        """
        found = {
            name: self.summarise(name, [record for record in records if record["data_set"] == name])
            for name in self.data_sets
        }
        values = join_sets({name: one.values for name, one in found.items()})
        curves = join_sets({name: one.curves for name, one in found.items()})
        return Findings({key: values[key] for key in self.measures if key in values}, curves)

    def summarise(self, name: str, records: Sequence[Record]) -> Findings:
        """Compute the findings of one data set, with the keys that they have if there is no other data set.

        Args:
            name: of the data set.
            records: of its items, sorted by item.
        """
        raise NotImplementedError(f"{type(self).__name__} must define findings, or summarise and data_sets")

    def texts(self, records: Sequence[Record]) -> Mapping[str, list[Record]]:
        """Return rows that are written for readers, by the name of a file; none by default.

        Rows with ``index``, ``task``, ``prompt``, ``references`` and ``response`` are also shown side by side.
        """
        return {}

    def identity(self) -> Mapping[str, Any]:
        """Return the settings that determine the records, as plain JSON; a resumed run must have the same."""
        return {"name": self.name}
