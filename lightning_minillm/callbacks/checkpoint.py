"""Whole checkpoints from which a run goes on exactly where it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ModelCheckpoint

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class ResumeCheckpoint(ModelCheckpoint):
    """Keep one checkpoint of everything, written anew every few optimiser steps.

    Two habits of Lightning (2.6) are mended on the way. It skips an epoch when it resumes from a checkpoint that was
    written after the last batch of an epoch but before its end; so one that falls due there is written at the end of
    the epoch. And the step numbers of its logs move by one in some resumed runs; so they are put right.

    Args:
        dirpath: folder of the checkpoint.
        every_n_train_steps: optimiser steps between two of them, at least 1.
        filename: its name without ``.ckpt``.

    Raises:
        ValueError: every_n_train_steps below 1.
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

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the step that loggers see be the number of optimiser steps, also after resuming."""
        if pl_module.automatic_optimization:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the checkpoint if it is due, unless the epoch is about to end."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint that fell due at the last batch."""
        super().on_train_batch_end(trainer, pl_module, None, None, 0)
