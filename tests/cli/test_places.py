"""Where commands write: what cannot work is said in one sentence before anything is made."""

import sys

import pytest
import yaml

from lightning_minillm.cli import commands
from lightning_minillm.cli import train as train_module
from lightning_minillm.cli.config import compose_config, to_plain
from lightning_minillm.cli.train import KEYS


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run minillm-train in an empty folder; returns its exit code, its last words and the configuration it got."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def run(*words):
        seen = []
        monkeypatch.setattr(train_module, "train", lambda cfg: seen.append(cfg))
        monkeypatch.setattr(sys, "argv", ["minillm-train", *words])
        code = 0
        try:
            commands.train()
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().err, seen

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["output_dir="], "error: output_dir"),
        (["output_dir=' '"], "error: output_dir"),
        (["output_dir=file"], "error: output_dir=file: 'file' is a file; give a folder"),
        (["output_dir=file/run"], "error: output_dir=file/run: .*file' is a file; give a folder"),
        (
            ["-m", "output_dir=x", "seed=0,1"],
            "output_dir has no effect in a sweep: give the folder of all its jobs",
        ),
    ],
)
def test_place_that_cannot_work_is_named(words, message, command, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, said, seen = command(*words)
    assert code == 1
    assert not seen
    assert message.partition(".*")[0] in said
    assert message.rpartition(".*")[2] in said
    assert "Traceback" not in said
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_home_is_expanded(command, tmp_path):
    code, _, _ = command("output_dir='~/runs/first'")
    assert code == 0
    assert not (tmp_path / "~").exists()
    assert (tmp_path / "home/runs/first").is_dir()
    config = to_plain(compose_config("train", ["output_dir='~/run'"]), KEYS)
    assert config["output_dir"] == str(tmp_path / "home/run")
    assert config["callbacks"]["last"]["dirpath"] == str(tmp_path / "home/run/checkpoints")


def test_single_run_that_fails_leaves_no_overrides_and_jobs_of_a_sweep_do(command, tmp_path):
    command("output_dir=run", "seed=3")
    assert not list((tmp_path / "run").iterdir())
    command("-m", "hydra.sweep.dir=sweep", "seed=0,1")
    for job in ("0", "1"):
        words = yaml.safe_load((tmp_path / f"sweep/{job}/.hydra/overrides.yaml").read_text())
        assert words == [f"seed={job}"]
