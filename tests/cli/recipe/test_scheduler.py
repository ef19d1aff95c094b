import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from lightning_minillm.cli.recipe.scheduler import _Parallel, _progress_cells, _tail
from lightning_minillm.cli.recipe.stages import Stage
from lightning_minillm.files import write_json


@pytest.fixture
def parallel(tmp_path):
    """Four stages: kept, done, running and waiting."""
    stages = [Stage(name, "train", tmp_path / name, (), {}) for name in ("kept", "done", "running", "waiting")]
    progress = {"step": 5, "max_steps": 10, "rollouts": [3, 4], "metrics": {"val/rougeL": 12.34, "val/loss": 1.0}}
    write_json(tmp_path / "running/progress.json", progress)
    console = Console(width=120, force_terminal=True)
    return _Parallel(
        stages,
        SimpleNamespace(),
        2,
        console,
        done={"kept": False, "done": True},
        running={"running": SimpleNamespace()},
        started={"done": 10.0, "running": time.monotonic()},
        ended={"done": 22.0},
    )


def test_table_shows_every_stage(parallel):
    with parallel.console.capture() as capture:
        parallel.console.print(parallel._table())
    lines = {line.split()[1]: line for line in capture.get().splitlines() if line.startswith("│")}
    assert "kept" in lines["kept"].split("│")[2]
    assert "done" in lines["done"]
    assert "12 s" in lines["done"]
    assert "5 / 10" in lines["running"]
    assert "3 / 4" in lines["running"]
    assert "Rouge-L 12.3" in lines["running"]
    assert "waiting" in lines["waiting"].split("│")[2]


def test_table_is_live_on_a_terminal(parallel):
    with parallel.console.capture() as capture, parallel._display() as refresh:
        refresh()
        parallel._say("not shown beside a table")
    assert "running" in capture.get()
    assert "not shown" not in capture.get()


@pytest.mark.parametrize(
    ("progress", "cells"),
    [
        ({}, ("", "", "")),
        ({"step": 1, "max_steps": None, "rollouts": None, "metrics": {}}, ("", "", "")),
        ({"step": 1, "max_steps": 2, "rollouts": None, "metrics": {"val/loss": 1.0}}, ("1 / 2", "", "")),
    ],
)
def test_progress_of_stages_without_steps_or_rollouts(progress, cells):
    assert _progress_cells(progress) == cells


def test_tail_of_a_log(tmp_path):
    (tmp_path / "log.txt").write_text("\n".join(map(str, range(30))))
    assert _tail(tmp_path / "log.txt", lines=2) == "28\n29"
    assert _tail(tmp_path / "nowhere") == "(no output)"
