import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.errors import RecipeError
from lightning_minillm.cli.recipe.command import check_given_models, compose_stages, read_config, recipe
from lightning_minillm.cli.recipe.stages import COMMANDS, Stage
from lightning_minillm.reports import run_folder as runs

STEPS = ["recipe.steps.teacher=4", "recipe.steps.init=2", "recipe.steps.minillm=2"]
QUICK = [
    *STEPS,
    'recipe.common=["data=synthetic","data.path=${quote:${shared_dir}/data}","data.prepare.sizes={train: 120, '
    'validation: 8, test: 8, corpus: 50, vocab_size: 300}","max_length=96","max_prompt_length=64"]',
    "recipe.evaluate.models=[teacher,minillm]",
]
TRAINED = ["teacher", "init", "sft", "minillm", "kd", "seqkd"]


def run(folder, *overrides, workers=1):
    cfg = compose_config(
        "recipe", ["recipe=smoke", f"output_dir={folder}/run", f"workers={workers}", *QUICK, *overrides]
    )
    return recipe(cfg)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the recipe has run; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("recipe")
    results, objects = run(folder)
    assert objects["ran"] == [*objects["stages"]]
    return folder, results


@pytest.fixture
def copied(finished, tmp_path):
    """A copy elsewhere: what a recipe keeps does not depend on where it lies."""
    shutil.copytree(finished[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_models_that_no_stage_makes_are_checked_first(tmp_path, make_model):
    def stage(path):
        node = {"path": path, "model": {"_target_": "lightning_minillm.models.load_causal_lm", "_partial_": True}}
        node["model"]["path"] = path
        return Stage("kd", "train", tmp_path / "kd", (), {"student": node, "teacher": {"model": None}})

    check_given_models({"kd": stage(str(tmp_path / "kd" / "student"))})
    make_model("gpt2").save_pretrained(tmp_path / "model")
    check_given_models({"kd": stage(str(tmp_path / "model"))})
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="contains no weights"):
        check_given_models({"kd": stage(str(tmp_path / "model"))})


def test_results_are_written(finished):
    folder, results = finished
    stored = json.loads((folder / "run/results.json").read_text())
    assert stored["models"] == results
    assert stored["sampling_seeds"] == [10, 20]
    assert stored["seed"] == 0
    assert set(results) == {"teacher", "MiniLLM"}
    assert {"rougeL", "exact_match", "reverse_kl", "response_length"} <= set(results["MiniLLM"])
    assert len((folder / "run/results.csv").read_text().splitlines()) == 3
    for plot in ("curves.png", "bars.png"):
        assert (folder / "run" / plot).read_bytes().startswith(b"\x89PNG")
    text = (folder / "run/report.md").read_text()
    for name in ("exposure_bias_excess_error", "rougeL_by_length"):
        assert f"pictures/{name}.png" in text
        assert (folder / f"run/pictures/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert {"dist4", "repetition", "exposure_bias/excess_error"} <= set(results["MiniLLM"])
    assert any(name.startswith("rougeL_") for name in results["MiniLLM"])
    assert set(stored["pictures"]["exposure_bias/excess_error"]["curves"]) == {"MiniLLM"}
    samples = (folder / "run/samples.md").read_text()
    assert "| *references* |" in samples
    assert "| MiniLLM |" in samples
    assert "| MiniLLM |" in (folder / "run/table.md").read_text()


def test_every_student_is_a_hugging_face_folder(finished):
    folder, _ = finished
    for name in TRAINED:
        place = folder / ("shared" if name == "teacher" else "run") / name / "student"
        model = AutoModelForCausalLM.from_pretrained(place)
        assert model.config.n_embd == (96 if name == "teacher" else 48)


def test_students_take_equally_many_steps(finished):
    folder, _ = finished
    steps = {
        name: json.loads((folder / "run" / name / "metrics.json").read_text())["optimizer_steps"]
        for name in TRAINED[1:]
    }
    assert steps["sft"] == steps["kd"] == steps["seqkd"] == steps["init"] + steps["minillm"] == 4


def test_minillm_starts_from_the_initial_student_chosen_by_loss(finished):
    folder, _ = finished
    metrics = json.loads((folder / "run/init/metrics.json").read_text())
    assert metrics["best"]["metric"] == "val/loss"
    config = (folder / "run/minillm/config.yaml").read_text()
    assert f"path: {folder}/run/init/student" in config


def test_nothing_is_done_twice(copied):
    results, objects = run(copied)
    assert objects["ran"] == []
    assert results == json.loads((copied / "run/results.json").read_text())["models"]


def test_only_what_a_change_concerns_runs_again(copied):
    _, objects = run(copied, 'recipe.stages.minillm.extra=["loss.pg_coef=0.5"]')
    assert objects["ran"] == ["minillm", "evaluate_minillm"]
    _, objects = run(copied, 'recipe.stages.minillm.extra=["loss.pg_coef=0.5"]', "redo=[generate]", "until=generate")
    assert objects["ran"] == ["generate"]


def test_other_seed_shares_teacher_and_its_responses(copied, capsys):
    first = run(copied)[0]["MiniLLM"]["rougeL"]["mean"]
    assert "training seeds" not in capsys.readouterr().out
    results, objects = run(copied, "seed=1", f"output_dir={copied}/other")
    assert "2 training seeds" in capsys.readouterr().out
    both = (first + results["MiniLLM"]["rougeL"]["mean"]) / 2
    assert f"| MiniLLM | {both:.2f}" in (copied / "shared/training_seeds.md").read_text()
    assert not {"teacher", "generate"} & set(objects["ran"])
    assert {"init", "sft", "kd", "seqkd", "minillm"} <= set(objects["ran"])


def test_changed_data_reach_every_stage(copied):
    _, objects = run(copied, 'recipe.extra=["data.prepare.sizes.train=130"]', "until=init")
    assert objects["ran"] == ["init"]


def test_it_stops_after_the_chosen_stages_and_what_they_need(copied):
    _, objects = run(copied, "redo=[teacher,init,sft,generate]", "until=[generate,init]")
    assert objects["ran"] == ["teacher", "init", "generate"]


def test_stopped_recipe_goes_on_where_it_was(copied, monkeypatch):
    import lightning_minillm.cli.train as module

    build_trainer = module.build_trainer
    redo = ["redo=[minillm]", 'recipe.stages.minillm.extra=["max_steps=6","checkpoint_every=1"]']

    class Crash(module_callback()):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3:
                raise RuntimeError("the machine went away")

    monkeypatch.setattr(module, "build_trainer", lambda config, sizes: build_trainer(config, sizes, (Crash(),)))
    with pytest.raises(RecipeError, match="stage 'minillm' failed: the machine went away"):
        run(copied, *redo)
    state = json.loads((copied / "run/minillm/stage.json").read_text())
    assert state["finished"] is False
    monkeypatch.setattr(module, "build_trainer", build_trainer)
    started = []
    fit = module.find_checkpoint
    monkeypatch.setattr(module, "find_checkpoint", lambda config: started.append(fit(config)) or started[-1])
    _, objects = run(copied, redo[1])
    assert objects["ran"] == ["minillm", "evaluate_minillm"]
    assert started == [f"{copied}/run/minillm/checkpoints/last.ckpt"]
    assert json.loads((copied / "run/minillm/metrics.json").read_text())["optimizer_steps"] == 6


def module_callback():
    from lightning.pytorch.callbacks import Callback

    return Callback


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=dolly_scratch"], "needs data.path=... and data.tokenizer=..."),
        (["until=nothing"], "until names 'nothing'"),
        (["until=[init,nothing]"], "until names 'nothing'"),
        (["until=[]"], "until names no stage"),
        (["redo=[nothing]"], "redo names 'nothing'"),
        (["workers=0"], "workers must be a whole number of at least 1, or auto, got 0"),
        (["recipe.evaluate.models=[generate]"], "'generate', which is not a training stage"),
        (["recipe.stages.sft.command=bake"], f"must be one of .*{COMMANDS[0]}"),
        (["recipe.stages.sft.needs=[seqkd]"], "needs seqkd, which must come before it"),
        (["+recipe.typo=1"], "nothing reads typo in recipe"),
        (['recipe.stages.sft.extra=["optimizer.typo=1"]'], r"recipe.stages.sft: .*optimizer.typo"),
    ],
)
def test_mistakes_are_named_before_any_stage(overrides, message, tmp_path):
    base = [o for o in ("recipe=smoke",) if not any(x.startswith("recipe=") for x in overrides)]
    cfg = compose_config("recipe", [*base, f"output_dir={tmp_path}/run", *overrides])
    with pytest.raises(ValueError, match=message):
        recipe(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_folders_of_the_user_are_not_emptied(workers, tmp_path):
    for name in ("teacher", "init", "minillm"):
        (tmp_path / f"runs/{name}/student").mkdir(parents=True)
        (tmp_path / f"runs/{name}/note.txt").write_text(name)
    overrides = [f"output_dir={tmp_path}/runs", f"shared_dir={tmp_path}/runs", "until=[minillm]"]
    with pytest.raises(
        ValueError, match=r"/runs/teacher' is the folder of stage 'teacher', but contains files that no"
    ):
        run(tmp_path, *overrides, workers=workers)
    assert sorted(item.name for item in (tmp_path / "runs").iterdir()) == ["init", "minillm", "teacher"]
    assert all((tmp_path / f"runs/{name}/note.txt").read_text() == name for name in ("teacher", "init", "minillm"))


def test_folder_of_a_run_is_no_place_for_a_recipe(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("module: {a: 1}\nmax_steps: 3\n")
    with pytest.raises(ValueError, match="contains a run of minillm-train, which minillm-recipe would overwrite"):
        run(tmp_path)


def test_two_recipes_in_one_place_are_refused(tmp_path):
    with runs.claimed(tmp_path / "run"), pytest.raises(ValueError, match="is in use by process"):
        run(tmp_path)


def test_other_settings_in_an_old_folder_lose_nothing(copied, capsys):
    before = (copied / "run/minillm/student/model.safetensors").read_bytes()
    report = (copied / "run/results.json").read_bytes()
    with pytest.raises(RecipeError, match="stage 'minillm' failed"):
        run(copied, 'recipe.stages.minillm.extra=["ckpt_path=./nowhere.ckpt"]')
    assert "the report of different settings (recipe) is moved to" in capsys.readouterr().out
    (kept,) = (copied / "run/set_aside").glob("minillm-*")
    assert (kept / "student/model.safetensors").read_bytes() == before
    assert (copied / "run/set_aside/report/results.json").read_bytes() == report
    results, objects = run(copied)  # back to the settings that were right
    assert objects["ran"] == []
    assert (copied / "run/minillm/student/model.safetensors").read_bytes() == before
    assert results == json.loads(report)["models"]


def test_paths_with_odd_characters(tmp_path):
    folder = tmp_path / "it's, {odd}=[folder]"
    folder.mkdir()
    quoted = "'" + str(folder / "run").replace("'", "\\'") + "'"
    cfg = compose_config("recipe", ["recipe=smoke", f"output_dir={quoted}"])
    stages = compose_stages(read_config(cfg), shown_progress=True)
    assert stages["minillm"].config["output_dir"] == str(folder / "run/minillm")


def test_stages_run_at_once_in_processes_of_their_own(tmp_path):
    until = [
        "until=seqkd",
        "recipe.stages.seqkd.needs=[init,sft]",
        'recipe.stages.seqkd.extra=["data.train=./nowhere.jsonl"]',
    ]
    with pytest.raises(RecipeError, match=r"stage 'seqkd' failed:(.|\n)*nowhere.jsonl(.|\n)*log.txt"):
        run(tmp_path, *until, workers=2)
    for name in ("init", "sft"):
        assert json.loads((tmp_path / f"run/{name}/stage.json").read_text())["finished"]
        assert "optimiser steps" in (tmp_path / f"run/{name}/log.txt").read_text()
        progress = json.loads((tmp_path / f"run/{name}/progress.json").read_text())
        assert progress["step"] == progress["max_steps"]
    _, objects = run(tmp_path, "until=sft", workers=2)
    assert objects["ran"] == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_stages_on_several_devices_end(workers, tmp_path):
    wide = 'recipe.train_extra=["devices=2","strategy=ddp","trainer.accelerator=cpu"]'
    _, objects = run(tmp_path, wide, "until=[minillm]", workers=workers)
    assert objects["ran"] == ["teacher", "init", "minillm"]
    for folder in ("shared/teacher", "run/init", "run/minillm"):
        assert json.loads((tmp_path / folder / "stage.json").read_text())["finished"]
        assert (tmp_path / folder / "student/model.safetensors").exists()
