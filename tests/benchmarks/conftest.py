"""The benchmarks are scripts that import one another from their own folder."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = '{"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2}'


@pytest.fixture
def script(monkeypatch):
    """Import a benchmark by its name; none of them stays imported."""
    monkeypatch.syspath_prepend(str(FOLDER))
    known = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


@pytest.fixture
def tiny_workload(script, tmp_path, capsys):
    """The options of a workload of tiny models; the two have the same vocabulary."""
    shapes = ["--student", TINY, "--teacher", TINY.replace("16", "24")]
    sizes = ["--vocabulary", "61", "--num-prompts", "8", "--num-lm", "8", "--mean-length", "4"]
    lengths = ["--prompt-lengths", "2", "6", "--max-new-tokens", "12", "--lm-lengths", "6", "18"]
    script("make_workload").main([str(tmp_path), *shapes, *sizes, *lengths])
    capsys.readouterr()
    folders = [f"--{name}={tmp_path / name}" for name in ("student", "teacher")]
    options = "--rollouts 8 --batch-size 4 --ppo-epochs 2 --max-prompt-length 6 --max-length 18 --threads 1"
    return [*folders, f"--prompts={tmp_path / 'prompts.json'}", *options.split(), "--repeats=1", "--warmup=0"]
