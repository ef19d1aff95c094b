"""Progress on the screen, rollouts included, and in a file that another process reads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback, RichProgressBar

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

RolloutListener = Callable[[int, int], None]


def _listen(module: LightningModule, listener: RolloutListener) -> None:
    """Have ``listener(done, total)`` called during rollouts; modules without rollouts have no such list."""
    listeners: list[RolloutListener] | None = getattr(module, "rollout_listeners", None)
    if listeners is not None and listener not in listeners:
        listeners.append(listener)


def _forget(module: LightningModule, listener: RolloutListener) -> None:
    listeners: list[RolloutListener] | None = getattr(module, "rollout_listeners", None)
    if listeners is not None and listener in listeners:
        listeners.remove(listener)


class RolloutProgressBar(RichProgressBar):
    """Lightning's rich progress bar, with a line for the rollouts of the current phase.

    Takes the arguments of :class:`lightning.pytorch.callbacks.RichProgressBar`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rollout_bar_id: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to listen to the module's rollouts."""
        super().setup(trainer, pl_module, stage)
        _listen(pl_module, self._on_rollout)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        _forget(pl_module, self._on_rollout)
        super().teardown(trainer, pl_module, stage)

    def _get_train_description(self, current_epoch: int) -> str:
        """Leave out the number of epochs where only steps are limited (the base class would show -2)."""
        if self.trainer.max_epochs in (None, -1):
            return f"Epoch {current_epoch}"
        return super()._get_train_description(current_epoch)

    def _on_rollout(self, done: int, total: int) -> None:
        if self.is_disabled or self.progress is None:
            return
        if self._rollout_bar_id is None or self._rollout_bar_id not in self.progress.task_ids:
            self._rollout_bar_id = self._add_task(total, "Rollouts")
        self.progress.update(self._rollout_bar_id, completed=done, total=total, visible=done < total)
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the live display out of copies, as the base class does."""
        state: dict[str, Any] = super().__getstate__()
        state["_rollout_bar_id"] = None
        return state


class ProgressFile(Callback):
    """Keep a small JSON file up to date, for a process that shows several runs at once.

    The file holds ``step``, ``max_steps``, ``rollouts`` (done and total of the current phase, or null) and ``metrics``
    (the last validation's). It is replaced, never half written.

    Args:
        path: the file.
        interval: least seconds between two writes, at least 0.

    Raises:
        ValueError: a negative interval.
    """

    def __init__(self, path: str, interval: float = 1.0) -> None:
        if interval < 0:
            raise ValueError(f"interval must be at least 0 seconds, got {interval}")
        self.path = Path(path)
        self.interval = interval
        self._written_at = float("-inf")
        self._state: dict[str, Any] = {"step": 0, "max_steps": None, "rollouts": None, "metrics": {}}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to listen to the module's rollouts."""
        if trainer.is_global_zero:
            self._state["max_steps"] = trainer.max_steps if stage == "fit" else None
            _listen(pl_module, self._on_rollout)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the last state."""
        _forget(pl_module, self._on_rollout)
        self._write(trainer, force=True)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Note the optimiser step."""
        self._state |= {"step": trainer.global_step, "rollouts": None}
        self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the validation's metrics."""
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
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            scratch.write_text(json.dumps(self._state), encoding="utf-8")
            os.replace(scratch, self.path)
