"""What student and teacher say: a table of prompts, references and responses at each validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_COLUMNS = ("task", "prompt", "references", "teacher", "response")


class SampleTable(Callback):
    """Write the first samples of each evaluation to a file, and to every logger that takes tables.

    The module keeps them in ``module.samples`` (rows of the data set in order, so the same prompts every time). Where
    there is a teacher, its responses to the prompts of the first batch stand beside the student's.

    Args:
        folder: one JSONL file an evaluation goes there, ``val_step_000100.jsonl``.
        num_samples: rows to keep, at least 1.
        key: name of the table in the loggers.

    Raises:
        ValueError: num_samples below 1.
    """

    def __init__(self, folder: str, num_samples: int = 16, key: str = "samples") -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.folder = Path(folder)
        self.num_samples = num_samples
        self.key = key

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the module for the teacher's responses."""
        if hasattr(pl_module, "shows_teacher"):
            pl_module.shows_teacher = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation's samples."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the test's samples."""
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        samples: list[dict[str, Any]] = list(getattr(module, "samples", ()))[: self.num_samples]
        if not samples or not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{stage}_step_{trainer.global_step:06d}.jsonl"
        file.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples), encoding="utf-8")
        columns = [column for column in _COLUMNS if any(column in sample for sample in samples)]
        rows = [[_as_text(sample.get(column, "")) for column in columns] for sample in samples]
        for logger in trainer.loggers:
            log_table = getattr(logger, "log_table", None)
            if log_table is not None:
                log_table(key=f"{stage}/{self.key}", columns=columns, data=rows, step=trainer.global_step)


def _as_text(value: Any) -> str:
    return " | ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
