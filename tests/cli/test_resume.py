"""What a person does with a run folder (copy, move, delete a part, start twice) works or is refused with a reason."""

import json
import shutil

import lightning as L
import pytest
import torch
import yaml

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.evaluate import evaluate
from lightning_minillm.cli.generate import generate
from lightning_minillm.cli.train import train
from lightning_minillm.reports import run_folder as runs


class Stop(L.Callback):
    """Break a run off, as a crash would."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 5:
            raise RuntimeError("stopped")


@pytest.fixture
def overrides(train_overrides):
    return ["experiment=sft", *train_overrides]


@pytest.fixture
def stopped(overrides, tmp_path, monkeypatch):
    """A run that broke off after step 5; its last checkpoint is of step 4."""
    from lightning_minillm.cli import train as module

    build_trainer = module.build_trainer
    with monkeypatch.context() as patch:
        patch.setattr(module, "build_trainer", lambda config, sizes: build_trainer(config, sizes, (Stop(),)))
        with pytest.raises(RuntimeError, match="stopped"):
            train(compose_config("train", overrides))
    return tmp_path / "run"


def content(folder):
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def refused(overrides, message, folder, command=train, name="train"):
    """The command names the reason, and leaves every file as it is."""
    before = content(folder)
    with pytest.raises(ValueError, match=message):
        command(compose_config(name, overrides))
    assert content(folder) == before


def last_weights(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=False)["state_dict"]


@pytest.mark.parametrize("is_copy", [False, True])
def test_moved_or_copied_run_ends_like_an_uninterrupted_one(is_copy, stopped, overrides, tmp_path):
    here = tmp_path / "elsewhere/renamed"
    here.parent.mkdir()
    (shutil.copytree if is_copy else shutil.move)(stopped, here)
    before = content(stopped) if is_copy else {}
    metrics, objects = train(compose_config("train", [*overrides, f"output_dir={here}"]))
    assert metrics["optimizer_steps"] == 6
    assert objects["callbacks"]["best"].best_model_path == str(here / "checkpoints/best.ckpt")
    assert stopped.exists() == is_copy
    assert content(stopped) == before
    train(compose_config("train", [*overrides, f"output_dir={tmp_path}/whole"]))
    for key, value in last_weights(tmp_path / "whole").items():
        torch.testing.assert_close(last_weights(here)[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("is_original_gone", [False, True])
def test_copied_finished_run_keeps_its_best_weights_when_it_trains_on(
    is_original_gone, train_overrides, tmp_path, monkeypatch
):
    from lightning_minillm.modules import SFTModule

    log = SFTModule.log

    def rising(self, name, value, **kwargs):
        log(self, name, torch.tensor(float(self.global_step)) if name == "val/loss" else value, **kwargs)

    monkeypatch.setattr(SFTModule, "log", rising)
    overrides = ["experiment=init", *train_overrides]
    train(compose_config("train", overrides))
    (shutil.move if is_original_gone else shutil.copytree)(tmp_path / "run", tmp_path / "copy")
    kept = (tmp_path / "copy/student/model.safetensors").read_bytes()
    metrics, _ = train(compose_config("train", [*overrides, f"output_dir={tmp_path}/copy", "max_steps=9"]))
    assert metrics["optimizer_steps"] == 9
    assert metrics["best"] == {"metric": "val/loss", "value": 3.0, "optimizer_steps": 3}
    assert (tmp_path / "copy/student/model.safetensors").read_bytes() == kept


def test_best_weights_that_are_gone_are_chosen_anew(stopped, overrides, tmp_path):
    (stopped / "checkpoints/best.ckpt").unlink()
    with pytest.warns(UserWarning, match="best.ckpt is missing: the best weights are chosen from"):
        metrics, _ = train(compose_config("train", overrides))
    assert metrics["best"]["optimizer_steps"] == 6


def test_run_whose_configuration_is_gone_resumes_only_if_asked(stopped, overrides):
    (stopped / "config.yaml").unlink()
    refused([*overrides, "optimizer.lr=1e-2"], "contains environment.json, checkpoints.* but no config.yaml", stopped)
    metrics, _ = train(compose_config("train", [*overrides, f"ckpt_path={stopped}/checkpoints/last.ckpt"]))
    assert metrics["optimizer_steps"] == 6


def test_changed_data_are_noticed_and_moved_data_are_not(stopped, overrides, folders, tmp_path):
    shutil.copytree(folders, tmp_path / "moved")
    places = [f"data.path={tmp_path}/moved", f"student.path={tmp_path}/moved/model"]
    with open(tmp_path / "moved/train.jsonl", "a", encoding="utf-8") as file:
        file.write('{"instruction": "w1 w2", "output": "w3"}\n')
    refused([*overrides, *places], r"the data have changed .*train: 40 records then, 41 now", stopped)
    shutil.copy(folders / "train.jsonl", tmp_path / "moved/train.jsonl")
    metrics, _ = train(compose_config("train", [*overrides, *places]))
    assert metrics["optimizer_steps"] == 6


def test_difference_is_shown_with_both_values(stopped, overrides):
    refused([*overrides, "optimizer.lr=1e-2"], r"optimizer.lr: 0.001 in that run, 0.01 here", stopped)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("ckpt_path=RUN/checkpoints/best.ckpt", "contains weights only.*resume from last.ckpt"),
        ("ckpt_path=RUN/config.yaml", "is not a complete checkpoint"),
        ("data.train=./nowhere.jsonl", "nowhere.jsonl"),
        ("ckpt_path=OTHER", "different architecture"),
        ("student.path=./nowhere", "there is no folder"),
    ],
)
def test_start_that_fails_leaves_the_run_as_it_is(added, message, stopped, overrides, tmp_path):
    if "OTHER" in added:
        checkpoint = torch.load(stopped / "checkpoints/last.ckpt", weights_only=False)
        checkpoint["state_dict"].pop(next(iter(checkpoint["state_dict"])))
        torch.save(checkpoint, tmp_path / "other.ckpt")
        (stopped / "checkpoints/last.ckpt").unlink()
    added = added.replace("RUN", str(stopped)).replace("OTHER", f"{tmp_path}/other.ckpt")
    before = {file: data for file, data in content(stopped).items() if "metrics/version" not in str(file)}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(compose_config("train", [*overrides, added, *(["resume=never"] if "ckpt" not in added else [])]))
    after = content(stopped)
    assert {file: after[file] for file in before} == before


def test_branch_of_another_run_resumes_from_its_own_checkpoint(stopped, overrides, tmp_path):
    branch = [*overrides, f"ckpt_path={stopped}/checkpoints/last.ckpt", f"output_dir={tmp_path}/branch"]
    train(compose_config("train", branch))
    before = content(stopped)
    _, objects = train(compose_config("train", [*branch, "max_steps=8"]))
    assert objects["trainer"].ckpt_path == str(tmp_path / "branch/checkpoints/last.ckpt")
    assert content(stopped) == before


def test_finished_run_without_a_checkpoint_is_not_trained_again_unasked(overrides, tmp_path):
    overrides = [*overrides, "callbacks.last=null"]
    train(compose_config("train", overrides))
    message = "contains a student trained with a different optimizer.lr, and no checkpoints/last.ckpt"
    refused([*overrides, "optimizer.lr=1e-2"], message, tmp_path)
    assert train(compose_config("train", overrides))[0]["optimizer_steps"] == 6


def test_input_is_not_overwritten(stopped, overrides, tmp_path, folders):
    shutil.copytree(folders / "model", stopped / "student")
    refused([*overrides, f"student.path={stopped}/student"], r"student.path=.* is overwritten by a run", stopped)


def test_folder_of_another_command_is_refused(stopped, overrides, data_overrides, folders, tmp_path):
    of_model = [*data_overrides, f"model={folders}/model", "trainer.accelerator=cpu"]
    why = "contains a run of minillm-train, which minillm-{} would overwrite: use another output_dir"
    refused(of_model, why.format("evaluate"), stopped, evaluate, "evaluate")
    of_model = [word for word in of_model if not word.startswith("eval_batch_size")]
    refused(of_model, why.format("generate"), stopped, generate, "generate")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.yaml", "contains a config.yaml that no run wrote"),
        ("student/README.md", "contains student, which minillm-train would overwrite"),
        ("metrics.json", "contains metrics.json"),
    ],
)
def test_files_of_the_user_are_not_overwritten(name, message, overrides, tmp_path):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine: true")
    refused(overrides, message, tmp_path / "run")
    refused([*overrides, "resume=never"], message, tmp_path / "run")


def test_other_files_of_the_user_stay(overrides, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/README.md").write_text("mine")
    train(compose_config("train", overrides))
    assert (tmp_path / "run/README.md").read_text() == "mine"


def test_two_runs_in_one_folder_are_refused(overrides, tmp_path):
    with runs.claimed(tmp_path / "run"):
        owner = json.loads((tmp_path / "run/.lock.json").read_text())
        message = rf"is in use by process {owner['pid']} on {owner['host']} since"
        refused(overrides, message, tmp_path / "run")
    train(compose_config("train", [*overrides, "max_steps=1"]))
    assert not (tmp_path / "run/.lock.json").exists()


def test_place_where_nothing_can_be_written_is_named_first(overrides, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/run"):
        with pytest.raises(ValueError, match=r"output_dir '.*file.*' cannot be made \((File exists|Not a dir)"):
            train(compose_config("train", [*overrides, f"output_dir={tmp_path}/{place}"]))
    assert (tmp_path / "file").read_text() == "mine"


def test_run_of_an_earlier_version_is_compared_by_its_configuration(stopped, overrides):
    (stopped / "identity.json").unlink()
    refused([*overrides, "optimizer.lr=1e-2"], "a different optimizer.lr", stopped)
    assert train(compose_config("train", overrides))[0]["optimizer_steps"] == 6


def test_folder_says_with_which_settings_and_contents_it_was_started(stopped, overrides):
    config = yaml.safe_load((stopped / "config.yaml").read_text())
    identity = json.loads((stopped / "identity.json").read_text())
    assert identity["optimizer.lr"] == config["optimizer"]["lr"]
    assert identity["data.path"] == "<data>"  # its content is in the checkpoint
    assert identity["student.model.path"] == identity["student.tokenizer.path"]
    assert identity["student.model.path"].startswith("content ")


def test_changed_student_is_noticed(stopped, overrides, folders, tmp_path, make_model):
    shutil.copytree(folders / "model", tmp_path / "model")
    make_model("gpt2", seed=5).save_pretrained(tmp_path / "model")
    refused([*overrides, f"student.path={tmp_path}/model"], "a different student.model.path, student.path", stopped)
