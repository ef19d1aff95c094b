"""The report of an evaluation: tables, pictures and samples as Markdown and PNG, and the same in the loggers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_minillm.files import write_text
from lightning_minillm.reports import summary as report
from lightning_minillm.reports.pictures import draw_picture
from lightning_minillm.reports.results import Results, group_of

REPORT_FILE = "report.md"
PICTURES_FOLDER = "pictures"
_SAMPLES = 8
_WIDEST = 6  # columns of a table on the screen


def draw_pictures(results: Results, folder: Path) -> dict[str, Path]:
    """Draw every picture of which there are curves.

    Args:
        results: of all models.
        folder: of the run; the pictures go to ``pictures/`` in it.

    Returns:
        The PNG files by the name of the picture.
    """
    files = {}
    for key, curves in results.curves.items():
        if any(len(curve.x) for curve in curves.values()):
            files[key] = folder / PICTURES_FOLDER / f"{key.replace('/', '_')}.png"
            draw_picture(results.pictures[key], curves, files[key], models=list(results.models))
    return files


def write_report(
    folder: Path,
    title: str,
    facts: Mapping[str, str],
    results: Results,
    pictures: Mapping[str, Path],
    samples: Mapping[str, Path],
) -> Path:
    """Write ``report.md``: what was run, a table and the pictures of each evaluation, samples side by side.

    Args:
        folder: of the run.
        title: of the report.
        facts: what was run, by its name.
        results: of all models.
        pictures: PNG files in the folder, by name.
        samples: by model, a JSONL file of responses; of one data set and seed.

    Returns:
        The file.
    """
    parts = [f"# {title}\n", "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n"]
    groups = dict.fromkeys([*results.groups, *(group_of(key) for key in pictures)])
    for group in groups:
        parts.append(f"## {group}\n")
        if group in results.groups:
            parts.append(report.markdown_table(results.models, results.groups[group]))
        for key, file in pictures.items():
            if group_of(key) == group:
                parts.append(f"![{results.pictures[key].title}]({file.relative_to(folder)})\n")
    if any(len(summary) for summary in results.models.values()):
        parts.append("Mean ± standard deviation, where a value was taken several times.\n")
    if samples:
        parts.append(report.side_by_side(samples, _SAMPLES).replace("\n## ", "\n### ").replace("# ", "## ", 1))
    write_text(folder / REPORT_FILE, "\n".join(parts))
    return folder / REPORT_FILE


def print_tables(results: Results, title: str, console: Console | None = None) -> None:
    """Print a table an evaluation, several where there are many columns."""
    for group, columns in results.groups.items():
        print_wide(results.models, columns, f"{title}: {group}", console)


def print_wide(
    models: Mapping[str, report.Summary],
    columns: Sequence[report.Column],
    title: str,
    console: Console | None = None,
    not_ranked: Sequence[str] = (),
) -> None:
    """Print a table as several, one below the other, that fit on a screen."""
    for start in range(0, len(columns), _WIDEST):
        shown = columns[start : start + _WIDEST]
        report.print_table(models, title, console, not_ranked=not_ranked, columns=shown)


def log_report(loggers: Iterable[Any], results: Results, pictures: Mapping[str, Path]) -> None:
    """Give numbers, tables and pictures to every logger that takes them."""
    means = {
        f"{model}/{key}": value["mean"] for model, summary in results.models.items() for key, value in summary.items()
    }
    for logger in loggers:
        logger.log_metrics(means)
        if hasattr(logger, "log_table"):
            for group, columns in results.groups.items():
                rows = [
                    [model, *(summary[key]["mean"] if key in summary else None for key, *_ in columns)]
                    for model, summary in results.models.items()
                ]
                heads = ["model", *(head for _, head, *_ in columns)]
                logger.log_table(key=f"evaluation/{group}", columns=heads, data=rows)
        if hasattr(logger, "log_image"):
            for key, file in pictures.items():
                logger.log_image(key=f"pictures/{key}", images=[str(file)])
        logger.save()
