import warnings

import pytest
import torch

from lightning_minillm.batch_sizes import BatchSizes
from lightning_minillm.cli import build
from lightning_minillm.cli.build import announce, batch_sizes, build_models, build_trainer, world_size


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


def test_global_batch_is_divided_over_devices_that_have_rows_of_their_own():
    strategy = {"tensor_parallel_size": 2}
    config = {"batch_size": 64, "micro_batch_size": 8, "trainer": {"devices": 4, "strategy": strategy}}
    assert batch_sizes(config).accumulation == 4
    assert batch_sizes({**config, "micro_batch_size": None}).micro_batch_size == 32
    with pytest.raises(ValueError, match="48 or 72"):
        batch_sizes({**config, "micro_batch_size": 12})
    with pytest.raises(ValueError, match=r"devices=3 is not .*=2; the nearest is 2 or 4"):
        batch_sizes({**config, "trainer": {"devices": 3, "strategy": strategy}})


def test_validation_is_counted_in_optimiser_steps(tmp_path):
    config = {
        "trainer": {"_target_": "lightning.Trainer", "accelerator": "cpu", "max_steps": 10},
        "output_dir": str(tmp_path),
        "eval_every": 5,
        "max_steps": 10,
    }
    trainer, callbacks = build_trainer(config, BatchSizes(8, 2))
    assert trainer.val_check_interval == 20
    assert trainer.accumulate_grad_batches == 4
    assert trainer.check_val_every_n_epoch is None
    assert callbacks == {}
    assert trainer.loggers == []
    config["eval_every"] = 50  # more than there are steps: validate at the end
    assert build_trainer(config, BatchSizes(8, 2))[0].val_check_interval == 40


def test_models_are_checked_now_and_loaded_later(folders):
    student = {
        "tokenizer": {"_target_": "lightning_minillm.models.load_tokenizer", "path": f"{folders}/model"},
        "model": {"_target_": "lightning_minillm.models.load_causal_lm", "_partial_": True, "path": f"{folders}/model"},
    }
    models = build_models(student, {"tokenizer": None, "model": None})
    assert models.teacher is None
    assert models.student().config.model_type == "gpt2"
    student["model"]["path"] = "./nowhere"
    with pytest.raises(ValueError, match="there is no folder"):
        build_models(student, None)


def test_a_warm_up_that_never_ends_is_said(tmp_path):
    config = {"name": "x", "max_steps": 10, "module": {}, "output_dir": str(tmp_path)}
    with pytest.warns(UserWarning, match="num_warmup_steps=20 is more than max_steps=10: the learning rate never"):
        announce({**config, "scheduler": {"num_warmup_steps": 20}}, BatchSizes(8, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        announce({**config, "scheduler": None}, BatchSizes(8, 2))


def test_what_mps_lacks_is_said_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(build, "rank_zero_info", said.append)
    config = {"name": "x", "max_steps": 10, "module": {}, "output_dir": str(tmp_path), "scheduler": None}
    for device in ("cpu", "cuda", "mps"):
        announce(config, BatchSizes(8, 2), device)
    assert [text for text in said if "MPS" in text] == [
        "MPS has no float64: sums over tokens and rows are computed on the CPU"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there_is_named(tmp_path):
    node = {"_target_": "lightning.Trainer", "accelerator": "cuda"}
    with pytest.raises(ValueError, match=r"the trainer cannot be made as configured: .*CUDAAccelerator"):
        build_trainer({"trainer": node, "output_dir": str(tmp_path)})
