"""Progress on the screen, rollouts included, and in a file for other processes to read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar

from lightning_minillm.files import write_json
from lightning_minillm.rollout.collect import ProgressListener


@runtime_checkable
class CollectsRollouts(Protocol):
    """A module that tells listeners how many rollouts of the current phase are done."""

    rollout_listeners: list[ProgressListener]


def listen(module: LightningModule, listener: ProgressListener, *, stop: bool = False) -> None:
    """Add a listener to the module's, at most once, or remove it."""
    if isinstance(module, CollectsRollouts):
        others = [other for other in module.rollout_listeners if other != listener]
        module.rollout_listeners = others if stop else [*others, listener]


class RolloutProgressBar(RichProgressBar):
    """Lightning's rich progress bar with a line for the rollouts of the current phase.

    It takes the arguments of :class:`lightning.pytorch.callbacks.RichProgressBar`.
    """

    _rollout_bar_id: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start to listen to the module's rollouts."""
        super().setup(trainer, pl_module, stage)
        listen(pl_module, self._on_rollout)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        listen(pl_module, self._on_rollout, stop=True)
        super().teardown(trainer, pl_module, stage)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the epoch."""
        super().on_train_epoch_start(trainer, pl_module)
        self._describe_epoch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the batch; a run resumed inside an epoch gets its bar only here."""
        first = self.train_progress_bar_id is None
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if first:
            self._describe_epoch(trainer)

    def _describe_epoch(self, trainer: Trainer) -> None:
        """Leave out the number of epochs if only steps are limited; the base class would show -2."""
        if trainer.max_epochs in (None, -1) and self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, description=self._styled(f"Epoch {trainer.current_epoch}"))
            self.refresh()

    def _styled(self, description: str) -> str:
        return f"[{self.theme.description}]{description}" if self.theme.description else description

    def _on_rollout(self, done: int, total: int) -> None:
        if self.is_disabled or self.progress is None:
            return
        if self._rollout_bar_id is None or self._rollout_bar_id not in self.progress.task_ids:
            self._rollout_bar_id = self.progress.add_task(self._styled("Rollouts"), total=total)
        self.progress.update(self._rollout_bar_id, completed=done, total=total, visible=done < total)
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the live display out of copies, as the base class does."""
        return {**super().__getstate__(), "_rollout_bar_id": None}


class ProgressFile(Callback):
    """Keep a small JSON file up to date, for a process that shows several runs at once.

    The file holds ``step``, ``max_steps``, ``rollouts`` (done and total of the current phase, or null) and ``metrics``
    (of the last validation). Each version replaces the previous one, so that a reader never sees half a file.

    Args:
        path: the file.
        interval: minimum seconds between two writes, at least 0.

    Raises:
        ValueError: ``interval`` is negative.
    """

    def __init__(self, path: str, interval: float = 1.0) -> None:
        if interval < 0:
            raise ValueError(f"interval must be at least 0 seconds, got {interval}")
        self.path = Path(path)
        self.interval = interval
        self._written_at = float("-inf")
        self._state: dict[str, Any] = {"step": 0, "max_steps": None, "rollouts": None, "metrics": {}}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start to listen to the module's rollouts."""
        if trainer.is_global_zero:
            self._state["max_steps"] = trainer.max_steps if stage == "fit" else None
            listen(pl_module, self._on_rollout)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the last state."""
        listen(pl_module, self._on_rollout, stop=True)
        self._write(trainer, force=True)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Record the optimiser step."""
        self._state |= {"step": trainer.global_step, "rollouts": None}
        self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics of the validation."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self._state["metrics"] = metrics
        self._write(trainer, force=True)

    def _on_rollout(self, done: int, total: int) -> None:
        self._state["rollouts"] = [done, total]
        self._write(None)

    def _write(self, trainer: Trainer | None, force: bool = False) -> None:
        if trainer is not None and not trainer.is_global_zero:
            return
        now = time.monotonic()
        if force or now - self._written_at >= self.interval:
            self._written_at = now
            write_json(self.path, self._state)
