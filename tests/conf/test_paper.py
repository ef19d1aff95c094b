"""The paper's experiments hold the values of docs/paper_values.csv, which names the source of each."""

import csv
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lightning_minillm.cli import train
from lightning_minillm.cli.config import build, compose_config, to_plain
from lightning_minillm.cli.recipe import command as recipe

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "conf" / "experiment" / "paper"
with open(ROOT / "docs" / "paper_values.csv", encoding="utf-8", newline="") as file:
    ROWS = {row["experiment"]: row for row in csv.DictReader(file)}
RECIPES = sorted(file.stem for file in (ROOT / "conf" / "recipe" / "paper").glob("*.yaml"))
# What has to be given, where no published model or text can stand in its place.
GIVEN = {"data.path": "d", "data.datamodule.lm_corpus.path": "c", "student.path": "s", "teacher.path": "t"}


@cache
def compose(name, *overrides):
    """Compose a paper experiment, giving only what it leaves open."""
    cfg = compose_config("train", [f"experiment=paper/{name}", *overrides])
    for key, value in GIVEN.items():
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(cfg, parent)
        if node is not None and OmegaConf.is_missing(node, last):
            OmegaConf.update(cfg, key, value)
    return to_plain(cfg, train.KEYS)


def _numbers(text):
    return [float(number) for number in text.split()]


def test_the_table_and_the_folder_hold_the_same_experiments():
    assert sorted(ROWS) == sorted(file.stem for file in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_values_are_those_of_the_table(name):
    row, config = ROWS[name], compose(name)
    assert config["name"] == name
    assert config["student"]["path"] == (row["student"] or "s")
    assert config["optimizer"]["lr"] == float(row["learning_rate"])
    assert config["optimizer"]["weight_decay"] == float(row["weight_decay"])
    assert config["optimizer"]["betas"] == _numbers(row["betas"])
    assert config["batch_size"] == int(row["batch_size"])
    assert config["max_steps"] == int(row["steps"])
    assert config["scheduler"]["num_warmup_steps"] == int(row["warmup"])
    assert row["schedule"] in config["scheduler"]["_target_"]
    assert [config["monitor"], config["monitor_mode"]] == row["chosen_by"].split()
    assert (config["max_length"], config["max_prompt_length"]) == (512, 256)
    assert config["trainer"]["gradient_clip_val"] == 1.0
    if row["epochs"]:
        assert config["max_steps"] == int(row["epochs"]) * config["eval_every"]
    ratio = config["module"].get("pretraining", config)["loss"].get("kd_ratio")
    assert ratio == (float(row["kd_ratio"]) if row["kd_ratio"] else None)
    assert config["module"].get("rollouts", {}).get("num_rollouts") == (
        int(row["rollouts"]) if row["rollouts"] else None
    )


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_part_but_the_models_is_made(name):
    config = compose(name)
    for group in ("optimizer", "scheduler", "loss", "module"):
        assert callable(build(config[group]))
    has_teacher = name.endswith(("kd", "_minillm", "_distillm"))
    assert (config["teacher"]["model"] is not None) == has_teacher


def test_minillm_is_the_official_codes():
    config = compose("gpt2_120m_minillm")
    rollouts, advantages = config["module"]["rollouts"], config["advantages"]
    assert (rollouts["ppo_epochs"], rollouts["sampling"]["teacher_mix_alpha"]) == (4, 0.2)
    assert config["module"]["pretraining"]["coef"] == 1.0
    assert config["loss"]["clip_range"] == 0.2
    assert (advantages["gamma"], advantages["reward_scaling"], advantages["reward_clip"]) == (0.95, 0.5, 100.0)
    assert rollouts["sampling"]["max_new_tokens"] == config["max_length"] - config["max_prompt_length"]
    assert config["eval_every"] == 100


def test_seqkd_never_trains_on_the_references():
    assert compose("gpt2_120m_seqkd")["data"]["train"] == "d/responses.jsonl"


def test_steps_follow_the_batch_size():
    assert compose("gpt2_120m_sft", "batch_size=64")["max_steps"] == 20 * (11435 // 64)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_names_the_models_of_its_size(name):
    node = compose_config("recipe", [f"recipe=paper/{name}"]).recipe
    assert node.name == name
    assert node.models.student == ROWS[f"{name}_sft"]["student"]
    assert node.models.teacher == ROWS[f"{name}_teacher"]["student"]


@pytest.mark.parametrize("name", ["gpt2_120m", "qwen2.5_1.5b"])
def test_recipe_runs_the_experiments_of_its_size(name, tmp_path):
    words = [f"recipe=paper/{name}", "data.path=d", "data.corpus=c", f"output_dir={tmp_path}/seed_0"]
    config = recipe.read_config(compose_config("recipe", words))
    stages = recipe.compose_stages(config, shown_progress=True)
    trained = ["teacher", "init", "sft", "kd", "seqkd", "minillm"]
    assert [stage for stage in stages if not stage.startswith("evaluate")] == [*trained[:4], "generate", *trained[4:]]
    for stage in trained:
        config, row = stages[stage].config, ROWS[f"{name}_{stage}"]
        assert (config["optimizer"]["lr"], config["max_steps"]) == (float(row["learning_rate"]), int(row["steps"]))
        if stage != "minillm":
            assert config["student"]["path"] == row["student"]
    assert stages["minillm"].config["student"]["path"] == str(tmp_path / "seed_0" / "init" / "student")
    assert stages["minillm"].config["teacher"]["path"] == str(tmp_path / "shared" / "teacher" / "student")
    assert stages["seqkd"].config["data"]["train"] == str(tmp_path / "shared" / "generate" / "responses.jsonl")
    assert stages["evaluate_minillm"].config["seeds"] == [10, 20, 30, 40, 50]


def test_recipe_asks_for_data_and_corpus(tmp_path):
    config = to_plain(compose_config("recipe", ["recipe=paper/gpt2_120m", f"output_dir={tmp_path}"]), recipe.KEYS)
    with pytest.raises(ValueError, match=r"needs data\.path=\.\.\. and data\.corpus=\.\.\."):
        recipe.compose_stages(config, shown_progress=True)
