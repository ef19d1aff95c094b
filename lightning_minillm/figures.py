"""Figures that are drawn without a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def new_figure(panels: int) -> tuple[Any, list[Any]]:
    """Return a matplotlib figure with ``panels`` axes in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * panels, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def save_figure(figure: Any, file: Path) -> None:
    """Write a figure as a PNG file, whose folder is made."""
    import matplotlib as mpl

    file.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"font.size": 9}):
        figure.savefig(file, dpi=120)
