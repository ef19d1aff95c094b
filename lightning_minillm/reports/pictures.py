"""Draws the pictures of evaluations, with the curves of all models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_minillm.evaluation import Curve, Picture
from lightning_minillm.figures import new_figure, save_figure
from lightning_minillm.reports import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_DOTS = 30


def draw_picture(picture: Picture, curves: Mapping[str, Curve], file: Path, models: Sequence[str] = ()) -> None:
    """Draw one picture to a PNG file; the order of all ``models`` decides their colours in every picture."""
    palette = plots.colours(dict.fromkeys([*models, *curves]))
    figure, (axis,) = new_figure(1)
    figure.set_size_inches(6.4, 4.4)
    {"line": _lines, "bars": _bars, "reliability": _reliability}[picture.kind](axis, picture, curves, palette)
    axis.set(title=picture.title, xlabel=picture.x_label, ylabel=picture.y_label)
    axis.grid(alpha=0.3, axis="y" if picture.kind == "bars" else "both")
    axis.legend()
    save_figure(figure, file)


def _lines(axis: Axes, picture: Picture, curves: Mapping[str, Curve], palette: Mapping[str, str]) -> None:
    for model, curve in curves.items():
        marker = "." if len(curve.x) <= _MOST_DOTS else None
        axis.plot(curve.x, curve.y, label=model, color=palette[model], marker=marker)
    _name_ticks(axis, picture)


def _bars(axis: Axes, picture: Picture, curves: Mapping[str, Curve], palette: Mapping[str, str]) -> None:
    """Draw a group of bars at each x, with one bar per model."""
    places = {x: place for place, x in enumerate(sorted({x for curve in curves.values() for x in curve.x}))}
    width = 0.8 / max(1, len(curves))
    for number, (model, curve) in enumerate(curves.items()):
        offset = (number - (len(curves) - 1) / 2) * width
        axis.bar([places[x] + offset for x in curve.x], curve.y, width, label=model, color=palette[model])
    names = [picture.x_ticks[int(x)] if picture.x_ticks else f"{x:g}" for x in places]
    axis.set_xticks(list(places.values()), names)


def _reliability(axis: Axes, picture: Picture, curves: Mapping[str, Curve], palette: Mapping[str, str]) -> None:
    axis.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfect calibration")
    for model, curve in curves.items():
        axis.plot(curve.x, curve.y, label=model, color=palette[model], marker="o", markersize=4)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    _name_ticks(axis, picture)


def _name_ticks(axis: Axes, picture: Picture) -> None:
    if picture.x_ticks is not None:
        axis.set_xticks(range(len(picture.x_ticks)), picture.x_ticks)
