"""Progress as lines of text, for logs and other places that are no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lightning_minillm.callbacks.progress import RolloutProgressBar, listen
from lightning_minillm.evaluation.module import EvaluationProgressBar, label_of


class ProgressLines(ProgressBar):
    """Print a line every now and then: the step, the rollouts of a phase, the metrics of every validation.

    Args:
        interval: minimum seconds between two lines; validations and the last step always have one.
        clock: seconds, as :func:`time.monotonic` gives them.

    Raises:
        ValueError: ``interval`` is negative.
    """

    def __init__(self, interval: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        if interval < 0:
            raise ValueError(f"interval must be at least 0 seconds, got {interval}")
        self.interval = interval
        self._clock = clock
        self._started = self._last = clock()
        self._is_shown = True

    def enable(self) -> None:
        """Print."""
        self._is_shown = True

    def disable(self) -> None:
        """Print nothing, as on ranks other than the first."""
        self._is_shown = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock, and listen to the module's rollouts."""
        super().setup(trainer, pl_module, stage)
        if not trainer.is_global_zero:
            self.disable()
        self._started = self._last = self._clock()
        listen(pl_module, self._on_rollout)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        listen(pl_module, self._on_rollout, stop=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Print the step and the loss."""
        loss = trainer.callback_metrics.get("train/loss")
        shown = "" if loss is None else f", train/loss {float(loss):.4g}"
        is_last = trainer.global_step == trainer.max_steps
        self._print(f"step {trainer.global_step} of {trainer.max_steps}{shown}", is_due=is_last)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of a validation."""
        found = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if found and not trainer.sanity_checking:
            metrics = ", ".join(f"{name} {float(value):.4g}" for name, value in sorted(found.items()))
            self._print(f"step {trainer.global_step}: {metrics}", is_due=True)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Print the batch of an evaluation."""
        total = sum(int(number) for number in trainer.num_test_batches)
        is_last = batch_idx + 1 == total
        self._print(f"{label_of(pl_module)}: batch {batch_idx + 1} of {total}", is_due=is_last)

    def _on_rollout(self, done: int, total: int) -> None:
        self._print(f"rollouts: {done} of {total}")

    def _print(self, text: str, is_due: bool = False) -> None:
        now = self._clock()
        if self._is_shown and (is_due or now - self._last >= self.interval):
            self._last = now
            print(f"[{now - self._started:.0f} s] {text}", flush=True)


def training_progress(interval: float = 30.0) -> ProgressBar:
    """Return the display of a training run: bars in a terminal, else a line every ``interval`` seconds."""
    return RolloutProgressBar() if sys.stdout.isatty() else ProgressLines(interval)


def evaluation_progress(interval: float = 30.0) -> ProgressBar:
    """Return the display of an evaluation: a bar in a terminal, else a line every ``interval`` seconds."""
    return EvaluationProgressBar() if sys.stdout.isatty() else ProgressLines(interval)
