"""Tables and files of results: means and deviations, side-by-side samples."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_minillm.files import read_json, read_json_lines, write_json, write_text

Summary = dict[str, dict[str, Any]]
"""``{metric: {"mean": float, "std": float, "values": [float]}}``"""

RESULTS_JSON = "results.json"
RESULTS_CSV = "results.csv"

Column = tuple[str, str, int, bool | None]
"""Key, title, decimals, whether more is better (``None``: neither)."""

COLUMNS: tuple[Column, ...] = (
    ("rougeL", "Rouge-L", 2, True),
    ("exact_match", "exact match %", 1, True),
    ("reverse_kl", "reverse KL / token", 4, False),
    ("response_length", "response tokens", 1, None),
    ("loss", "loss", 3, False),
)


def summarise(rows: Sequence[Mapping[str, float]]) -> Summary:
    """Return mean and sample deviation (0 for one value) of every metric over repetitions.

    Example:
        >>> summarise([{"rougeL": 1.0}, {"rougeL": 3.0}])["rougeL"]["mean"]
        2.0
    """
    names = sorted({name for row in rows for name in row})
    return {name: summarise_values([float(row[name]) for row in rows if name in row]) for name in names}


def summarise_values(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and sample deviation (0 for one value) of one metric, with the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "values": list(values)}


def write_results(folder: Path, results: Mapping[str, Summary], about: Mapping[str, Any]) -> None:
    """Write ``results.json`` (everything) and ``results.csv`` (a line a model).

    Args:
        folder: where to.
        results: by model.
        about: what else belongs into the JSON: seeds, split, ...
    """
    write_json(folder / RESULTS_JSON, {**about, "models": results})
    names = sorted({name for summary in results.values() for name in summary})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", *(f"{name}_{part}" for name in names for part in ("mean", "std"))])
    for model, summary in results.items():
        cells = [summary[name][part] if name in summary else "" for name in names for part in ("mean", "std")]
        writer.writerow([model, *cells])
    write_text(folder / RESULTS_CSV, text.getvalue())


def over_training_seeds(folders: Iterable[Path], settings: str) -> dict[str, Summary]:
    """Gather the results of runs that differ in nothing but the training seed.

    Args:
        folders: run directories; those without ``results.json``, or of other settings, are passed over.
        settings: what ``results.json`` has to hold under this name.

    Returns:
        By model, each metric's mean and deviation over training seeds; a seed's value is its mean over sampling seeds.
    """
    found = [read_json(folder / RESULTS_JSON) for folder in folders]
    models = [results["models"] for results in found if results and results.get("settings") == settings]
    means = [
        {name: {metric: value["mean"] for metric, value in summary.items()} for name, summary in run.items()}
        for run in models
    ]
    return {name: summarise([run[name] for run in means]) for name in (means[0] if means else {})}


def print_table(
    results: Mapping[str, Summary],
    title: str,
    console: Console | None = None,
    not_ranked: Sequence[str] = (),
    columns: Sequence[Column] = COLUMNS,
) -> None:
    """Print one table, the best of each column in bold.

    Args:
        results: by model.
        title: above the table.
        console: where to print; standard output by default.
        not_ranked: models that are shown but do not compete, such as the teacher.
        columns: what is shown of what was measured.
    """
    shown = measured_columns(results, columns)
    table = Table(title=title, caption="mean ± deviation")
    table.add_column("model")
    for _, name, _, more in shown:
        table.add_column(name + {True: " ↑", False: " ↓", None: ""}[more], justify="right")
    ranked = {model: summary for model, summary in results.items() if model not in not_ranked}
    best = {key: _best(ranked, key, more) for key, _, _, more in shown}
    for model, summary in results.items():
        cells = []
        for key, _, decimals, _ in shown:
            text = format_value(summary.get(key), decimals)
            cells.append(f"[bold]{text}[/bold]" if model == best[key] else text)
        table.add_row(model, *cells)
    (console or make_console()).print(table)


def make_console() -> Console:
    """Return a console on standard output, wide enough for the tables where that is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def format_value(value: Mapping[str, Any] | None, decimals: int) -> str:
    """Return ``mean ± deviation`` (the mean alone where nothing varies), or a dash where nothing was measured."""
    if value is None:
        return "-"
    deviation = f" ± {value['std']:.{decimals}f}" if len(set(value["values"])) > 1 else ""
    return f"{value['mean']:.{decimals}f}{deviation}"


def measured_columns(results: Mapping[str, Summary], columns: Sequence[Column]) -> list[Column]:
    """Return the columns for which any model has a value."""
    return [column for column in columns if any(column[0] in summary for summary in results.values())]


def markdown_table(results: Mapping[str, Summary], columns: Sequence[Column] = COLUMNS) -> str:
    """Return the table of :func:`print_table` in Markdown."""
    shown = measured_columns(results, columns)
    lines = ["| model | " + " | ".join(name for _, name, _, _ in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for model, summary in results.items():
        cells = [format_value(summary.get(key), decimals) for key, _, decimals, _ in shown]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _best(results: Mapping[str, Summary], key: str, more: bool | None) -> str | None:
    measured = {model: summary[key]["mean"] for model, summary in results.items() if key in summary}
    if more is None or len(measured) < 2:
        return None
    return (max if more else min)(measured, key=lambda model: measured[model])


def side_by_side(responses: Mapping[str, Path], limit: int = 20) -> str:
    """Return Markdown that shows what each model said to the same prompts.

    Args:
        responses: JSONL files of samples by model, from one seed.
        limit: prompts to show, spread evenly over the tasks.
    """
    by_model = {model: {row["index"]: row for row in read_json_lines(file)} for model, file in responses.items()}
    common = sorted(set.intersection(*(set(rows) for rows in by_model.values()))) if by_model else []
    first = next(iter(by_model.values()), {})
    sections = ["# Responses side by side\n"]
    for index in _spread(common, {index: first[index]["task"] for index in common}, limit):
        row = first[index]
        references = " / ".join(row["references"])
        task = f" ({row['task']})" if row["task"] else ""
        lines = [f"## {index}{task}\n", _quote(row["prompt"]), "", "| model | response |", "|---|---|"]
        lines.append(f"| *references* | {_cell(references)} |")
        lines += [f"| {model} | {_cell(rows[index]['response'])} |" for model, rows in by_model.items()]
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def _spread(indices: Sequence[int], tasks: Mapping[int, str], limit: int) -> list[int]:
    """Take rows from the tasks in turn."""
    queues: dict[str, list[int]] = {}
    for index in indices:
        queues.setdefault(tasks[index], []).append(index)
    chosen: list[int] = []
    while len(chosen) < limit and any(queues.values()):
        chosen += [queue.pop(0) for queue in queues.values() if queue][: limit - len(chosen)]
    return chosen


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
