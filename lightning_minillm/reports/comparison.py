"""The rows of a comparison: what belongs to one model, what it measured, and how it differs from a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from lightning_minillm.functional import PairedDifference
from lightning_minillm.reports import summary as report
from lightning_minillm.reports.read_runs import Entry
from lightning_minillm.reports.significance import compare_with_baseline
from lightning_minillm.reports.tables import Column

TEACHER = "teacher"
"""The section that teachers stand in."""


@dataclass
class Model:
    """A row of the comparison."""

    name: str
    entries: list[Entry]
    """One a training seed."""
    section: str
    summary: report.Summary = field(default_factory=dict)
    tests: dict[str, tuple[PairedDifference, int]] = field(default_factory=dict)
    """By column of Rouge-L: the difference to the baseline, and over how many prompts."""


def gather(entries: Sequence[Entry], teacher: str | None = None) -> list[Model]:
    """Make a row of the entries that differ in nothing but the training seed; teachers come first.

    Args:
        entries: of all runs.
        teacher: name of a row that is a teacher, too.

    Raises:
        ValueError: no row has the teacher's name.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        group = groups.setdefault((entry.model, entry.group), [])
        if entry.metrics is None or entry.metrics not in [other.metrics for other in group]:
            group.append(entry)  # else a teacher that training seeds share, and that was measured once
    names = _names(groups)
    if teacher is not None and teacher not in names.values():
        raise ValueError(f"teacher_name is {teacher!r}, which is no row; rows are {', '.join(names.values())}")
    models = []
    for key, group in groups.items():
        is_teacher = group[0].is_teacher or names[key] == teacher
        split = next((entry.split for entry in group if entry.values), group[0].split)
        models.append(Model(names[key], group, TEACHER if is_teacher else split, _summary(group)))
    return sorted(models, key=lambda model: model.section != TEACHER)


def _names(groups: Mapping[tuple[str, str], Sequence[Entry]]) -> dict[tuple[str, str], str]:
    """Name rows by their model, with as much of the folder as it takes to tell them apart."""
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


def _summary(entries: Sequence[Entry]) -> report.Summary:
    """Summarise over training seeds, each by its mean over sampling seeds; over sampling seeds where there is one."""
    metrics = dict.fromkeys(metric for entry in entries for metric in entry.values)
    summary: report.Summary = {}
    for metric in metrics:
        measured = [entry.values[metric] for entry in entries if metric in entry.values]
        values = measured[0] if len(measured) == 1 else [fmean(value) for value in measured]
        summary |= report.summarise([{metric: value} for value in values])
    return summary


def choose_columns(models: Sequence[Model], chosen: Sequence[str] | None) -> list[Column]:
    """Return the columns to show.

    Raises:
        ValueError: a metric that no run has.
    """
    measured = list(dict.fromkeys(metric for model in models for metric in model.summary))
    usual = [key for key, *_ in report.COLUMNS]
    rouge = [key for key in measured if key.endswith("/rougeL")]
    keys = list(chosen) if chosen else [*rouge, *(key for key in usual if key in measured)] or measured
    unknown = [key for key in keys if key not in measured]
    if unknown:
        raise ValueError(f"no run has the metric(s) {', '.join(unknown)}; measured are {', '.join(sorted(measured))}")
    return [column_of(models, key) for key in keys]


def column_of(models: Sequence[Model], key: str) -> Column:
    """Return how a metric is shown: as its run says, or as the reports do."""
    for entry in (entry for model in models for entry in model.entries):
        if key in entry.measures:
            measure = entry.measures[key]
            group = key.rpartition("/")[0]
            title = f"{group}: {measure['title']}" if group else measure["title"]
            return Column(key, title, measure["decimals"], measure["higher_is_better"])
    return next((Column(*column) for column in report.COLUMNS if column[0] == key), Column(key, key, 3))


def choose_baseline(models: Sequence[Model], chosen: str | None) -> Model | None:
    """Return the chosen row, or else SFT, or else the first that is no teacher; ``None`` when there is none.

    Raises:
        ValueError: no row has the chosen name.
    """
    students = [model for model in models if model.section != TEACHER]
    if chosen is None:
        return next((model for model in students if model.name == "SFT"), students[0] if students else None)
    found = next((model for model in models if model.name == chosen), None)
    if found is None:
        raise ValueError(
            f"baseline names {chosen!r}, which is no row; rows are {', '.join(model.name for model in models)}"
        )
    return found


def add_tests(models: Sequence[Model], baseline: Model | None, num_resamples: int) -> None:
    """Test every row's Rouge-L against the baseline's, on each data set to which both have responses."""
    if baseline is None:
        return
    data_sets = dict.fromkeys(name for entry in baseline.entries for name, _ in entry.responses)
    for model in models:
        if model is not baseline:
            for data_set in data_sets:
                found = compare_with_baseline(model.entries, baseline.entries, data_set, num_resamples)
                if found is not None:
                    model.tests[f"{data_set}/rougeL" if data_set else "rougeL"] = found
