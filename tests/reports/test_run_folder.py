import json
import subprocess
import sys

import lightning_minillm
from lightning_minillm.reports import run_folder as runs


def test_run_directory_says_what_ran(tmp_path):
    config = {"seed": 1, "optimizer": {"lr": 1e-5, "betas": [0.9, 0.95]}, "path": None}
    runs.start_run(tmp_path / "run", config)
    assert runs.read_config(tmp_path / "run") == config
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["lightning_minillm"] == lightning_minillm.__version__
    assert environment["command"] == sys.argv
    assert {"torch", "lightning", "transformers"} <= set(environment["packages"])
    assert runs.read_config(tmp_path / "nowhere") is None


def test_git_state_of_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "lightning_minillm"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(runs.lightning_minillm, "__file__", str(package / "__init__.py"))
    assert runs.git_state() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], check=True)
    state = runs.git_state()
    assert state["branch"] == "main"
    assert len(state["commit"]) == 40
    assert state["changed"] is False
    (package / "__init__.py").write_text("x = 1")
    assert runs.git_state()["changed"] is True


def test_no_git_program_is_no_error(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(runs.subprocess, "run", missing)
    assert runs.git_state() is None
