"""Runs an evaluation of a model on all ranks, resuming from its records."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from lightning_minillm.evaluation.base import Evaluation, Findings
from lightning_minillm.evaluation.module import EvaluationModule
from lightning_minillm.evaluation.records import RecordFiles

LONGEST_WAIT = timedelta(days=7)
"""For the findings of the first rank."""


def record_files(folder: str | Path, evaluation: Evaluation) -> RecordFiles:
    """Return the record files of an evaluation in a model's folder."""
    return RecordFiles(Path(folder) / evaluation.name)


def run_evaluation(trainer: Trainer, module: EvaluationModule, evaluation: Evaluation, folder: str | Path) -> Findings:
    """Measure one model, resuming from existing records.

    Each batch is either finished or redone; its records do not depend on rank or time. The findings are therefore the
    same on any number of ranks, and after any number of interruptions.

    Args:
        trainer: with the devices to use; its progress bar shows the batches.
        module: the model.
        evaluation: prepared with the module's tokenizer.
        folder: for the records of this model, visible to all ranks; the files are ``<folder>/<name>/rank_<n>.jsonl``.

    Returns:
        The findings, on every rank.

    Raises:
        ValueError: existing records were made with different settings, or the evaluation needs a teacher and there is
            none.
        Exception: any exception of the findings on the first rank, on every rank.
    """
    if evaluation.needs_teacher and not module.has_teacher:
        raise ValueError(f"{evaluation.name} compares with a teacher, but the module has none: pass teacher=...")
    files = record_files(folder, evaluation)
    module.begin(evaluation, files)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*across ranks is zero.*")  # all records exist already
        trainer.test(module, verbose=False)
    trainer.strategy.barrier("records")
    found: tuple[Findings | None, Exception | None] = (None, None)
    with _waiting_longer(evaluation.slow_findings):
        if trainer.is_global_zero:
            try:
                found = evaluation.findings(files.read()), None
            except Exception as raised:  # all ranks have to know about it
                found = None, raised
    findings, error = trainer.strategy.broadcast(found)
    if error is not None:
        raise error
    assert findings is not None
    return findings


@contextmanager
def _waiting_longer(is_needed: bool) -> Iterator[None]:
    """Wait for rank 0 up to seven days; the strategy's own process group times out after minutes."""
    if not (is_needed and torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield
        return
    group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    yield
    torch.distributed.barrier(group)
    torch.distributed.destroy_process_group(group)
