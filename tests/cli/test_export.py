import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lightning_minillm.cli import export as export_command
from lightning_minillm.cli import plan as plan_command
from lightning_minillm.cli.export import export
from lightning_minillm.cli.plan import plan
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
    metrics = export(**given(run_folder))
    trained = make_model("llama", seed=5).state_dict()
    exported = AutoModelForCausalLM.from_pretrained(run_folder / "out").state_dict()
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
    assert metrics["optimizer_steps"] == 7


@pytest.mark.parametrize(("dtype", "expected"), [(None, "bfloat16"), ("float32", "float32"), ("float16", "float16")])
def test_weights_get_the_dtype_of_the_base_or_the_given_one(run_folder, make_model, dtype, expected):
    make_model("llama", seed=1).to(torch.bfloat16).save_pretrained(run_folder / "model")
    export(**given(run_folder, dtype=dtype))
    assert json.loads((run_folder / "out" / "config.json").read_text())["dtype"] == expected
    weights = load_file(run_folder / "out" / "model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {f"torch.{expected}"}


def test_what_cannot_be_exported_says_why(run_folder, tmp_path_factory):
    with pytest.raises(ValueError, match="there is no checkpoint"):
        export(**given(run_folder, checkpoint="nowhere/last.ckpt"))
    with pytest.raises(ValueError, match=r"has no config\.yaml of a run"):
        export(**given(run_folder), run_dir=tmp_path_factory.mktemp("empty"))
    content = (run_folder / "checkpoints" / "last.ckpt").read_bytes()
    (run_folder / "checkpoints" / "last.ckpt").write_bytes(content[:1000])
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        export(**given(run_folder))


def test_a_checkpoint_is_exported_from_the_command_line(run_folder, tmp_path_factory, capsys, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    checkpoint = tmp_path_factory.mktemp("it's [odd]") / "last.ckpt"
    (run_folder / "checkpoints" / "last.ckpt").rename(checkpoint)
    words = [str(checkpoint), str(run_folder / "out")]
    export_command.main([*words, "--run-dir", str(run_folder)])
    assert f"wrote {run_folder}/out: " in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        export_command.main(words)
    assert stop.value.code == 1
    assert "error: " in capsys.readouterr().err


def test_the_plan_says_what_fits(run_folder, capsys):
    models = {"student": f"{run_folder}/model", "teacher": f"{run_folder}/model", "devices": 2}
    verdict = plan(**models)
    assert verdict["fsdp"]["fits"]
    assert "key-value caches" in capsys.readouterr().out
    # logits of a chunk are the largest part of so small a model, and more than a device of no memory
    assert not plan(**models, device_memory=0.00001)["ddp"]["fits"]
    with pytest.raises(ValueError, match="batch_size=9 is not a multiple of micro_batch_size x devices=2"):
        plan(**models, batch_size=9, micro_batch_size=1)
    with pytest.raises(ValueError, match="teacher_dtype must be one of float32, bfloat16, float16, got 'int8'"):
        plan(**models, teacher_dtype="int8")


def test_a_run_is_planned_from_the_command_line(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    plan_command.main([f"{run_folder}/model", f"{run_folder}/model", "--devices", "8"])
    shown = capsys.readouterr().out
    assert "8 device(s) of 80 GiB" in shown
    assert "host memory: 0.0 GiB while models are loaded" in shown
    with pytest.raises(SystemExit) as stop:
        plan_command.main([f"{run_folder}/model", f"{tmp_path}/nowhere"])
    assert stop.value.code == 1
    assert "error: there is no folder" in capsys.readouterr().err


def test_folder_with_files_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("mine")
    for output in ("out", "out/README.md"):
        with pytest.raises(ValueError, match="would be overwritten: give a new folder"):
            export(tmp_path / "last.ckpt", tmp_path / output)
    assert (tmp_path / "out/README.md").read_text() == "mine"
