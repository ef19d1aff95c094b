"""What a run writes and logs at its start, and how its loggers end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_minillm._reach import drop_anonymous
from lightning_minillm.cli.resume import IDENTITY_FILE, identity
from lightning_minillm.cli.tracking import TRACKING_FILE, keep_overrides
from lightning_minillm.files import read_json, write_json
from lightning_minillm.reports import run_folder as runs


class RunStart(Callback):
    """Writes and logs the start of a run; of a training run when its data, models and checkpoint have been read.

    A run that fails before that leaves the files of an earlier run in its folder as they are.

    Args:
        config: resolved, with ``output_dir``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.has_started = False

    def begin(self, loggers: Sequence[Logger]) -> None:
        """Write what every run leaves, and log the configuration, the state of the code and the versions."""
        self.has_started = True
        rank_zero_only(_write_start)(loggers, self._config)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, unless a validation came first."""
        self._begin_training(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with a validation before the first step."""
        self._begin_training(trainer)

    def _begin_training(self, trainer: Trainer) -> None:
        if not self.has_started:
            self.begin(trainer.loggers)
            rank_zero_only(write_json)(Path(self._config["output_dir"]) / IDENTITY_FILE, identity(dict(self._config)))


@contextmanager
def finishing(loggers: Sequence[Logger], start: RunStart) -> Iterator[None]:
    """Finish W&B runs at the end; otherwise the next run of the process, such as a sweep's job, would continue them."""
    wandb_loggers = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    for logger in wandb_loggers:
        drop_anonymous(logger)
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        for logger in wandb_loggers if start.has_started else ():
            rank_zero_only(_finish)(logger, exit_code)


def _finish(logger: WandbLogger, exit_code: int) -> None:
    folder = Path(logger.experiment.dir).parent
    logger.experiment.finish(exit_code)
    if folder.name.startswith("offline-run"):
        rank_zero_info(f"Weights & Biases: the run is in {folder}; `wandb sync {folder}` uploads it")


def _write_start(loggers: Sequence[Logger], config: Mapping[str, Any]) -> None:
    folder = Path(config["output_dir"])
    runs.start_run(folder, config)
    keep_overrides(folder)
    environment = read_json(folder / runs.ENVIRONMENT_FILE)
    for logger in loggers:
        logger.log_hyperparams({**config, "environment": environment})
        if isinstance(logger, WandbLogger):
            write_json(folder / TRACKING_FILE, {"id": logger.experiment.id, "folder": str(folder.resolve())})
