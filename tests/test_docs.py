"""Every command of the README and the documentation composes; those that take no data of the reader's run."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_minillm.cli import recipe
from lightning_minillm.cli.compare import translate_paths
from lightning_minillm.cli.config import compose_config, quote_numbers, to_plain

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What stands for the reader's own, and what it is taken for here. Other words are taken as they are.
PLACEHOLDERS = {"$PWD": ".", "$NODE": "0", "$HOST": "localhost"}
# A word that stands for more overrides: what it leaves out is not asked for.
MORE = "..."
# minillm-plan's short names (see its main).
SHORT = {"student=": "student_path=", "teacher=": "teacher_path=", "devices=": "num_devices="}
# Commands that need files of the reader's own folder; another test runs them as they are written.
RUN_ELSEWHERE = {"hydra.searchpath": "tests/test_extending.py"}
FLAGS = {"--cfg": 1, "-m": 0, "--multirun": 0, "--help": 0}
# Commands that need nothing of the reader's, and seconds.
RUNS = ["minillm-train experiment=smoke", "minillm-recipe recipe=smoke"]


def commands_of(text):
    """Yield each of our commands in the fenced shell blocks of a page, as a list of words."""
    for language, block in re.findall(r"^```(.*)\n((?s:.*?))^```", text, flags=re.MULTILINE):
        if language not in ("", "bash", "sh", "shell"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if "minillm" not in line:  # the output of a command need not be shell
                continue
            yield from commands_in(shlex.split(line, comments=True))


def commands_in(words):
    for place, word in enumerate(words):
        if re.fullmatch(r"minillm-\w+", word):
            yield words[place:]
            return
        if word.startswith("lightning_minillm.cli."):
            yield [f"minillm-{word.rpartition('.')[2]}", *words[place + 1 :]]
            return
        if "minillm-" in word and " " in word:  # a command inside another one's argument
            yield from commands_in(shlex.split(word))


COMMANDS = [
    pytest.param(words, id=f"{page.name}: {shlex.join(words)[:90]}")
    for page in PAGES
    for words in commands_of(page.read_text(encoding="utf-8"))
]


def overrides_of(words):
    """Return a command's overrides without flags, and whether it sweeps."""
    kept, flags, left = [], [], iter(words)
    for word in left:
        if word in FLAGS:
            flags.append(word)
            for _ in range(FLAGS[word]):
                next(left)
        elif word != MORE:
            for placeholder, value in PLACEHOLDERS.items():
                word = word.replace(placeholder, value)
            kept.append(word)
    return kept, bool({"-m", "--multirun"} & set(flags))


def jobs_of(overrides, sweeps):
    if not sweeps:
        return [overrides]
    # A sweep's file names the values that are swept over: the command composes without them, too.
    given = [word for word in overrides if not word.startswith(("sweep=", "+sweep=", "hydra/"))]
    parsed = OverridesParser.create().parse_overrides(quote_numbers(given))
    return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


def test_there_are_commands_on_the_pages():
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("words", COMMANDS)
def test_command_composes(words):
    name = words[0].removeprefix("minillm-")
    keys = importlib.import_module(f"lightning_minillm.cli.{name}").KEYS
    overrides, sweeps = overrides_of(words[1:])
    if any(word.startswith(key) for word in overrides for key in RUN_ELSEWHERE):
        pytest.skip("its files are in the guide; tests/test_extending.py runs it")
    if name == "compare":
        overrides = translate_paths(overrides)
    if name == "plan":
        overrides = [next((SHORT[s] + w.removeprefix(s) for s in SHORT if w.startswith(s)), w) for w in overrides]
    for job in jobs_of(overrides, sweeps):
        cfg = compose_config(name, job)
        if MORE not in words:
            config = to_plain(cfg, keys)
            if name == "recipe" and "train_extra" in " ".join(words):
                recipe.plan(to_plain(recipe._with_absolute_paths(cfg), keys), shown_progress=True)
            assert set(config) <= set(keys)


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS)
def test_command_runs(command, tmp_path):
    assert command.split() in [parameter.values[0] for parameter in COMMANDS]
    name, *words = command.removeprefix("minillm-").split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    module = f"lightning_minillm.cli.{name}"
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list((tmp_path / "outputs").rglob("student/README.md"))
