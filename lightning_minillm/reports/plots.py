"""Plots of results: learning curves, and bars with deviations."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning_minillm.figures import new_figure, save_figure
from lightning_minillm.reports.summary import USUAL_COLUMNS
from lightning_minillm.reports.tables import Summary

Curve = list[tuple[int, float]]
"""(optimiser step, value)"""
STEPS = "optimiser steps"
STEPS_FROM_INITIAL = f"{STEPS} (initial SFT included)"
"""The label if some curves begin at the last step of the initial student."""


def read_curve(folder: Path, metric: str) -> Curve:
    """Read a metric's values from the CSV files of a run.

    Args:
        folder: the run directory. A resumed run has several files; where their steps overlap, the later file counts.
        metric: a column, such as ``val/rougeL``.

    Returns:
        Sorted by step; empty when the run did not log the metric.
    """
    values: dict[int, float] = {}
    files = sorted((folder / "metrics").glob("version_*/metrics.csv"), key=lambda file: int(file.parent.name[8:]))
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # the last line may be cut off
        values |= {int(row["step"]): float(row[metric]) for row in csv.DictReader(whole) if row.get(metric)}
    return sorted(values.items())


def colours(models: Iterable[str]) -> dict[str, str]:
    """Give every model its own colour, the same in every panel and every picture.

    Example:
        >>> colours(["teacher", "SFT"])
        {'teacher': 'C0', 'SFT': 'C1'}
    """
    return {model: f"C{place}" for place, model in enumerate(models)}


def plot_curves(
    curves: Mapping[str, Mapping[str, Curve]], file: Path, models: Sequence[str], x_label: str = STEPS
) -> None:
    """Draw learning curves, one panel per metric.

    Args:
        curves: ``{metric: {model: curve}}``; steps count from each student's first step.
        file: a PNG file.
        models: the models of the bars in their order, so that both pictures use the same colours.
        x_label: :data:`STEPS`, or :data:`STEPS_FROM_INITIAL`.
    """
    palette = colours(dict.fromkeys([*models, *(model for lines in curves.values() for model in lines)]))
    shown = {metric: lines for metric, lines in curves.items() if any(lines.values())}
    if not shown:
        return
    figure, panels = new_figure(len(shown))
    for axis, (metric, lines) in zip(panels, shown.items(), strict=True):
        for model, curve in lines.items():
            if curve:
                axis.plot(*zip(*curve, strict=True), label=model, color=palette[model], marker=".", markersize=4)
        axis.set(xlabel=x_label, title=metric)
        axis.grid(alpha=0.3)
    panels[0].legend()
    save_figure(figure, file)


def plot_bars(results: Mapping[str, Summary], file: Path) -> None:
    """Draw the mean of every usual metric as bars, with the deviation, to a PNG file."""
    shown = [column for column in USUAL_COLUMNS if any(column.key in summary for summary in results.values())]
    if not shown:
        return
    palette = colours(results)
    figure, panels = new_figure(len(shown))
    for axis, column in zip(panels, shown, strict=True):
        measured = {model: summary[column.key] for model, summary in results.items() if column.key in summary}
        places = range(len(measured))
        means = [value["mean"] for value in measured.values()]
        deviations = [value["std"] for value in measured.values()]
        bars = axis.bar(places, means, yerr=deviations, capsize=3, color=[palette[model] for model in measured])
        axis.bar_label(bars, fmt=f"%.{column.decimals}f", fontsize=7, padding=2)
        axis.set_xticks(list(places), list(measured), rotation=45, ha="right")
        axis.set_title(column.title)
        axis.margins(y=0.12)
    save_figure(figure, file)
