"""Checkpoints: of the best validation, and of the whole run, which resumes from it exactly where it was."""

from __future__ import annotations

import random
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from lightning_minillm import _reach
from lightning_minillm.distributed.placement import gather_objects


class BestCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint of the best validation, with a second metric for those at which the first is 0.

    A score such as Rouge-L is 0 at every validation if the student has not learnt anything it can see yet, or if it
    cannot see the text at all; the first checkpoint would then count as the best. As long as the monitored metric was 0
    at every validation, the one with the lowest ``fallback`` is kept, which a warning says. As soon as the metric is
    above 0, it alone decides.

    The run may be renamed, moved or copied: the paths in the state are read as files in its present folder. (Lightning
    forgets the best value then, so that worse weights would replace better ones.)

    Args:
        fallback: a logged metric of which the lowest value is the best; ``None`` for Lightning's behaviour.
        options: of :class:`lightning.pytorch.callbacks.ModelCheckpoint`; the fallback applies to ``mode="max"`` with
            one checkpoint.
    """

    def __init__(self, *, fallback: str | None = "val/loss", **options: Any) -> None:
        super().__init__(**options)
        self.fallback = fallback if self.mode == "max" and self.save_top_k == 1 else None
        self.fallback_score: float | None = None
        """Value of the fallback in the kept checkpoint, if that was chosen by it."""
        self._has_warned = False

    @property
    def state_key(self) -> str:
        """The key of Lightning's class, so that a run which began with that resumes with this."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether this validation is the best so far."""
        other = trainer.callback_metrics.get(self.fallback) if self.fallback is not None else None
        if current is None or other is None:
            return bool(super().check_monitor_top_k(trainer, current))
        known, value = self.fallback_score, float(other)
        is_first = not self.best_k_models
        if bool(current != 0) or not (is_first or known is not None):  # the metric decides
            is_best = bool(super().check_monitor_top_k(trainer, current))
            self.fallback_score = None if is_best else known
            return is_best
        is_best = trainer.strategy.reduce_boolean_decision(is_first or known is None or value < known)
        if is_best:
            self.fallback_score = value
        if not is_first and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"{self.monitor} is 0 at every validation so far: until it is not, the checkpoint with the lowest"
                f" {self.fallback} is kept as the best"
            )
        return bool(is_best)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of Lightning's class and the value of the fallback."""
        return {**super().state_dict(), "fallback_score": self.fallback_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both; weights that are in neither folder any more are forgotten, which is said."""
        state, gone = moved_state(state_dict, str(self.dirpath))
        if gone:
            rank_zero_warn(f"{gone} is missing: the best weights are chosen from the validations that follow")
        super().load_state_dict(state)
        self.fallback_score = None if gone else state.get("fallback_score")


def moved_state(state: dict[str, Any], folder: str) -> tuple[dict[str, Any], str]:
    """Return the state of a ``ModelCheckpoint`` with paths in the present folder, and the best file if it is missing.

    A run that resumes from a checkpoint of another run has no file of its own yet; the other run's is read.
    """
    best = Path(state["best_model_path"])
    if not state["best_model_path"] or (state.get("dirpath") == folder and best.exists()):
        return {**state, "dirpath": folder}, ""

    def moved(path: str) -> str:
        here = Path(folder) / Path(path).name
        return str(here) if path and (here.exists() or not Path(path).exists()) else path

    if not Path(moved(str(best))).exists():
        empty: dict[str, Any] = {
            "best_model_score": None,
            "best_model_path": "",
            "best_k_models": {},
            "kth_best_model_path": "",
        }
        return {**state, **empty, "dirpath": folder, "kth_value": None, "last_model_path": ""}, str(best)
    paths = {key: moved(state[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
    kept = {moved(path): score for path, score in state["best_k_models"].items()}
    return {**state, **paths, "best_k_models": kept, "dirpath": folder}, ""


class ResumeCheckpoint(ModelCheckpoint):
    """Keep one checkpoint of the whole run, random states included, and replace it every few optimiser steps.

    It works around two defects of Lightning (2.6). Lightning skips an epoch when it resumes from a checkpoint written
    after the last batch of an epoch; a checkpoint due there is written at the start of the next epoch instead, before
    anything else happens in it. And in some resumed runs the step numbers of the logs are off by one; they are reset.

    SIGTERM, which schedulers send before they kill a process, writes the checkpoint after the current optimiser step
    and ends the run with exit code 0. (Lightning's own handler communicates with the other ranks from inside the
    signal handler, in the middle of any other communication.)

    Args:
        dirpath: folder of the checkpoint.
        every_n_train_steps: optimiser steps between two checkpoints, at least 1.
        filename: name of the checkpoint without ``.ckpt``.

    Raises:
        ValueError: ``every_n_train_steps`` is below 1.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int, filename: str = "last") -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps must be at least 1, got {every_n_train_steps}")
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._random_states: list[dict[str, Any]] = []
        self._postponed = self._after_validation = False
        self._between_epochs = False
        self._asked_to_stop = self._stopping = False
        self._handler_before: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handler of SIGTERM if this is the main thread; no other thread may."""
        super().on_train_start(trainer, pl_module)
        self._asked_to_stop = False
        if threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: Any) -> None:
        self._asked_to_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous handler of SIGTERM."""
        super().teardown(trainer, pl_module, stage)
        if self._handler_before is not None:
            signal.signal(signal.SIGTERM, self._handler_before)
            self._handler_before = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint that was due at the last batch of the previous epoch."""
        self._restore_random_state(trainer)
        if self._postponed:
            self._between_epochs = True
            self._write(trainer, pl_module, stop=self._stopping)
            self._between_epochs = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Between epochs, record that the next epoch begins with its first batch; Lightning still counts the last."""
        if self._between_epochs:
            progress = _reach.batch_progress(checkpoint)
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["is_last_batch"] = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore random states, and the step under which loggers write."""
        if pl_module.automatic_optimization:
            _reach.set_logged_step(trainer, trainer.global_step)
        self._restore_random_state(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the checkpoint if it is due, unless the epoch ends or a validation follows.

        A resumed run does not repeat a validation; a run killed during one must resume from before it.
        """
        stepped = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        self._stopping = stepped and self._any_rank_asked_to_stop(trainer)
        self._postponed = trainer.is_last_batch
        self._after_validation = not self._postponed and _reach.validation_follows(trainer)
        if self._stopping or not self._after_validation:
            self._after_validation = False
            if not self._postponed:
                self._write(trainer, pl_module, stop=self._stopping)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint that was due before the validation."""
        super().on_validation_end(trainer, pl_module)
        if self._after_validation and trainer.state.fn == TrainerFn.FITTING:
            self._after_validation = False
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, module: LightningModule, stop: bool = False) -> None:
        """Write the checkpoint if it is due or if the run has to stop here."""
        self._postponed = False
        with _reach.saving_every_step(self) if stop else nullcontext():
            super().on_train_batch_end(trainer, module, None, None, 0)
        if stop:
            rank_zero_info(f"SIGTERM: wrote {self.best_model_path} after step {trainer.global_step}; stopping")
            raise SIGTERMException

    def _any_rank_asked_to_stop(self, trainer: Trainer) -> bool:
        """Return whether any rank got SIGTERM; all ranks write together, so they have to agree."""
        if trainer.world_size == 1:
            return self._asked_to_stop
        asked = torch.tensor(float(self._asked_to_stop), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(asked, reduce_op="sum") > 0)

    def _restore_random_state(self, trainer: Trainer) -> None:
        if len(self._random_states) == trainer.world_size:
            set_random_state(self._random_states[trainer.global_rank])
        self._random_states = []

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base class and the random states of all ranks."""
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        states = gather_objects(random_state(), torch.distributed.get_world_size() if several else 1)
        return {**super().state_dict(), "random_states": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both; on a different number of ranks, random states start fresh."""
        self._random_states = state_dict.get("random_states", [])
        super().load_state_dict(moved_state(state_dict, str(self.dirpath))[0])


def random_state() -> dict[str, Any]:
    """Return the state of every global random generator, as plain tensors, tuples and numbers."""
    numpy_state = np.random.get_state(legacy=False)
    keys, position = numpy_state["state"]["key"], numpy_state["state"]["pos"]
    has_gauss, gauss = numpy_state["has_gauss"], numpy_state["gauss"]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a state that :func:`random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
