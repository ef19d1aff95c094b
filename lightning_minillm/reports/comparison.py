"""The rows of a comparison: the runs of one model, their measurements, and the difference to a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_minillm.functional import PairedDifference
from lightning_minillm.reports.read_runs import Entry
from lightning_minillm.reports.significance import compare_with_baseline
from lightning_minillm.reports.summary import USUAL_COLUMNS, over_seeds
from lightning_minillm.reports.tables import Column, Summary

TEACHER = "teacher"
"""The section of the teachers."""


@dataclass
class Model:
    """A row of the comparison."""

    name: str
    entries: list[Entry]
    """One per training seed."""
    section: str
    summary: Summary = field(default_factory=dict)
    tests: dict[str, tuple[PairedDifference, int]] = field(default_factory=dict)
    """By column of Rouge-L: the difference to the baseline, and the number of prompts."""


def gather(entries: Sequence[Entry], teacher: str | None = None, within_one_run: bool = True) -> list[Model]:
    """Make one row of the entries that differ only in the training seed; teachers come first.

    Args:
        entries: of all runs.
        teacher: name of a row to treat as a teacher, besides those that the runs call a teacher.
        within_one_run: as in :func:`~lightning_minillm.reports.summary.over_seeds`.

    Raises:
        ValueError: no row has the teacher's name.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        group = groups.setdefault((entry.model, entry.group), [])
        if entry.metrics is None or entry.metrics not in [other.metrics for other in group]:
            group.append(entry)  # otherwise a teacher that several training seeds share, measured once
    names = _names(groups)
    if teacher is not None and teacher not in names.values():
        raise ValueError(f"the teacher {teacher!r} is not a row; the rows are {', '.join(names.values())}")
    models = []
    for key, group in groups.items():
        is_teacher = group[0].is_teacher or names[key] == teacher
        split = next((entry.split for entry in group if entry.values), group[0].split)
        section = TEACHER if is_teacher else split
        models.append(Model(names[key], group, section, over_seeds([entry.values for entry in group], within_one_run)))
    return sorted(models, key=lambda model: model.section != TEACHER)


def _names(groups: Mapping[tuple[str, str], Sequence[Entry]]) -> dict[tuple[str, str], str]:
    """Name rows by their model, with the part of the folder that tells rows of the same model apart."""
    names = {}
    for key, group in groups.items():
        others = [other[0].folder for name, other in groups.items() if name[0] == key[0] and name != key]
        names[key] = f"{key[0]} ({_tail(group[0].folder, others)})" if others else key[0]
    return names


def _tail(folder: Path, others: Sequence[Path]) -> str:
    for length in range(1, len(folder.parts)):
        tail = folder.parts[-length:]
        if all(other.parts[-length:] != tail for other in others):
            return "/".join(tail)
    return str(folder)


def choose_columns(models: Sequence[Model], chosen: Sequence[str] | None) -> list[Column]:
    """Return the columns to show.

    Raises:
        ValueError: no run has a chosen metric.
    """
    measured = list(dict.fromkeys(metric for model in models for metric in model.summary))
    usual = [column.key for column in USUAL_COLUMNS]
    rouge = [key for key in measured if key.endswith("/rougeL")]
    keys = list(chosen) if chosen else [*rouge, *(key for key in usual if key in measured)] or measured
    unknown = [key for key in keys if key not in measured]
    if unknown:
        raise ValueError(f"no run has the metric(s) {', '.join(unknown)}; the runs have {', '.join(sorted(measured))}")
    return [column_of(models, key) for key in keys]


def column_of(models: Sequence[Model], key: str) -> Column:
    """Return the column of a metric: as its run describes it, or else a usual one, or else one named by the key."""
    for entry in (entry for model in models for entry in model.entries):
        if key in entry.measures:
            return Column.of(key, entry.measures[key], group=key.rpartition("/")[0])
    return next((column for column in USUAL_COLUMNS if column.key == key), Column(key, key, 3))


def choose_baseline(models: Sequence[Model], chosen: str | None) -> Model | None:
    """Return the chosen row; by default SFT, or the first row that is not a teacher, or ``None``.

    Raises:
        ValueError: no row has the chosen name.
    """
    students = [model for model in models if model.section != TEACHER]
    if chosen is None:
        return next((model for model in students if model.name == "SFT"), students[0] if students else None)
    found = next((model for model in models if model.name == chosen), None)
    if found is None:
        names = ", ".join(model.name for model in models)
        raise ValueError(f"the baseline {chosen!r} is not a row; the rows are {names}")
    return found


def add_tests(models: Sequence[Model], baseline: Model | None, num_resamples: int) -> None:
    """Test every row's Rouge-L against the baseline's, on each data set for which both have responses."""
    if baseline is None:
        return
    data_sets = dict.fromkeys(name for entry in baseline.entries for name, _ in entry.responses)
    for model in models:
        if model is not baseline:
            for data_set in data_sets:
                found = compare_with_baseline(model.entries, baseline.entries, data_set, num_resamples)
                if found is not None:
                    model.tests[f"{data_set}/rougeL" if data_set else "rougeL"] = found
