"""Kill and resume a training run several times, and compare it with a run that was not interrupted.

    python benchmarks/kill_resume.py --kills 10

Each kill is a SIGKILL at a random moment, while a checkpoint is written after every step. The script prints the largest
difference of the final weights and of all logged values except times, and exits with 1 if a difference is not 0.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from lightning_minillm.checkpoints.weights import read_metadata, read_weights

OVERRIDES = "experiment=smoke trainer.accelerator=cpu logger=csv callbacks=quiet checkpoint_every=1".split()
TIMING = ("second", "perf/", "epoch", "step")


def command(folder: Path, cache: Path, arguments: argparse.Namespace) -> list[str]:
    """Return the command line of the run in ``folder``."""
    sizes = [f"max_steps={arguments.steps}", f"eval_every={arguments.steps // 2}", "trainer.log_every_n_steps=1"]
    places = [f"output_dir={folder}", f"cache_dir={cache}"]
    return [sys.executable, "-m", "lightning_minillm.cli.train", *OVERRIDES, *sizes, *places, *arguments.overrides]


def run(arguments: list[str]) -> None:
    """Run to the end."""
    done = subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the run failed:\n{done.stderr[-2000:]}")


def run_and_kill(arguments: list[str], checkpoint: Path, seconds: float) -> None:
    """Kill a run ``seconds`` after it has written its first checkpoint."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            if process.poll() is not None:
                raise RuntimeError("the run ended before it could be killed: increase --steps")
            time.sleep(0.005)
        time.sleep(seconds)
        if process.poll() is not None:
            raise RuntimeError("the run ended before it could be killed: increase --steps")
    finally:
        process.kill()
        process.wait()


def logged(folder: Path) -> dict[tuple[str, int], float]:
    """Return all logged values by name and step; the last value written for a step counts."""
    values = {}
    files = sorted(folder.rglob("metrics.csv"), key=lambda file: file.stat().st_mtime)
    for file in files:
        with open(file, newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                for name, value in row.items():
                    if value and not any(part in name for part in TIMING):
                        values[name, int(row["step"])] = float(value)
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of the run")
    parser.add_argument(
        "--within", type=float, default=0.5, help="largest number of seconds after a run's first checkpoint"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("overrides", nargs="*", help="further overrides of minillm-train, such as optimizer.lr=1e-4")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        alone, killed = root / "alone", root / "killed"
        run([*command(root / "warm", root / "cache", arguments), "max_steps=2", "eval_every=2"])
        run(command(alone, root / "cache", arguments))
        print(f"not interrupted: {arguments.steps} steps", flush=True)
        generator, checkpoint = random.Random(arguments.seed), killed / "checkpoints" / "last.ckpt"
        for number in range(arguments.kills):
            moment = generator.uniform(0, arguments.within)
            run_and_kill(command(killed, root / "cache", arguments), checkpoint, moment)
            print(
                f"kill {number + 1}: the checkpoint is of step {read_metadata(checkpoint)['global_step']}", flush=True
            )
        run(command(killed, root / "cache", arguments))
        given, expected = (read_weights(folder / "checkpoints" / "last.ckpt") for folder in (killed, alone))
        weights = max(float((given[name] - expected[name]).abs().max()) for name in expected)
        given_values, expected_values = logged(killed), logged(alone)
        missing = expected_values.keys() - given_values.keys()
        metrics = max(abs(given_values[key] - expected_values[key]) for key in expected_values.keys() - missing)
    if missing:
        print("not written:", *sorted(missing)[:8])
    print(f"largest difference of {len(expected)} weights: {weights:g}")
    print(f"largest difference of {len(expected_values)} logged values: {metrics:g} ({len(missing)} were not written)")
    return int(bool(missing) or weights > 0 or metrics > 0 or not torch.isfinite(torch.tensor(metrics)))


if __name__ == "__main__":
    sys.exit(main())
