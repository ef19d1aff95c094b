"""Every command of the README and the documentation composes as it stands, and runs at toy size.

What a command names (data, models, runs) lies in the ``reader`` folder; commands of one page run one after the other,
each with overrides behind it that make it small.
"""

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_minillm.cli.config import compose_config, quote_numbers, to_plain
from lightning_minillm.cli.recipe import command as recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What stands for the reader's own, and what it is taken for here. Other words are taken as they are.
PLACEHOLDERS = {"$PWD": ".", "$NODE": "0", "$HOST": "localhost"}
# A word that stands for more overrides: what it leaves out is not asked for.
MORE = "..."
# Commands without a configuration: their words are options of their own.
WITHOUT_CONFIG = ("compare", "export", "plan")
# Commands that need files of the reader's own folder, or a package that the tests do without; what tests them instead.
RUN_ELSEWHERE = {"hydra.searchpath": "tests/test_extending.py"}
if importlib.util.find_spec("sentence_transformers") is None:
    RUN_ELSEWHERE["load_encoder"] = "tests/evaluation/test_retrieval.py"
FLAGS = {"--cfg": 1, "-m": 0, "--multirun": 0, "--help": 0}
# What a command leaves; minillm-plan only prints.
WRITES = {
    "minillm-train": "student/README.md",
    "minillm-evaluate": "results.json",
    "minillm-generate": "responses.jsonl",
    "minillm-recipe": "results.json",
    "minillm-compare": "compare.md",
}
SMALL_TRAINING = """batch_size=2 micro_batch_size=null eval_batch_size=6 max_steps=2 eval_every=2 checkpoint_every=2
validation.sampling.max_new_tokens=4 trainer.accelerator=cpu logger=csv callbacks.progress=null""".split()
SMALL_PHASES = (
    "module.rollouts.num_rollouts=4 module.rollouts.batch_size=4 module.rollouts.sampling.max_new_tokens=4".split()
)
SMALL_EVALUATION = "seeds=[10] eval_batch_size=40 sampling.max_new_tokens=16 trainer.accelerator=cpu".split()
SMALL_GENERATION = "batch_size=20 sampling.max_new_tokens=4 trainer.accelerator=cpu keep_unfinished=true".split()
# enough prompts for every length of reference that the pages name
SIZES = "{train: 300, validation: 6, test: 40, corpus: 100, vocab_size: 800}"


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
    return kept, bool({"-m", "--multirun"} & set(flags)) or any(word.startswith("sweep=") for word in kept)


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
    module = importlib.import_module(f"lightning_minillm.cli.{name}")
    if name in WITHOUT_CONFIG:
        module.make_parser().parse_args(words[1:])  # exits where an option is unknown
        return
    overrides, sweeps = overrides_of(words[1:])
    if any(word.startswith("hydra.searchpath") for word in overrides):
        pytest.skip(f"its files are in the guide: see {RUN_ELSEWHERE['hydra.searchpath']}")
    for job in jobs_of(overrides, sweeps):
        cfg = compose_config(name, job)
        if MORE not in words:
            to_plain(cfg, module.KEYS)  # refuses a key that nothing reads
            if name == "recipe" and "train_extra" in " ".join(words):
                recipe.compose_stages(recipe.read_config(cfg), shown_progress=True)


# --- running --------------------------------------------------------------------------------------------------------


def runnable(page):
    """Return the commands of a page that leave nothing out and that no other test runs."""
    return [
        words
        for words in commands_of(page.read_text(encoding="utf-8"))
        if MORE not in words and not any(key in word for word in words for key in RUN_ELSEWHERE)
    ]


def small(name, words):
    """Return what makes a command small, to be put behind its words."""
    composed = compose_config(name, jobs_of(*overrides_of(words))[0])
    if name == "train":
        return [*SMALL_TRAINING, *(SMALL_PHASES if "num_rollouts" in composed.module else [])]
    if name == "recipe":
        return small_recipe(composed.recipe)
    sizes = [f"data.prepare.sizes={SIZES}"] if composed.get("data") and composed.data.get("prepare") else []
    return {"evaluate": [*SMALL_EVALUATION, *sizes], "generate": SMALL_GENERATION}.get(name, [])


def small_recipe(node):
    phases = [name for name, stage in node.stages.items() if "module.rollouts.num_rollouts" in str(stage.overrides)]
    return [
        f"recipe.train_extra={[*SMALL_TRAINING, 'devices=1', 'trainer.precision=32-true']}",
        *(f"recipe.stages.{name}.extra={SMALL_PHASES}" for name in {"minillm", *phases}),
        f"recipe.stages.generate.extra={SMALL_GENERATION}",
        f"recipe.evaluate.overrides={SMALL_EVALUATION[1:]}",
        "recipe.evaluate.seeds=[10]",
        *([f"recipe.extra=['data.prepare.sizes={SIZES}']"] if "data=synthetic" in node.common else []),
    ]


def run(words, number):
    """Run one command of a page in the working directory, in this process unless it sweeps or starts others."""
    name, given = words[0].removeprefix("minillm-"), words[1:]
    if name in WITHOUT_CONFIG:
        folder = ["--output-dir", f"outputs/{number}"] if name == "compare" else []
        importlib.import_module(f"lightning_minillm.cli.{name}").main([*given, *folder])
        return
    for word in given:
        if word.startswith("output_dir=runs/"):
            shutil.rmtree(word.removeprefix("output_dir="), ignore_errors=True)
    if any(word.startswith(("-", "sweep=", "devices=")) for word in given):
        module = f"lightning_minillm.cli.{name}"
        extra = [] if "--cfg" in given else small(name, given)
        done = subprocess.run([sys.executable, "-m", module, *given, *extra], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return
    command = getattr(importlib.import_module(f"lightning_minillm.cli.{name}"), name)
    folder = [] if name == "recipe" or "output_dir=" in shlex.join(given) else [f"output_dir=outputs/{number}"]
    command(compose_config(name, [*given, *small(name, given), *folder]))


def files_of(words):
    """Return which files of the working directory a command may have written, with the time of their last change."""
    pattern = WRITES.get(words[0], "")
    return {(file, file.stat().st_mtime_ns) for file in Path().rglob(pattern)} if pattern else set()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.name)
def test_commands_of_a_page_run(page, reader, stub_judge, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for number, words in enumerate(runnable(page)):
        before = files_of(words)
        run([word.replace("http://localhost:8000/v1", stub_judge.url) for word in words], number)
        assert files_of(words) - before or "--cfg" in words or words[0] not in WRITES, words


def test_python_of_the_quickstart_runs(reader):
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/quickstart.md").read_text(), re.MULTILINE | re.DOTALL)
    toys = {
        "max_steps=5000": "max_steps=2",
        "max_new_tokens=256": "max_new_tokens=4",
        "num_rollouts=256": "num_rollouts=4",
        "batch_size=64": "batch_size=2",
    }
    for size, toy in toys.items():
        assert size in code
        code = code.replace(size, toy)
    scope = {}
    exec(code, scope)
    assert scope["module"].global_step == 2
