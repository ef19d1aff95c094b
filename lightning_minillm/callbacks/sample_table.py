"""A table of prompts, references and responses at each validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lightning_minillm.files import write_json_lines
from lightning_minillm.modules import CausalLMModule
from lightning_minillm.types import TableLogger

_COLUMNS = ("task", "prompt", "references", "teacher", "response")


class SampleTable(Callback):
    """Write the first samples of each validation and test to a file, and to every logger that takes tables.

    They come from ``CausalLMModule.samples``, in the order of the data set, so that every table shows the same prompts.
    If there is a teacher, its responses to the prompts of the first batch are shown beside the student's.

    Args:
        folder: folder for one JSON Lines file per evaluation, such as ``val_step_000100.jsonl``.
        num_samples: rows to keep, at least 1.
        key: name of the table in the loggers.

    Raises:
        ValueError: ``num_samples`` is below 1.
    """

    def __init__(self, folder: str, num_samples: int = 16, key: str = "samples") -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.folder = Path(folder)
        self.num_samples = num_samples
        self.key = key

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the module for the teacher's responses."""
        if isinstance(pl_module, CausalLMModule):
            pl_module.shows_teacher = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the samples of the validation."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the samples of the test."""
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if not isinstance(module, CausalLMModule) or not module.samples or not trainer.is_global_zero:
            return
        samples = module.samples[: self.num_samples]
        write_json_lines(self.folder / f"{stage}_step_{trainer.global_step:06d}.jsonl", samples)
        columns = [column for column in _COLUMNS if any(column in sample for sample in samples)]
        rows = [[_as_text(sample.get(column, "")) for column in columns] for sample in samples]
        for logger in trainer.loggers:
            if isinstance(logger, TableLogger):
                logger.log_table(key=f"{stage}/{self.key}", columns=columns, data=rows, step=trainer.global_step)


def _as_text(value: Any) -> str:
    return " | ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
