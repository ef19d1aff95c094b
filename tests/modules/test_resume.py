"""The same seed gives the same run, and a resumed run is the uninterrupted one."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_minillm.rollout import SamplingConfig


def test_the_same_seed_gives_the_same_run(make_minillm, make_data, make_trainer, weights_of):
    runs = []
    for number, seed in enumerate((7, 7, 8)):
        torch.manual_seed(number)  # the global random state plays no part
        module = make_minillm(seed=seed)
        make_trainer(max_epochs=2).fit(module, make_data())
        runs.append(weights_of(module.student))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


# 4 optimiser steps a phase, two phases; options of the checkpoint, and the step at which it is written
CHECKPOINTS = {
    "first step": ({"every_n_train_steps": 1}, 1),
    "middle of a phase": ({"every_n_train_steps": 3}, 3),
    "last step of a phase": ({"every_n_train_steps": 4}, 4),
    "middle of the second phase": ({"every_n_train_steps": 6}, 6),
    "end of a phase": ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, 4),
    "validation after a phase": ({"every_n_epochs": 1, "save_on_train_epoch_end": False, "mode": "max"}, 4),
}


@pytest.fixture(scope="module")
def train_with_checkpoints(make_minillm, make_data, make_evaluation, make_trainer, make_recorder, weights_of):
    """A function that trains, keeps every kind of checkpoint, and returns the weights and what was recorded."""

    def train(folder, validation, limit, **fit):
        module = make_minillm(
            scheduler=partial(torch.optim.lr_scheduler.LinearLR, total_iters=8),
            sampling=SamplingConfig(max_new_tokens=4),
            validation_sampling=SamplingConfig(max_new_tokens=2, teacher_mix_alpha=0.0),
        )
        data = make_data(micro_batch_size=4, validation=[make_evaluation()] if validation else ())
        keep = [] if folder is None else [
            ModelCheckpoint(folder, filename=f"{kind} {{step}}", save_top_k=-1, **options)
            for kind, (options, _) in CHECKPOINTS.items()
        ]  # fmt: skip
        recorder = make_recorder()
        trainer = make_trainer(
            accumulate_grad_batches=2,
            callbacks=[*keep, recorder],
            enable_checkpointing=bool(keep),
            limit_val_batches=1.0 if validation else 0,
            **limit,
        )
        trainer.fit(module, data, **fit)
        return weights_of(module.student), recorder

    return train


@pytest.fixture(scope="module", params=[False, True], ids=["train only", "with validation"])
def uninterrupted(request, train_with_checkpoints, tmp_path_factory):
    """Folder of checkpoints, whether there was validation, weights at the end, and what was recorded."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, request.param, *train_with_checkpoints(folder, request.param, {"max_steps": 8})


@pytest.mark.parametrize("limit", [{"max_steps": 8}, {"max_epochs": 2}], ids=["steps", "epochs"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_resumed_run_equals_an_uninterrupted_one(kind, limit, uninterrupted, train_with_checkpoints):
    """Bit for bit, wherever in a phase the checkpoint was written."""
    folder, validation, weights, recorder = uninterrupted
    assert len(recorder.batches) == 16
    step = CHECKPOINTS[kind][1]
    path = folder / f"{kind} step={step}.ckpt"
    if kind == "validation after a phase" and not validation:
        assert not path.exists()
        return
    resumed, rest = train_with_checkpoints(None, validation, limit, ckpt_path=path, weights_only=False)
    assert [b.rollouts.indices.tolist() for b in rest.batches] == [
        b.rollouts.indices.tolist() for b in recorder.batches[2 * step :]
    ]
    assert rest.lr == recorder.lr[2 * step :]
    assert torch.equal(resumed, weights)


def test_checkpoints_hold_the_student_only(make_minillm, make_data, make_trainer, tmp_path):
    module, trainer = make_minillm(), make_trainer(max_steps=3)
    trainer.fit(module, make_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert checkpoint["state_dict"].keys() == {f"student.{name}" for name in module.student.state_dict()}
    assert not [key for key in checkpoint if "teacher" in key]
