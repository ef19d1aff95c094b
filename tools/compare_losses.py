"""Check that a change leaves training as it was: train with two versions of the code and compare all numbers.

    python tools/compare_losses.py main                          # all methods, on one rank and on two
    python tools/compare_losses.py main --methods kd gkd --ranks 1
    python tools/compare_losses.py --self                        # the working tree twice: every difference is 0

The commit ``BASE`` and the working tree are copied to a temporary folder. Each copy trains small random models on the
built-in data set for a few steps, on the CPU. The tool compares the logged ``train/*`` and ``rollout/*`` values of each
step (except times) and the weights that are exported at the end.

The exit code is 1 if anything differs on one rank, or if the relative difference on two ranks exceeds 1e-6. Differences
are relative to the largest absolute value of the column or tensor. Validation values are shown, but do not count, and
neither do columns that only one version logs.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "lightning_minillm"
COMMAND = f"{PACKAGE}.cli.train"
TOLERANCES = {1: 0.0, 2: 1e-6}
"""Largest relative difference that is allowed, by number of ranks."""

EVERY_METHOD = {
    "data": "synthetic",
    "student": "scratch",
    "teacher": "scratch",
    "data.prepare.sizes": "{train:400,validation:16,test:16,corpus:200,vocab_size:512}",
    "data.path": "${cache_dir}/synthetic",
    "seed": "0",
    "batch_size": "8",
    "micro_batch_size": "4",
    "eval_batch_size": "16",
    "max_length": "96",
    "max_prompt_length": "64",
    "validation.sampling.max_new_tokens": "24",
    "optimizer.lr": "1e-3",
    "logger": "csv",
    "callbacks": "quiet",
    "callbacks.best": "null",  # export the last weights, whatever validation says
    "trainer.accelerator": "cpu",
    "trainer.log_every_n_steps": "1",
}
RESPONSES = {"module.rollouts.sampling.max_new_tokens": "24"}
TWO_PASSES = {"module.rollouts.num_rollouts": "32", "module.rollouts.ppo_epochs": "2"}
METHODS = {
    "smoke": {"experiment": "smoke", **RESPONSES, **TWO_PASSES},
    "minillm_paper": {"experiment": "minillm_paper", **RESPONSES, **TWO_PASSES},
    "kd": {"experiment": "kd"},
    "gkd": {"experiment": "gkd", **RESPONSES},
    "distillm": {"experiment": "distillm", **RESPONSES, "rollout.probability": "0.5", "rollout.capacity": "64"},
}
RANKS = {1: {"devices": "1"}, 2: {"devices": "2", "strategy": "ddp"}}

RENAMED = {
    "module.rollouts.num_rollouts": "module.num_rollouts",
    "module.rollouts.ppo_epochs": "module.ppo_epochs",
    "module.rollouts.sampling.max_new_tokens": "module.sampling.max_new_tokens",
}
"""Earlier names of the options above; for each version, the name that its configuration contains is set."""


@dataclass(frozen=True)
class Version:
    """One version of the code, ready to be imported from ``folder``."""

    name: str
    folder: Path
    is_commit: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of its runs: its own code first, one thread, no network."""
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **offline, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Difference:
    """The largest difference between two runs, absolute and relative to the largest value of its column or tensor."""

    absolute: float = 0.0
    relative: float = 0.0
    where: str = ""

    @classmethod
    def of(cls, first: Tensor, second: Tensor, where: str) -> Difference:
        """Compare two tensors; NaN equals NaN, and different shapes or a NaN on one side are infinitely far apart."""
        if first.shape != second.shape:
            return cls(math.inf, math.inf, f"{where}: {list(first.shape)} against {list(second.shape)}")
        first, second = first.double(), second.double()
        same = (first == second) | (first.isnan() & second.isnan())
        if bool(same.all()):
            return cls()
        distances = (first - second).abs()[~same].nan_to_num(nan=math.inf)
        absolute = float(distances.max())
        largest = float(torch.cat([first.flatten(), second.flatten()]).abs().nan_to_num().max())
        return cls(absolute, absolute / largest if math.isfinite(absolute) else math.inf, where)

    @classmethod
    def largest(cls, differences: Iterable[Difference]) -> Difference:
        """Return the one with the largest relative difference."""
        return max(differences, key=lambda difference: difference.relative, default=cls())


@dataclass(frozen=True)
class Comparison:
    """Two runs of one method on one number of ranks."""

    method: str
    ranks: int
    steps: int
    values: int
    losses: Difference
    weights: Difference
    validation: Difference
    unpaired: tuple[str, ...]
    """Columns that only one of the runs logged."""

    @property
    def passed(self) -> bool:
        """Whether losses and weights agree as far as they have to."""
        return max(self.losses.relative, self.weights.relative) <= TOLERANCES[self.ranks]


# --- comparing two runs ---------------------------------------------------------------------------------------------

Series = dict[str, list[tuple[int, float]]]


def read_series(file: Path) -> Series:
    """Return the values of each column of a CSV logger's file as (step, value)."""
    series: Series = defaultdict(list)
    with open(file, encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    series[name].append((int(row["step"]), float(value)))
    return dict(series)


def is_training(name: str) -> bool:
    """Tell whether a column is compared: training and rollouts, except times."""
    return name.startswith(("train/", "rollout/")) and not name.endswith(("seconds", "per_second"))


def compare_series(first: Series, second: Series, names: Iterable[str]) -> Difference:
    """Return the largest difference over the columns ``names``, which both have."""
    return Difference.largest(compare_column(first[name], second[name], name) for name in names)


def compare_column(first: list[tuple[int, float]], second: list[tuple[int, float]], name: str) -> Difference:
    """Compare one column; values at different steps are infinitely far apart."""
    if [step for step, _ in first] != [step for step, _ in second]:
        return Difference(math.inf, math.inf, f"{name}: logged at different steps")
    ours, theirs = (torch.tensor([value for _, value in column], dtype=torch.float64) for column in (first, second))
    difference = Difference.of(ours, theirs, name)
    if difference.relative:
        at = next(step for (step, one), (_, other) in zip(first, second, strict=True) if one != other)
        return Difference(difference.absolute, difference.relative, f"{name}, first at step {at}")
    return difference


def compare_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Difference:
    """Return the largest difference over all tensors."""
    if first.keys() != second.keys():
        return Difference(math.inf, math.inf, f"tensors of one alone: {sorted(first.keys() ^ second.keys())}")
    return Difference.largest(Difference.of(first[name], second[name], name) for name in first)


def read_run(folder: Path) -> Series:
    """Return what a run logged.

    Raises:
        ValueError: the run did not log ``train/loss`` at every step.
    """
    (file,) = folder.glob("metrics/version_*/metrics.csv")
    series = read_series(file)
    steps = [step for step, _ in series.get("train/loss", [])]
    if not steps or steps != list(range(len(steps))):
        raise ValueError(f"{str(file)!r} has train/loss at the steps {steps}; it must be logged at every step")
    return series


def compare_runs(first: Path, second: Path, method: str, ranks: int) -> Comparison:
    """Compare the output folders of two runs."""
    logged, again = read_run(first), read_run(second)
    shared = [name for name in logged if name in again]
    trained = [name for name in shared if is_training(name)]
    validated = [name for name in shared if name.startswith("val/")]
    alone = sorted(name for name in logged.keys() ^ again.keys() if is_training(name) or name.startswith("val/"))
    weights = "student/model.safetensors"
    return Comparison(
        method=method,
        ranks=ranks,
        steps=len(logged["train/loss"]),
        values=sum(len(logged[name]) for name in trained),
        losses=compare_series(logged, again, trained),
        weights=compare_weights(load_file(first / weights), load_file(second / weights)),
        validation=compare_series(logged, again, validated),
        unpaired=tuple(alone),
    )


# --- training -------------------------------------------------------------------------------------------------------


def copy_commit(commit: str, folder: Path) -> Version:
    """Copy the package of a commit; nothing in the repository changes."""
    name = subprocess.check_output(["git", "-C", ROOT, "rev-parse", "--short", f"{commit}^{{commit}}"], text=True)
    folder.mkdir(parents=True)
    packed = subprocess.check_output(["git", "-C", ROOT, "archive", commit, PACKAGE, "conf"])
    subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
    return replace(installed(name.strip(), folder), is_commit=True)


def copy_working_tree(folder: Path, name: str = "working tree") -> Version:
    """Copy the package as it is now: later edits do not reach the runs."""
    for source in (PACKAGE, "conf"):
        shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
    return installed(name, folder)


def installed(name: str, folder: Path) -> Version:
    """Move ``conf`` to where an installation has it, and make sure that the copy is what Python imports."""
    (folder / "conf").rename(folder / PACKAGE / "conf")
    version = Version(name, folder)
    code = f"import {PACKAGE}.conf, {COMMAND} as command; print(command.__file__); print({PACKAGE}.conf.__file__)"
    imported = subprocess.check_output([sys.executable, "-c", code], env=version.environment, cwd=folder, text=True)
    for file in imported.split("\n")[-3:-1]:
        print(f"{name}: {file}", flush=True)
        assert Path(file).is_relative_to(folder), f"{file} is imported in place of the copy in {folder}"
    return version


def overrides(version: Version, method: str, ranks: int, steps: int) -> list[str]:
    """Return the command line of a run, with each option by the name that this version has for it.

    Raises:
        ValueError: the version has an option under no known name; ``RENAMED`` is the place to add one.
    """
    options = {**EVERY_METHOD, **METHODS[method], **RANKS[ranks], "max_steps": str(steps)}
    options |= {"eval_every": str(max(steps // 2, 1)), "checkpoint_every": str(steps)}
    config_folder = version.folder / PACKAGE / "conf"
    groups = {name: value for name, value in options.items() if (config_folder / name).is_dir()}
    with initialize_config_dir(str(config_folder), version_base="1.3"):
        quoted = [f"{name}='{value}'" if value.isdigit() else f"{name}={value}" for name, value in groups.items()]
        config = OmegaConf.to_container(compose("train", quoted), resolve=False)
    words = [f"{name}={value}" for name, value in groups.items()]
    for name, value in options.items():
        if name not in groups:
            found = next((word for word in (name, RENAMED.get(name, name)) if contains(config, word)), None)
            if found is None:
                raise ValueError(f"{version.name} has no option {name!r}; add the name that it has to RENAMED")
            words.append(f"{found}={value}")
    return words


def contains(config: Any, name: str) -> bool:
    """Tell whether nested dictionaries contain a dotted name."""
    first, _, rest = name.partition(".")
    return isinstance(config, dict) and first in config and (not rest or contains(config[first], rest))


def train(version: Version, method: str, ranks: int, steps: int, folder: Path) -> Path:
    """Train once and return the output folder; a commit's finished run of the same command is used again.

    Raises:
        RuntimeError: with the end of the output of the run that failed.
    """
    output = folder / f"{version.name.replace(' ', '_')}-{method}-{ranks}"
    words = overrides(version, method, ranks, steps)
    finished = output / "command.json"
    if version.is_commit and finished.exists() and json.loads(finished.read_text()) == words:
        return output
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    command = [sys.executable, "-m", COMMAND, *words, f"output_dir={output}", f"cache_dir={output}/cache"]
    done = subprocess.run(command, env=version.environment, cwd=output, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{version.name}: {' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    finished.write_text(json.dumps(words))
    return output


@contextmanager
def run_folder(keep: Path | None) -> Iterator[Path]:
    """Give the folder of the runs: ``keep``, or a temporary one."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="compare_losses_") as folder:
            yield Path(folder).resolve()
    else:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()


# --- command --------------------------------------------------------------------------------------------------------


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the differences as a table, and below it where each comes from."""
    head = f"{'losses':>10} {'weights':>10} {'validation':>10}"
    lines = [f"{'method':<14} {'ranks':>5} {'steps':>5} {'values':>6} {head}"]
    notes = []
    for one in comparisons:
        numbers = " ".join(f"{part.relative:>10.3g}" for part in (one.losses, one.weights, one.validation))
        verdict = "ok" if one.passed else "DIFFERENT"
        lines.append(f"{one.method:<14} {one.ranks:>5} {one.steps:>5} {one.values:>6} {numbers} {verdict}")
        for part in (one.losses, one.weights, one.validation):
            if part.where:
                notes.append(f"{one.method}, {one.ranks} rank(s): {part.absolute:.3g} in {part.where}")
        if one.unpaired:
            notes.append(f"{one.method}, {one.ranks} rank(s): only one version logs {', '.join(one.unpaired)}")
    return "\n".join([*lines, *notes])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="the commit to compare the working tree with")
    parser.add_argument("--self", action="store_true", help="compare the working tree with itself")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--ranks", nargs="+", type=int, choices=tuple(RANKS), default=list(RANKS))
    parser.add_argument("--steps", type=int, default=16, help="optimiser steps of a run (default: 16, two phases)")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the runs there, and use the ones of BASE there again"
    )
    arguments = parser.parse_args(argv)
    if (arguments.base is None) != arguments.self:
        parser.error("give either a commit BASE or --self")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Train, compare, print; return the exit code."""
    arguments = parse(argv)
    comparisons = []
    with run_folder(arguments.keep) as runs, tempfile.TemporaryDirectory(prefix="compare_code_") as code:
        copies = Path(code).resolve()
        if arguments.self:
            base = copy_working_tree(copies / "base", "working tree again")
        else:
            base = copy_commit(arguments.base, copies / "base")
        now = copy_working_tree(copies / "now")
        for ranks in arguments.ranks:
            for method in arguments.methods:
                before, after = (train(version, method, ranks, arguments.steps, runs) for version in (base, now))
                comparisons.append(compare_runs(before, after, method, ranks))
                print(table(comparisons[-1:]).partition("\n")[2], flush=True)
    print("\nLargest relative differences:")
    print(table(comparisons))
    return 0 if all(one.passed for one in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
