"""The results of several evaluations of several models: numbers, curves, and how to show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_minillm.evaluation import Curve, Evaluation, Findings, Measure, Picture
from lightning_minillm.reports.summary import summarise
from lightning_minillm.reports.tables import Column, Summary

PLAIN = "responses"
"""The evaluation whose metrics have no prefix."""


@dataclass
class Results:
    """Collects the findings of evaluations, one evaluation of one model at a time."""

    measures: dict[str, Measure] = field(default_factory=dict)
    """How each metric is shown, in the order of columns."""
    pictures: dict[str, Picture] = field(default_factory=dict)
    models: dict[str, Summary] = field(default_factory=dict)
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    """By picture, then by model."""

    def add(self, model: str, evaluation: Evaluation, findings: Findings) -> None:
        """Add the findings of one evaluation of one model."""
        prefix = "" if evaluation.name == PLAIN else f"{evaluation.name}/"
        self.measures |= {prefix + name: measure for name, measure in evaluation.measures.items()}
        self.pictures |= {prefix + name: picture for name, picture in evaluation.pictures.items()}
        summary = self.models.setdefault(model, {})
        for name, values in findings.values.items():
            summary[prefix + name] = summarise([float(value) for value in values])
        for name, curve in findings.curves.items():
            self.curves.setdefault(prefix + name, {})[model] = curve

    @property
    def groups(self) -> dict[str, list[Column]]:
        """The columns of each table, by its title: an evaluation, or a data set of the responses."""
        groups: dict[str, list[Column]] = {}
        for key, measure in self.measures.items():
            if any(key in summary for summary in self.models.values()):
                groups.setdefault(group_of(key), []).append(Column.of(key, measure))
        return groups

    def to_json(self) -> dict[str, Any]:
        """Return everything except the numbers of the models, which have their own key in ``results.json``."""
        pictures = {
            key: {**asdict(self.pictures[key]), "curves": {model: asdict(curve) for model, curve in curves.items()}}
            for key, curves in self.curves.items()
        }
        return {"measures": {key: asdict(measure) for key, measure in self.measures.items()}, "pictures": pictures}


def group_of(key: str) -> str:
    """Return the title of the table or section that a metric or picture belongs to.

    Example:
        >>> group_of("exposure_bias/excess_error"), group_of("rougeL")
        ('exposure_bias', 'responses')
    """
    return key.rpartition("/")[0] or PLAIN


def read_measures(stored: Mapping[str, Any]) -> dict[str, Measure]:
    """Return how the metrics in the content of ``results.json`` are shown; empty if it does not say."""
    return {key: Measure(**measure) for key, measure in stored.get("measures", {}).items()}


def from_json(stored: Sequence[Mapping[str, Any]], names: Mapping[str, str] | None = None) -> Results:
    """Combine the contents of several ``results.json`` files; models get new ``names``, those without keep theirs."""
    results = Results()
    for content in stored:
        results.measures |= read_measures(content)
        results.models |= {(names or {}).get(model, model): summary for model, summary in content["models"].items()}
        for key, picture in content.get("pictures", {}).items():
            shown = {name: value for name, value in picture.items() if name != "curves"}
            results.pictures[key] = Picture(**shown)
            for model, curve in picture["curves"].items():
                results.curves.setdefault(key, {})[(names or {}).get(model, model)] = Curve(**curve)
    return results
