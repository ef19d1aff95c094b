"""Lightning counts micro-batches; a run that goes on with others counts them anew."""

from __future__ import annotations

from typing import Any

from lightning_minillm._reach import batch_progress

ACCUMULATION_KEY = "accumulate_grad_batches"


def rescale_progress(checkpoint: dict[str, Any], accumulation: int) -> None:
    """Express a checkpoint's position in micro-batches of this run, in place.

    Args:
        checkpoint: of Lightning, with the micro-batches of an optimiser step under ``accumulate_grad_batches``.
        accumulation: micro-batches of an optimiser step in this run.

    Raises:
        ValueError: the checkpoint stands inside an optimiser step, which other micro-batches would cut differently.
    """
    before = checkpoint.get(ACCUMULATION_KEY, accumulation)
    if before == accumulation or "loops" not in checkpoint:
        return
    progress = batch_progress(checkpoint)
    for counts in (progress["total"], progress["current"]):
        ready = counts["ready"]
        if ready % before:
            raise ValueError(
                f"the checkpoint stands after {ready % before} of {before} micro-batches of an optimiser step, and this"
                f" run makes {accumulation} a step: give the same number of devices and micro_batch_size"
            )
        rescaled = ready // before * accumulation
        # a checkpoint written in a batch's last hook has not counted it as completed yet
        counts.update({name: rescaled - (ready - value) for name, value in counts.items()})
    checkpoint[ACCUMULATION_KEY] = accumulation
