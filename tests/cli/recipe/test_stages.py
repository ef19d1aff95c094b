from pathlib import Path

import pytest

from lightning_minillm.cli.recipe import stages as module
from lightning_minillm.cli.recipe.scheduler import available_cores, choose_workers
from lightning_minillm.cli.recipe.stages import Stage, data_files, digest_data, fingerprints_of, is_finished, run_stage


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


def test_changed_stage_starts_from_an_empty_folder_and_a_stopped_one_does_not(tmp_path, calls):
    with pytest.raises(ValueError, match="failed"):
        run_stage(stage(tmp_path, "fail"), "one")
    assert not is_finished(stage(tmp_path, "fail"), "one")
    (tmp_path / "s/checkpoint").write_text("half")
    with pytest.raises(ValueError, match="failed"):
        run_stage(stage(tmp_path, "fail"), "one")
    assert (tmp_path / "s/checkpoint").exists()
    (tmp_path / "s/log.txt").write_text("open in the child")
    run_stage(stage(tmp_path, 1), "two")
    assert not (tmp_path / "s/checkpoint").exists()
    assert (tmp_path / "s/log.txt").exists()


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
