"""The report of an evaluation: tables, pictures and samples as Markdown and PNG, and the same in the loggers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger

from lightning_minillm.files import write_text
from lightning_minillm.reports.pictures import draw_picture
from lightning_minillm.reports.results import Results, group_of
from lightning_minillm.reports.summary import side_by_side, summary_table
from lightning_minillm.reports.tables import print_table
from lightning_minillm.types import ImageLogger, TableLogger

REPORT_FILE = "report.md"
PICTURES_FOLDER = "pictures"
NOTE = "mean ± standard deviation of repeated measurements"
_SAMPLES = 8


def draw_pictures(results: Results, folder: Path) -> dict[str, Path]:
    """Draw every picture that has at least one curve, and return the PNG files in ``folder/pictures/`` by name."""
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
    not_ranked: Sequence[str] = (),
) -> None:
    """Write ``report.md``: the settings, a table and the pictures of each evaluation, samples side by side.

    Args:
        folder: the folder of the run.
        title: of the report.
        facts: the settings by their names.
        results: of all models.
        pictures: PNG files in the folder, by the name of the picture.
        samples: by model, a JSON Lines file of responses; of one data set and seed.
        not_ranked: models that cannot have the best value, such as the teacher.
    """
    parts = [f"# {title}\n", "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n"]
    for group in dict.fromkeys([*results.groups, *(group_of(key) for key in pictures)]):
        parts.append(f"## {group}\n")
        if group in results.groups:
            table = summary_table(results.models, results.groups[group], notes=[NOTE], not_ranked=not_ranked)
            parts.append(table.to_markdown())
        for key, file in pictures.items():
            if group_of(key) == group:
                parts.append(f"![{results.pictures[key].title}]({file.relative_to(folder)})\n")
    if samples:
        parts.append(side_by_side(samples, _SAMPLES).replace("\n## ", "\n### ").replace("# ", "## ", 1))
    write_text(folder / REPORT_FILE, "\n".join(parts))


def print_tables(results: Results, title: str) -> None:
    """Print one table per evaluation to standard output, under ``title`` and the name of the evaluation."""
    for group, columns in results.groups.items():
        print_table(summary_table(results.models, columns, f"{title}: {group}", [NOTE]))


def log_report(loggers: Iterable[Logger], results: Results, pictures: Mapping[str, Path]) -> None:
    """Give the numbers to every logger, and tables and pictures to those that take them."""
    means = {
        f"{model}/{key}": value["mean"] for model, summary in results.models.items() for key, value in summary.items()
    }
    for logger in loggers:
        logger.log_metrics(means)
        if isinstance(logger, TableLogger):
            for group, columns in results.groups.items():
                rows = [
                    [model, *(summary[column.key]["mean"] if column.key in summary else None for column in columns)]
                    for model, summary in results.models.items()
                ]
                heads = ["model", *(column.title for column in columns)]
                logger.log_table(key=f"evaluation/{group}", columns=heads, data=rows)
        if isinstance(logger, ImageLogger):
            for key, file in pictures.items():
                logger.log_image(key=f"pictures/{key}", images=[str(file)])
        logger.save()
