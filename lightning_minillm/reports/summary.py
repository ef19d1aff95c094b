"""Means and deviations over seeds, the files that hold them, and responses side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lightning_minillm.evaluation.responses import MEASURES
from lightning_minillm.files import iterate_json_lines, write_json, write_text
from lightning_minillm.reports.tables import Column, Row, Summary, Table, Value, markdown_cell

RESULTS_JSON = "results.json"
RESULTS_CSV = "results.csv"

_USUAL = ("rougeL", "exact_match", "reverse_kl", "response_length", "loss")
USUAL_COLUMNS = tuple(Column.of(key, MEASURES[key]) for key in _USUAL)
"""The columns of a table of which nothing else is asked."""


def summarise(values: Sequence[float]) -> Value:
    """Return the mean and the sample deviation (0 for one value) of one metric, with the values.

    Example:
        >>> summarise([1.0, 3.0])["mean"]
        2.0
    """
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "values": list(values)}


def over_seeds(runs: Sequence[Mapping[str, Sequence[float]]], within_one_run: bool = True) -> Summary:
    """Summarise each metric over training seeds, of which each counts with its mean over sampling seeds.

    Args:
        runs: one per training seed: by metric, one value per sampling seed.
        within_one_run: summarise a metric that only one run measured over that run's sampling seeds.

    Example:
        >>> over_seeds([{"rougeL": [1.0, 3.0]}, {"rougeL": [4.0]}])["rougeL"]["values"]
        [2.0, 4.0]
    """
    summary: Summary = {}
    for metric in dict.fromkeys(metric for run in runs for metric in run):
        measured = [run[metric] for run in runs if metric in run]
        alone = within_one_run and len(measured) == 1
        summary[metric] = summarise(measured[0] if alone else [statistics.fmean(values) for values in measured])
    return summary


def summary_table(
    models: Mapping[str, Summary],
    columns: Sequence[Column] = USUAL_COLUMNS,
    title: str = "",
    notes: Sequence[str] = (),
    not_ranked: Sequence[str] = (),
) -> Table:
    """Return the table of several models, with the columns for which at least one of them has a value.

    Models that are ``not_ranked``, such as the teacher, cannot have the best value.
    """
    measured = [column for column in columns if any(column.key in summary for summary in models.values())]
    rows = [Row(name, summary, ranked=name not in not_ranked) for name, summary in models.items()]
    return Table(measured, rows, title, notes)


def write_results(folder: Path, models: Mapping[str, Summary], about: Mapping[str, Any]) -> None:
    """Write ``results.json`` (with ``about``: seeds, split, ...) and ``results.csv`` (one line per model)."""
    write_json(folder / RESULTS_JSON, {**about, "models": models})
    names = sorted({name for summary in models.values() for name in summary})
    write_text(folder / RESULTS_CSV, summary_table(models, [Column(name, name) for name in names]).to_csv())


def side_by_side(responses: Mapping[str, Path], limit: int = 20) -> str:
    """Return Markdown that shows the models' responses to the same prompts.

    Args:
        responses: by model, a JSON Lines file of responses; all of one sampling seed.
        limit: number of prompts to show, spread evenly over the tasks.
    """
    by_model = {model: {row["index"]: row for row in iterate_json_lines(file)} for model, file in responses.items()}
    common = sorted(set.intersection(*(set(rows) for rows in by_model.values()))) if by_model else []
    first = next(iter(by_model.values()), {})
    sections = ["# Responses side by side\n"]
    for index in _spread(common, {index: first[index]["task"] for index in common}, limit):
        row = first[index]
        references = " / ".join(row["references"])
        task = f" ({row['task']})" if row["task"] else ""
        prompt = "\n".join(f"> {line}" for line in row["prompt"].splitlines())
        lines = [f"## {index}{task}\n", prompt, "", "| model | response |", "|---|---|"]
        lines.append(f"| *references* | {markdown_cell(references)} |")
        lines += [f"| {model} | {markdown_cell(rows[index]['response'])} |" for model, rows in by_model.items()]
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def _spread(indices: Sequence[int], tasks: Mapping[int, str], limit: int) -> list[int]:
    """Take indices from the tasks in turn."""
    queues: dict[str, list[int]] = {}
    for index in indices:
        queues.setdefault(tasks[index], []).append(index)
    return [index for turn in zip_longest(*queues.values()) for index in turn if index is not None][:limit]
