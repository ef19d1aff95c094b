import csv
import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.export import export
from lightning_minillm.cli.train import train
from lightning_minillm.reports.plots import read_curve


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_run_leaves_everything_behind(train_overrides, tmp_path):
    metrics, objects = train(compose_config("train", ["experiment=sft", *train_overrides]))
    run = tmp_path / "run"
    assert metrics["optimizer_steps"] == 6
    assert metrics["best"]["metric"] == "val/rougeL"
    assert json.loads((run / "metrics.json").read_text()) == metrics
    assert set(objects) == {"config", "datamodule", "module", "trainer", "callbacks"}
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert (run / "config.yaml").read_text().startswith("name: sft")
    assert {file.name for file in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert [file.name for file in sorted((run / "samples").iterdir())] == [
        "val_step_000003.jsonl",
        "val_step_000006.jsonl",
    ]
    assert [step for step, _ in read_curve(run, "train/loss")] == [0, 1, 2, 3, 4, 5]
    assert AutoTokenizer.from_pretrained(run / "student").eos_token_id == 0


def test_the_exported_dtype_can_be_chosen(train_overrides, tmp_path):
    train(compose_config("train", ["experiment=sft", *train_overrides, "max_steps=1", "export.dtype=bfloat16"]))
    assert json.loads((tmp_path / "run" / "student" / "config.json").read_text())["dtype"] == "bfloat16"


def test_best_weights_are_exported(train_overrides, tmp_path, monkeypatch):
    # The loss is forced to rise after the first validation, so the best weights are the first's.
    from lightning_minillm.modules import SFTModule

    log = SFTModule.log

    def rising(self, name, value, **kwargs):
        value = torch.tensor(float(self.global_step)) if name == "val/loss" else value
        log(self, name, value, **kwargs)

    monkeypatch.setattr(SFTModule, "log", rising)
    metrics, _ = train(compose_config("train", ["experiment=init", *train_overrides]))
    assert metrics["best"] == {"metric": "val/loss", "value": 3.0, "optimizer_steps": 3}
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    exported = weights(tmp_path / "run/student")
    for name, value in exported.items():
        torch.testing.assert_close(value, best[f"student.{name}"], rtol=0, atol=0)
    assert any(not torch.equal(value, last[f"student.{name}"]) for name, value in exported.items())


@pytest.mark.parametrize("experiment", ["sft", "kd", "minillm"])
def test_stopped_run_goes_on_and_ends_like_an_uninterrupted_one(
    experiment, train_overrides, folders, tmp_path, stop_at
):
    overrides = [f"experiment={experiment}", *train_overrides]
    if experiment != "sft":
        overrides.append(f"teacher.path={folders}/teacher")
    if experiment == "minillm":
        overrides += [
            "module.rollouts.num_rollouts=8",
            "module.rollouts.ppo_epochs=2",
            "module.rollouts.sampling.max_new_tokens=4",
        ]
    stop_at(5)  # in the middle of an epoch or a phase; the last checkpoint is of step 4
    with pytest.raises(RuntimeError, match="stopped"):
        train(compose_config("train", overrides))
    assert not (tmp_path / "run/student").exists()
    stop_at(None)
    metrics, _ = train(compose_config("train", overrides))
    assert metrics["optimizer_steps"] == 6
    assert (tmp_path / "run/metrics/version_1/metrics.csv").exists()
    train(compose_config("train", [*overrides, f"output_dir={tmp_path}/whole"]))
    resumed = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=False)["state_dict"]
    whole = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=False)["state_dict"]
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_checkpoints_of_adapters_hold_them_alone_and_resume_exactly(
    train_overrides, folders, tmp_path, stop_at, make_model
):
    shutil.copytree(folders / "model", tmp_path / "base")
    words = [word for word in train_overrides if not word.startswith("student")]
    words += ["experiment=sft", "student=lora", f"student.path={tmp_path}/base", "student.model.rank=2"]
    stop_at(5)
    with pytest.raises(RuntimeError, match="stopped"):
        train(compose_config("train", words))
    stop_at(None)
    train(compose_config("train", words))
    train(compose_config("train", [*words, f"output_dir={tmp_path}/whole"]))
    checkpoints = [tmp_path / name / "checkpoints" / "last.ckpt" for name in ("run", "whole")]
    resumed, whole = (torch.load(file, weights_only=True)["state_dict"] for file in checkpoints)
    assert resumed.keys() == whole.keys()
    assert all(".lora_" in name and torch.equal(resumed[name], whole[name]) for name in whole)
    run, alone = weights(tmp_path / "run/student"), weights(tmp_path / "whole/student")
    assert all(torch.equal(run[name], alone[name]) for name in alone)

    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    export(best, tmp_path / "exported")
    again = weights(tmp_path / "exported")
    assert all(torch.equal(again[name], run[name]) for name in run)
    make_model("gpt2", seed=9).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="the model they were trained on has other weights now"):
        export(best, tmp_path / "other")


def test_resumption_under_another_configuration_is_refused(train_overrides, stop_at):
    overrides = ["experiment=sft", *train_overrides]
    stop_at(3)
    with pytest.raises(RuntimeError, match="stopped"):
        train(compose_config("train", overrides))
    with pytest.raises(ValueError, match=r"a different optimizer\.lr: use another output_dir"):
        train(compose_config("train", [*overrides, "optimizer.lr=1e-2"]))
    stop_at(None)
    metrics, _ = train(compose_config("train", [*overrides, "optimizer.lr=1e-2", "resume=never"]))
    assert metrics["optimizer_steps"] == 6


def test_resumption_with_options_of_speed_and_memory_goes_on(train_overrides, stop_at, tmp_path):
    overrides = ["experiment=sft", *train_overrides]
    stop_at(3)
    with pytest.raises(RuntimeError, match="stopped"):
        train(compose_config("train", overrides))
    stop_at(None)
    harmless = [
        "module.training.gradient_checkpointing=true",
        "validation.sampling.max_new_tokens=3",
        "eval_batch_size=2",
        f"cache_dir={tmp_path}/other_cache",
    ]
    metrics, _ = train(compose_config("train", [*overrides, *harmless]))
    assert metrics["optimizer_steps"] == 6


def test_checkpoint_of_another_architecture_is_refused(train_overrides, folders, tmp_path, make_model, make_tokenizer):
    train(compose_config("train", ["experiment=sft", *train_overrides]))
    make_model("gpt2", n_embd=24).save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    overrides = [f"student.path={tmp_path}/other", f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"]
    other_run = f"output_dir={tmp_path}/other_run"
    with pytest.raises(ValueError, match="different architecture"):
        train(compose_config("train", ["experiment=sft", *train_overrides, *overrides, other_run]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=5", "micro_batch_size=2"], "the nearest is 4 or 6"),
        (["max_length=16"], "max_length=16"),
        (["data.train=nowhere.jsonl"], "nowhere.jsonl"),
        (["ckpt_path=nowhere.ckpt"], "there is no checkpoint 'nowhere.ckpt'"),
        (["resume=maybe"], "auto or never"),
        (["student.path=./nowhere"], "there is no folder"),
        (
            ["module=minillm", "module.rollouts.sampling.teacher_mix_alpha=1.5"],
            r"teacher_mix_alpha must be a number in \[0, 1\], got 1.5",
        ),
        (["module=kd"], "needs a teacher: teacher=pretrained"),
        (["validation.sampling.teacher_mix_alpha=0.5"], "validation samples the student alone"),
        (["data.fields.response=[answer]"], "no field 'answer'"),
        (["max_prompt_length=1", "max_length=4"], "each of the 40 prompts has more than max_prompt_length=1"),
    ],
)
def test_mistakes_are_named_before_any_work(overrides, message, train_overrides, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(compose_config("train", ["experiment=sft", *train_overrides, *overrides]))
    assert not (tmp_path / "run/checkpoints").exists()


def test_different_tokenizers_name_seqkd(train_overrides, tmp_path, make_model, make_tokenizer):
    make_model("gpt2", vocab_size=40).save_pretrained(tmp_path / "other")
    make_tokenizer(words=40).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="SeqKD"):
        train(compose_config("train", ["experiment=kd", *train_overrides, f"teacher.path={tmp_path}/other"]))


def test_wandb_is_offline_and_needs_no_account(train_overrides, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    train(compose_config("train", ["experiment=sft", *train_overrides, "logger=wandb", "max_steps=2", "eval_every=2"]))
    import wandb

    wandb.finish()
    (offline,) = (tmp_path / "run/wandb").glob("offline-run-*")
    assert list(offline.glob("run-*.wandb"))
    assert (tmp_path / "run/metrics/version_0/metrics.csv").exists()


def test_command_line_names_mistakes_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "lightning_minillm.cli.train", "student=pretrained", "devices=2", "resume=never"]
    done = subprocess.run([*command, f"output_dir={tmp_path}/run"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: no value was given for student.path" in done.stderr
    assert "Traceback" not in done.stderr


def test_metrics_file_is_readable_as_csv(train_overrides, tmp_path):
    train(compose_config("train", ["experiment=sft", *train_overrides]))
    with open(tmp_path / "run/metrics/version_0/metrics.csv", newline="") as rows:
        columns = set(csv.DictReader(rows).fieldnames)
    expected = {"train/loss", "val/loss", "val/rougeL", "val/exact_match", "val/response_length"}
    assert expected | {"perf/tokens_per_second", "perf/peak_memory_gib", "train/grad_norm", "lr-AdamW"} <= columns


def chinese(folders, tmp_path):
    """The data of the other tests with references in Chinese, which the tokenizer has no word for."""
    row = {"instruction": "w1 w2", "output": "今天天气很好", "exact": True}
    file = tmp_path / "chinese.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for _ in range(6)), encoding="utf-8")
    return [f"data.validation={file}", f"data.test={file}", f"data.train={folders}/train.jsonl"]


@pytest.mark.filterwarnings("ignore:val/rougeL is 0")
def test_where_rouge_sees_nothing_the_lowest_loss_is_exported(train_overrides, folders, tmp_path):
    overrides = [
        "experiment=sft",
        *train_overrides,
        *chinese(folders, tmp_path),
        "eval_every=2",
        "validation.words=latin",
    ]
    with pytest.warns(UserWarning, match=r"val: rougeL sees no token in 6 of 6 references \(words=latin\)"):
        metrics, _ = train(compose_config("train", overrides))
    losses = dict(read_curve(tmp_path / "run", "val/loss"))
    best = metrics["best"]
    assert (best["metric"], best["value"], best["fallback"]["metric"]) == ("val/rougeL", 0, "val/loss")
    assert best["fallback"]["value"] == pytest.approx(min(losses.values()))
    assert losses[best["optimizer_steps"] - 1] == pytest.approx(min(losses.values()))
    assert "val/loss = " in (tmp_path / "run/student/README.md").read_text()


def test_words_of_the_references_script_are_the_default(train_overrides, folders, tmp_path, recwarn):
    train(compose_config("train", ["experiment=sft", *train_overrides, *chinese(folders, tmp_path)]))
    assert not [each for each in recwarn if "sees no token" in str(each.message)]
    with pytest.raises(ValueError, match="words must be auto or latin or"):
        train(compose_config("train", ["experiment=sft", *train_overrides, "validation.words=chinese", "resume=never"]))
