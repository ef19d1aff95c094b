"""Figures for files, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAIN_METRICS = ("val/rougeL", "val/reverse_kl", "val/loss", "val/response_length")
"""The metrics whose curves are drawn unless others are named."""


def new_figure(panels: int) -> tuple[Figure, list[Axes]]:
    """Return a matplotlib figure with ``panels`` axes in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * panels, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG file; its folder is created."""
    import matplotlib as mpl

    file.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"font.size": 9}):
        figure.savefig(file, dpi=120)
