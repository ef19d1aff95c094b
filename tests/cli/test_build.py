import pytest
import torch

from lightning_minillm.cli.build import build_models, build_trainer, plan_batches, world_size


@pytest.mark.parametrize(
    ("trainer", "size"),
    [
        ({"devices": 2}, 2),
        ({"devices": 2, "num_nodes": 3}, 6),
        ({"devices": [0, 3]}, 2),
        ({"devices": "0,1,2"}, 3),
        ({"devices": "2"}, 1),
        ({}, 1),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
    ],
)
def test_world_size(trainer, size):
    assert world_size(trainer) == size


def test_auto_counts_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert world_size({"devices": "auto", "accelerator": "auto", "num_nodes": 2}) == 8
    assert world_size({"devices": -1, "accelerator": "cpu"}) == 1


@pytest.mark.parametrize(("micro", "world", "accumulation"), [(None, 1, 1), (None, 4, 1), (8, 2, 4), (64, 1, 1)])
def test_global_batch_is_divided_without_rest(micro, world, accumulation):
    plan = plan_batches(64, micro, world)
    assert plan.accumulation == accumulation
    assert plan.micro_batch_size * plan.world_size * plan.accumulation == plan.batch_size == 64


def test_batch_that_does_not_divide_names_the_nearest():
    with pytest.raises(ValueError, match="60 or 66"):
        plan_batches(64, 3, 2)


def test_validation_is_counted_in_optimiser_steps(tmp_path):
    config = {
        "trainer": {"_target_": "lightning.Trainer", "accelerator": "cpu", "max_steps": 10},
        "output_dir": str(tmp_path),
        "eval_every": 5,
        "max_steps": 10,
    }
    trainer, callbacks = build_trainer(config, plan_batches(8, 2, 1))
    assert trainer.val_check_interval == 20
    assert trainer.accumulate_grad_batches == 4
    assert trainer.check_val_every_n_epoch is None
    assert callbacks == {}
    assert trainer.loggers == []
    config["eval_every"] = 50  # more than there are steps: validate at the end
    assert build_trainer(config, plan_batches(8, 2, 1))[0].val_check_interval == 40


def test_models_wait_to_be_made(folders):
    student = {
        "tokenizer": {"_target_": "lightning_minillm.models.load_tokenizer", "path": f"{folders}/model"},
        "model": {"_target_": "lightning_minillm.models.load_causal_lm", "_partial_": True, "path": "./nowhere"},
    }
    models = build_models(student, {"tokenizer": None, "model": None})
    assert models.teacher is None
    with pytest.raises(ValueError, match="there is no folder"):
        models.student()
