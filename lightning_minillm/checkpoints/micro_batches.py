"""Lightning counts micro-batches; a resumed run whose optimiser steps have a different number of them counts again."""

from __future__ import annotations

from typing import Any

from lightning_minillm._reach import batch_progress
from lightning_minillm.batch_sizes import rescale_position

ACCUMULATION_KEY = "accumulate_grad_batches"


def rescale_progress(checkpoint: dict[str, Any], accumulation: int) -> None:
    """Convert the batch counts of a checkpoint to micro-batches of this run, in place.

    Args:
        checkpoint: of Lightning, with its micro-batches per optimiser step under ``accumulate_grad_batches``.
        accumulation: micro-batches per optimiser step in this run.

    Raises:
        ValueError: the checkpoint is inside an optimiser step, which this run divides differently.
    """
    before = checkpoint.get(ACCUMULATION_KEY, accumulation)
    if before == accumulation or "loops" not in checkpoint:
        return
    progress = batch_progress(checkpoint)
    for counts in (progress["total"], progress["current"]):
        ready = counts["ready"]
        rescaled = rescale_position(ready, before, accumulation)
        # a checkpoint written in a batch's last hook has not counted it as completed yet
        counts.update({name: rescaled - (ready - value) for name, value in counts.items()})
    checkpoint[ACCUMULATION_KEY] = accumulation
