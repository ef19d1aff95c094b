"""The guide's example works as it is written, from a folder outside the repository."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

GUIDE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture
def folder(tmp_path):
    """The guide's files in a folder of their own."""
    text = GUIDE.read_text(encoding="utf-8")
    for name, content in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', text, flags=re.DOTALL):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return tmp_path


def run(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_guides_test_passes(folder):
    assert "1 passed" in run(folder, "pytest", "-q", "-p", "no:cacheprovider", "test_my_losses.py")


def test_the_command_line_finds_the_guides_loss(folder):
    words = [
        "experiment=kd", "loss=squared_hellinger", f"hydra.searchpath=[file://{folder}/conf]", "student=pretrained",
        "student.path=x", "teacher.path=y", "--cfg", "job",
    ]  # fmt: skip
    config = yaml.safe_load(run(folder, "lightning_minillm.cli.train", *words))
    assert config["loss"] == {"_target_": "my_losses.SquaredHellinger", "scale": 2.0, "chunk_size": "auto"}


def test_the_guides_source_passes_its_test(folder):
    assert "3 passed" in run(folder, "pytest", "-q", "-p", "no:cacheprovider", "test_my_sources.py")


def test_the_guides_module_trains_on_the_guides_source(folder):
    (block,) = re.findall(r"minillm-train experiment=smoke (.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    words = shlex.split(block.replace("$PWD", str(folder)).replace("\\\n", " "))
    quick = ["max_steps=8", "eval_every=8", "checkpoint_every=8", "logger=csv", "callbacks=quiet"]
    run(folder, "lightning_minillm.cli.train", "experiment=smoke", *words, *quick, "trainer.log_every_n_steps=1")
    assert "1 passed" in run(folder, "pytest", "-q", "-p", "no:cacheprovider", "test_my_modules.py")
