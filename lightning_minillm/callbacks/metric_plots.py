"""A plot of the main metrics of all validations so far."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lightning_minillm.figures import MAIN_METRICS, new_figure, save_figure
from lightning_minillm.types import ImageLogger


class MetricPlots(Callback):
    """Plot metrics over optimiser steps after each validation, to a file and to every logger that takes images.

    The values are kept in checkpoints, so that the curves of a resumed run are complete.

    Args:
        file: the PNG file, replaced after each validation.
        metrics: names of metrics, one panel each; metrics that the run does not log are left out.

    Raises:
        ValueError: ``metrics`` is empty.
    """

    def __init__(self, file: str, metrics: Sequence[str] = MAIN_METRICS) -> None:
        if not metrics:
            raise ValueError("metrics must name at least one metric, e.g. ['val/rougeL']")
        self.file = Path(file)
        self.metrics = tuple(metrics)
        self.curves: dict[str, dict[int, float]] = {}
        """For each metric, its value at each optimiser step with a validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the values of the validation and plot."""
        if trainer.sanity_checking:
            return
        for metric in self.metrics:
            if metric in trainer.callback_metrics:
                value = float(trainer.callback_metrics[metric])
                self.curves.setdefault(metric, {})[trainer.global_step] = value
        if self.curves and trainer.is_global_zero:
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        figure, panels = new_figure(len(self.curves))
        for axis, (metric, values) in zip(panels, self.curves.items(), strict=True):
            axis.plot(*zip(*sorted(values.items()), strict=True), marker=".")
            axis.set(title=metric, xlabel="optimiser steps")
            axis.grid(alpha=0.3)
        save_figure(figure, self.file)
        for logger in trainer.loggers:
            if isinstance(logger, ImageLogger):
                logger.log_image(key="plots/validation", images=[str(self.file)], step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the curves."""
        return {"curves": deepcopy(self.curves)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the curves."""
        self.curves = deepcopy(state_dict["curves"])
