"""How a run is going, as a picture: the main metrics of all validations so far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

from lightning_minillm.figures import new_figure, save_figure

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

MAIN_METRICS = ("val/rougeL", "val/reverse_kl", "val/loss", "val/response_length")


class MetricPlots(Callback):
    """Draw metrics over optimiser steps after each validation, to a file and to every logger that takes images.

    What was drawn is kept in checkpoints, so that the curves of a resumed run are whole.

    Args:
        file: the PNG file, replaced each time.
        metrics: what is drawn, a panel each; those that a run does not log are left out.

    Raises:
        ValueError: no metric.
    """

    def __init__(self, file: str, metrics: Sequence[str] = MAIN_METRICS) -> None:
        if not metrics:
            raise ValueError("metrics must name at least one, e.g. ['val/rougeL']")
        self.file = Path(file)
        self.metrics = tuple(metrics)
        self.curves: dict[str, dict[int, float]] = {}
        """By metric, the value after each optimiser step at which there was a validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the validation's values and draw."""
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
            log_image = getattr(logger, "log_image", None)
            if log_image is not None:
                log_image(key="plots/validation", images=[str(self.file)], step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the curves."""
        return {"curves": {metric: dict(values) for metric, values in self.curves.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.curves = {metric: dict(values) for metric, values in state_dict["curves"].items()}
