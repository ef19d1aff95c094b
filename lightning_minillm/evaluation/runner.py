"""Runs an evaluation of a model on all ranks, from where it was stopped to its findings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torchmetrics.metric

from lightning_minillm.evaluation.base import Evaluation, Findings
from lightning_minillm.evaluation.module import EvaluationModule
from lightning_minillm.evaluation.records import RecordFiles

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

LONGEST_WAIT = timedelta(days=7)
"""For the findings of the first rank."""


def record_files(folder: str | Path, evaluation: Evaluation) -> RecordFiles:
    """Return where the records of an evaluation lie, in a model's folder."""
    return RecordFiles(Path(folder) / evaluation.name)


def run_evaluation(trainer: Trainer, module: EvaluationModule, evaluation: Evaluation, folder: str | Path) -> Findings:
    """Measure one model, going on from the records that are there.

    A batch is done whole or again, and its records do not depend on which rank does it or when: the findings are the
    same on any number of ranks, and after any number of stops.

    Args:
        trainer: with the devices to use; its progress bar shows the batches.
        module: the model.
        evaluation: prepared with the module's tokenizer.
        folder: of this model's records, seen by all ranks; the evaluation's go to ``<folder>/<name>/rank_<n>.jsonl``.

    Returns:
        The findings, on every rank.

    Raises:
        ValueError: records of another set-up are there, or a teacher is missing that the evaluation needs.
        Exception: whatever the findings raised on the first rank, on every rank.
    """
    if evaluation.needs_teacher and not module.has_teacher:
        raise ValueError(f"{evaluation.name} compares with a teacher, but the module has none: pass teacher=...")
    files = record_files(folder, evaluation)
    module.begin(evaluation, files)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*across ranks is zero.*")  # all records are there
        trainer.test(module, verbose=False)
    trainer.strategy.barrier("records")
    found: tuple[Findings | None, Exception | None] = (None, None)
    with _patience(evaluation.slow_findings):
        if trainer.is_global_zero:
            found = _find(evaluation, files)
    findings, error = trainer.strategy.broadcast(found)
    if error is not None:
        raise error
    return findings


def _find(evaluation: Evaluation, files: RecordFiles) -> tuple[Findings | None, Exception | None]:
    """Return the findings, or what went wrong: all ranks have to know."""
    try:
        with _metrics_alone():
            return evaluation.findings(files.read()), None
    except Exception as error:
        return None, error


@contextmanager
def _patience(is_needed: bool) -> Iterator[None]:
    """Have the ranks wait for each other at the end for days, where the strategy's process group waits for minutes."""
    if not (is_needed and torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield
        return
    group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    yield
    torch.distributed.barrier(group)
    torch.distributed.destroy_process_group(group)


@contextmanager
def _metrics_alone() -> Iterator[None]:
    """Have metrics that are made here see this rank only: else torchmetrics waits for the others, which make none."""
    available = torchmetrics.metric.jit_distributed_available
    torchmetrics.metric.jit_distributed_available = lambda: False
    try:
        yield
    finally:
        torchmetrics.metric.jit_distributed_available = available
