import sys

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from lightning_minillm.cli import plan
from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.export import export
from lightning_minillm.modules import CausalLMModule


@pytest.fixture
def run_folder(make_model, tokenizer, tmp_path):
    """A run's folder: its configuration, and a checkpoint of other weights than the model it began with."""
    make_model("llama", seed=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path = str(tmp_path / "model")
    student = {
        "tokenizer": {"_target_": "lightning_minillm.models.load_tokenizer", "path": path},
        "model": {"_target_": "lightning_minillm.models.load_causal_lm", "_partial_": True, "path": path},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"student": student}))
    module = CausalLMModule(make_model("llama", seed=5), tokenizer)
    module.configure_model()
    (tmp_path / "checkpoints").mkdir()
    content = {"state_dict": module.state_dict(), "global_step": 7, "pytorch-lightning_version": "2.6"}
    torch.save(content, tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path


def given(folder, **options):
    return {"checkpoint": str(folder / "checkpoints" / "last.ckpt"), "output": str(folder / "out"), **options}


def test_the_folder_holds_the_checkpoints_weights(run_folder, make_model):
    metrics, _ = export({**given(run_folder), "output_dir": "", "run_dir": None})
    trained = make_model("llama", seed=5).state_dict()
    exported = AutoModelForCausalLM.from_pretrained(run_folder / "out").state_dict()
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
    assert metrics["optimizer_steps"] == 7


def test_what_cannot_be_exported_says_why(run_folder, tmp_path_factory):
    rest = {"output_dir": "", "run_dir": None}
    with pytest.raises(ValueError, match="there is no checkpoint"):
        export({**given(run_folder), "checkpoint": "nowhere/last.ckpt", **rest})
    with pytest.raises(ValueError, match=r"holds no config.yaml"):
        export({**given(run_folder), **rest, "run_dir": str(tmp_path_factory.mktemp("empty"))})
    content = (run_folder / "checkpoints" / "last.ckpt").read_bytes()
    (run_folder / "checkpoints" / "last.ckpt").write_bytes(content[:1000])
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        export({**given(run_folder), **rest})


def test_the_plan_says_what_fits(run_folder, capsys):
    overrides = [f"student_path={run_folder}/model", f"teacher_path={run_folder}/model", "num_devices=2"]
    verdict, _ = plan.plan(compose_config("plan", overrides))
    assert verdict["fsdp"]["fits"]
    assert "key-value caches" in capsys.readouterr().out
    # logits of a chunk are the largest part of so small a model, and more than a device of no memory
    verdict, _ = plan.plan(compose_config("plan", [*overrides, "device_memory=0.00001"]))
    assert not verdict["ddp"]["fits"]
    with pytest.raises(ValueError, match="the nearest is 8 or 10"):
        plan.plan(compose_config("plan", [*overrides, "batch_size=9", "micro_batch_size=1"]))


def test_the_command_line_takes_the_short_names(run_folder, monkeypatch, capsys):
    words = [f"student={run_folder}/model", f"teacher={run_folder}/model", "devices=8"]
    monkeypatch.setattr(sys, "argv", ["minillm-plan", *words])
    plan.main()
    assert "8 device(s) of 80 GiB" in capsys.readouterr().out
