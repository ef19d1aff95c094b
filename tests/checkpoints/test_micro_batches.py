import pytest

from lightning_minillm.checkpoints.micro_batches import rescale_progress


def checkpoint(ready, accumulation=4):
    counts = {"ready": ready, "started": ready, "processed": ready, "completed": ready - 1}
    progress = {"total": dict(counts), "current": dict(counts), "is_last_batch": False}
    return {"accumulate_grad_batches": accumulation, "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}


def test_counts_are_converted_and_what_is_not_completed_stays_so():
    state = checkpoint(8)
    rescale_progress(state, 2)
    progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["total"] == {"ready": 4, "started": 4, "processed": 4, "completed": 3}
    assert progress["current"] == progress["total"]
    assert state["accumulate_grad_batches"] == 2


def test_nothing_changes_without_need():
    for state, accumulation in ((checkpoint(7), 4), ({"accumulate_grad_batches": 4}, 2)):
        before = repr(state)
        rescale_progress(state, accumulation)
        assert repr(state) == before


def test_a_position_inside_a_step_cannot_be_converted():
    with pytest.raises(ValueError, match="inside an optimiser step, after 3 of 4 micro-batches"):
        rescale_progress(checkpoint(7), 2)
