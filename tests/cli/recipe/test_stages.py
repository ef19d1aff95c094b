import sys
from pathlib import Path

import pytest

from lightning_minillm.cli.recipe import stages as module
from lightning_minillm.cli.recipe.scheduler import available_cores, choose_workers
from lightning_minillm.cli.recipe.stages import (
    Stage,
    data_files,
    digest_data,
    fingerprints_of,
    is_finished,
    is_stale,
    redo,
    run_stage,
)


def make_stages(root, **config):
    first = Stage("first", "train", root / "first", (), {"seed": 0, "output_dir": f"{root}/first", "callbacks": None})
    second = Stage(
        "second", "train", root / "second", ("first",), {"seed": 0, "path": f"{root}/first/student", **config}
    )
    return {"first": first, "second": second}


def prints(root, data="d", **config):
    return fingerprints_of(make_stages(root, **config), data, {"output": root})


def test_fingerprint_follows_every_input():
    base = prints(Path("/a"))["second"]
    assert prints(Path("/a"))["second"] == base
    assert prints(Path("/somewhere/else"))["second"] == base  # a moved recipe keeps its stages
    assert prints(Path("/a"), data="other")["second"] != base
    assert prints(Path("/a"), seed=1)["second"] != base
    assert prints(Path("/a"), callbacks={"best": {"monitor": "val/loss"}})["second"] != base


def test_fingerprint_leaves_out_what_is_only_shown():
    base = prints(Path("/a"), callbacks={"best": 1})["second"]
    assert prints(Path("/a"), callbacks={"best": 1, "progress": 2}, logger={"csv": 1}, name="x")["second"] == base


def test_fingerprint_follows_the_stages_it_needs(tmp_path, monkeypatch):
    before = prints(tmp_path)
    stages = make_stages(tmp_path)
    stages["first"].config["seed"] = 1
    after = fingerprints_of(stages, "d", {"output": tmp_path})
    assert before["second"] != after["second"]
    monkeypatch.setattr(module.lightning_minillm, "__version__", "9.9.9")
    assert prints(tmp_path)["first"] != before["first"]


@pytest.fixture
def calls(monkeypatch):
    """Replace the commands by one that leaves a file and fails when asked to."""
    seen = []

    def command(config):
        seen.append(config)
        folder = Path(config["output_dir"])
        (folder / "result.txt").write_text(str(config["seed"]))
        if config["seed"] == "fail":
            raise ValueError("failed")

    monkeypatch.setattr(module, "resolve_name", lambda name: command)
    return seen


def stage(tmp_path, seed):
    return Stage("s", "train", tmp_path / "s", (), {"output_dir": str(tmp_path / "s"), "seed": seed})


def test_finished_stage_is_kept(tmp_path, calls):
    assert run_stage(stage(tmp_path, 0), "fingerprint") is True
    assert run_stage(stage(tmp_path, 0), "fingerprint") is False
    assert is_finished(stage(tmp_path, 0), "fingerprint")
    assert len(calls) == 1


def test_stopped_stage_resumes_in_its_folder(tmp_path, calls):
    for _ in range(2):
        with pytest.raises(ValueError, match="failed"):
            run_stage(stage(tmp_path, "fail"), "one")
        assert not is_finished(stage(tmp_path, "fail"), "one")
        (tmp_path / "s/checkpoint").touch()
    assert not (tmp_path / "set_aside").exists()


def test_changed_stage_starts_from_an_empty_folder_and_its_result_is_set_aside(tmp_path, calls, capsys):
    run_stage(stage(tmp_path, 0), "one")
    (tmp_path / "s/checkpoints").mkdir()
    (tmp_path / "s/log.txt").write_text("open in the child")
    with pytest.raises(ValueError, match="failed"):  # settings that cannot work
        run_stage(stage(tmp_path, "fail"), "two")
    assert f"is moved to {tmp_path}/set_aside/s-one" in capsys.readouterr().out
    assert (tmp_path / "set_aside/s-one/result.txt").read_text() == "0"
    assert (tmp_path / "set_aside/s-one/checkpoints").is_dir()
    assert {item.name for item in (tmp_path / "s").iterdir()} == {"log.txt", "stage.json", "result.txt"}


def test_result_that_was_set_aside_returns_with_its_inputs(tmp_path, calls):
    run_stage(stage(tmp_path, 0), "one")
    run_stage(stage(tmp_path, 1), "two")
    assert run_stage(stage(tmp_path, 0), "one") is False
    assert (tmp_path / "s/result.txt").read_text() == "0"
    assert [item.name for item in (tmp_path / "set_aside").iterdir()] == ["s-two"]


def test_stage_to_be_redone_runs_again_and_keeps_the_earlier_result(tmp_path, calls):
    for _ in range(2):
        run_stage(stage(tmp_path, 0), "one")
        redo(stage(tmp_path, 0))
        assert is_stale(stage(tmp_path, 0), "one")
        assert not is_finished(stage(tmp_path, 0), "one")
    assert run_stage(stage(tmp_path, 0), "one") is True
    assert len(calls) == 3
    assert {item.name for item in (tmp_path / "set_aside").iterdir()} == {"s-one", "s-one_2"}


@pytest.mark.parametrize("state", [None, "[1]", '{"stage": "of my own"}'])
def test_folder_that_no_recipe_wrote_is_refused(state, tmp_path, calls):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/note.txt").write_text("mine")
    if state:
        (tmp_path / "s/stage.json").write_text(state)
    with pytest.raises(ValueError, match=r"/s' is the folder of stage 's', but contains files that no recipe wrote"):
        run_stage(stage(tmp_path, 0), "one")
    redo(stage(tmp_path, 0))
    assert (tmp_path / "s/note.txt").read_text() == "mine"
    assert not calls
    (tmp_path / "s/note.txt").rename(tmp_path / "s/log.txt")  # which a stage that was killed at once leaves
    if state is None:
        assert run_stage(stage(tmp_path, 0), "one")


def test_changed_stage_gets_a_new_tracking_id(tmp_path, calls):
    run_stage(stage(tmp_path, 0), "one")
    tracked = stage(tmp_path, 1)
    tracked.config["logger"] = {"csv": {}, "wandb": {"id": "of the result that is set aside"}}
    run_stage(tracked, "two")
    assert calls[-1]["logger"]["wandb"]["id"] is None


def test_stage_for_several_devices_is_a_command_of_its_own(tmp_path, calls, monkeypatch, capfd):
    script = "import sys, yaml; print(sys.argv[-2], yaml.safe_load(open(sys.argv[-1]))['seed']); sys.exit(3)"
    (tmp_path / "python").write_text(f'#!/bin/sh\nprintenv LOCAL_RANK\nexec {sys.executable} -c "{script}" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("LOCAL_RANK", "1")  # as an earlier run of this process leaves it
    wide = stage(tmp_path, 5)
    wide.config["trainer"] = {"devices": 2}
    with pytest.raises(ValueError, match="ended with exit code 3"):
        run_stage(wide, "one")
    assert capfd.readouterr().out == "train 5\n"
    assert not calls
    assert not is_finished(wide, "one")


def test_data_digest_follows_contents_not_places(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place / "folder").mkdir(parents=True)
        (tmp_path / place / "folder/train.jsonl").write_text("1")
        (tmp_path / place / "corpus.txt").write_text("2")
    config = {
        place: {
            "train": {"path": f"{tmp_path}/{place}/folder"},
            "corpus": [f"{tmp_path}/{place}/corpus.txt", "hub/name", None, 3],
            "cache_dir": str(tmp_path),
        }
        for place in "ab"
    }
    assert len(list(data_files(config["a"]))) == 2
    assert digest_data(config["a"]) == digest_data(config["b"])
    (tmp_path / "b/folder/train.jsonl").write_text("changed")
    assert digest_data(config["a"]) != digest_data(config["b"])


def test_workers():
    assert 1 <= choose_workers("auto") <= 4
    assert choose_workers(3) == 3
    assert available_cores() >= 1
    for wrong in (0, "many"):
        with pytest.raises(ValueError, match="workers must be"):
            choose_workers(wrong)
