"""Every cell of the paper's matrix has the values of docs/paper_values.csv, which names the source of each."""

import csv
import re
from functools import cache
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from lightning_minillm.cli import commands, train
from lightning_minillm.cli.config import build, compose_config, to_plain
from lightning_minillm.cli.recipe import command as recipe

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "conf" / "paper"
with open(ROOT / "docs" / "paper_values.csv", encoding="utf-8", newline="") as file:
    ROWS = {row["experiment"]: row for row in csv.DictReader(file)}
SIZES = sorted(file.stem for file in (PAPER / "size").glob("*.yaml"))
METHODS = sorted(file.stem for file in (PAPER / "method").glob("*.yaml"))
# Values that a user has to give where no published model or text is the default.
GIVEN = {"data.path": "d", "data.datamodule.lm_corpus.path": "c", "student.path": "s", "teacher.path": "t"}


def words_of(name):
    """Return the overrides that choose a cell, by its name in the table."""
    size, _, method = name.rpartition("_")
    return [f"paper/size={size}", f"paper/method={method}"]


@cache
def compose(name, *overrides):
    """Compose a cell, giving only the values that it leaves open."""
    cfg = compose_config("train", [*words_of(name), *overrides])
    for key, value in GIVEN.items():
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(cfg, parent)
        if node is not None and OmegaConf.is_missing(node, last):
            OmegaConf.update(cfg, key, value)
    return to_plain(cfg, train.KEYS)


def _numbers(text):
    return [float(number) for number in text.split()]


@pytest.mark.parametrize("size", SIZES)
def test_cells_are_those_of_the_table(size):
    cell = OmegaConf.load(PAPER / "size" / f"{size}.yaml").paper
    assert cell.size == size
    assert sorted(cell.methods) == sorted(name.rpartition("_")[2] for name in ROWS if name.startswith(f"{size}_"))


def test_every_row_of_the_table_is_a_cell():
    assert {name.rpartition("_")[0] for name in ROWS} == set(SIZES)
    assert {name.rpartition("_")[2] for name in ROWS} == set(METHODS)


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
def test_everything_except_the_models_is_made(name):
    config = compose(name)
    for group in ("optimizer", "scheduler", "loss", "module"):
        assert callable(build(config[group]))
    has_teacher = not name.endswith(("_teacher", "_init", "_sft"))
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


@pytest.mark.parametrize(("size", "loss"), [("120m", "Forward"), ("340m", "Reverse"), ("760m", "Reverse")])
def test_distillm_has_the_loss_of_its_size(size, loss):
    assert compose(f"gpt2_{size}_distillm")["loss"]["_target_"].endswith(f".Skewed{loss}KL")


@pytest.mark.parametrize("name", sorted(ROWS))
def test_no_cell_adds_a_begin_token(name):
    """The official code tokenises without special tokens, also for OPT and LLaMA, whose tokenizers would add one."""
    assert compose(name)["data"]["datamodule"]["add_bos"] is False


def test_the_command_line_overrides_a_cell():
    config = compose("gpt2_120m_distillm", "loss=jsd", "scheduler=constant", "optimizer.lr=0.5", "student.path=x")
    assert config["loss"]["_target_"].endswith(".GeneralizedJSD")
    assert "constant" in config["scheduler"]["_target_"]
    assert (config["optimizer"]["lr"], config["student"]["model"]["path"]) == (0.5, "x")


def test_seqkd_never_trains_on_the_references():
    assert compose("gpt2_120m_seqkd")["data"]["train"] == "d/responses.jsonl"


def test_steps_follow_the_batch_size():
    assert compose("gpt2_120m_sft", "batch_size=64")["max_steps"] == 20 * (11435 // 64)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["paper/size=opt_1.3b", "paper/method=gkd"],
            "paper/size=opt_1.3b has no method 'gkd'; choose paper/method=teacher|init|sft|kd|seqkd|minillm",
        ),
        (["paper/size=gpt2_120m"], "paper/size=gpt2_120m needs a method; choose paper/method=teacher|init|"),
        (["paper/method=kd"], "paper/method=kd needs a size, such as paper/size=gpt2_120m"),
    ],
)
def test_what_is_no_cell_is_an_error(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compose_config("train", words)


def test_unknown_sizes_and_methods_name_the_known_ones():
    for group, names in (("size", SIZES), ("method", METHODS)):
        with pytest.raises(MissingConfigException) as error:
            compose_config("train", ["paper/size=gpt2_120m", "paper/method=kd", f"paper/{group}=no_such"])
        assert all(name in str(error.value) for name in names)


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    """Run the command line with a task that only notes the name, seed and student of each job."""

    def run(*words):
        seen = []
        monkeypatch.setattr("sys.argv", ["minillm-train", *words, "data.path=d", f"hydra.sweep.dir={tmp_path}"])

        def note(cfg):
            seen.append((cfg.name, cfg.seed, cfg.student.path))

        monkeypatch.setattr(commands, "resolve_name", lambda target: note)
        monkeypatch.setattr(commands, "quiet_libraries", lambda: None)
        monkeypatch.setattr(commands, "to_plain", lambda cfg, keys: {"output_dir": "."})  # not every value is given
        commands.train()
        return seen

    return run


def test_the_matrix_can_be_swept(jobs):
    assert jobs("-m", "paper/size=gpt2_120m,gpt2_340m", "paper/method=kd,minillm", "seed=1,2") == [
        (f"{size}_{method}", seed, ROWS[f"{size}_{method}"]["student"])
        for size in ("gpt2_120m", "gpt2_340m")
        for method in ("kd", "minillm")
        for seed in (1, 2)
    ]


def test_a_sweep_that_leaves_the_matrix_is_an_error(jobs, capsys):
    with pytest.raises(SystemExit):
        jobs("-m", "paper/size=gpt2_120m,llama_7b", "paper/method=gkd")
    assert "error: paper/size=llama_7b has no method 'gkd'; choose" in capsys.readouterr().err


@pytest.mark.parametrize("size", SIZES)
def test_recipe_trains_the_cells_of_its_size(size, tmp_path):
    words = ["recipe=paper", f"recipe.size={size}", "data.path=d", "data.corpus=c", f"output_dir={tmp_path}/seed_0"]
    config = recipe.read_config(compose_config("recipe", words))
    assert config["recipe"]["name"] == size
    stages = recipe.compose_stages(config, shown_progress=True)
    assert all(stage.config["data"]["datamodule"]["add_bos"] is False for stage in stages.values())
    trained = ["teacher", "init", "sft", "kd", "seqkd", "minillm"]
    assert [stage for stage in stages if not stage.startswith("evaluate")] == [*trained[:4], "generate", *trained[4:]]
    for stage in trained:
        config, row = stages[stage].config, ROWS[f"{size}_{stage}"]
        assert (config["optimizer"]["lr"], config["max_steps"]) == (float(row["learning_rate"]), int(row["steps"]))
        if stage != "minillm":
            assert config["student"]["path"] == row["student"]
    assert stages["minillm"].config["student"]["path"] == str(tmp_path / "seed_0" / "init" / "student")
    assert stages["minillm"].config["teacher"]["path"] == str(tmp_path / "shared" / "teacher" / "student")
    assert stages["seqkd"].config["data"]["train"] == str(tmp_path / "shared" / "generate" / "responses.jsonl")
    assert stages["evaluate_minillm"].config["seeds"] == [10, 20, 30, 40, 50]


def test_recipe_asks_for_data_and_corpus(tmp_path):
    config = to_plain(compose_config("recipe", ["recipe=paper", f"output_dir={tmp_path}"]), recipe.KEYS)
    with pytest.raises(ValueError, match=r"needs data\.path=\.\.\. and data\.corpus=\.\.\."):
        recipe.compose_stages(config, shown_progress=True)
