"""Test the package with the lowest direct versions in setup.cfg and with the newest ones, and print a Markdown table.

    python tools/test_versions.py outputs/versions --python python3.10 --python python3.13

makes an environment for every interpreter and set of versions below the folder (one that is there is used as it is, so
that torch can be installed beforehand), runs the smoke experiment, the comparison with the official code's numbers, and
the tests of the parts that touch the dependencies, without a network. The lowest versions are tested with the first
interpreter alone, since old releases have no wheels for new ones.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("torch", "transformers", "lightning", "datasets", "torchmetrics", "hydra-core", "numpy", "wandb")
TOOLS = ("accelerate", "bitsandbytes", "hypothesis", "peft", "pytest", "rouge-score", "sentencepiece")
PARITY = "tests/losses tests/functional tests/benchmarks/test_official_parity.py"
PARTS = "tests/rollout tests/models tests/modules tests/checkpoints tests/callbacks tests/data tests/cli/test_config.py"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def lowest() -> list[str]:
    """Return ``NAME==VERSION`` of the lower bound of every direct requirement."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["options"]["install_requires"].split() + parser["options.extras_require"]["peft"].split()
    return ["{}=={}".format(*re.match(r"([\w-]+)>=([\d.]+)", line).groups()) for line in lines]


def environment(folder: Path, interpreter: str, torch: str, is_lowest: bool) -> Path:
    """Return the interpreter of an environment with the package's requirements, made if it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    pip = [python, "-m", "pip", "install", "--quiet"]
    if subprocess.run([python, "-c", "import hypothesis, transformers"], capture_output=True).returncode:
        pins = folder / "constraints.txt"
        pins.write_text("\n".join(lowest() if is_lowest else [torch]) + "\n", encoding="utf-8")
        names = [line.partition("==")[0] for line in lowest()]
        subprocess.run([*pip, "--constraint", pins, *names, *TOOLS], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", ROOT], check=True)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return the installed versions of the shown packages, and that of Python."""
    script = f"import platform, importlib.metadata as m; print(platform.python_version(), *map(m.version, {SHOWN}))"
    words = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(("Python", *SHOWN), words, strict=True))


def results(python: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run everything in an environment; yield what was run and how it ended."""
    surroundings = {**os.environ, **OFFLINE}

    def run(name: str, *words: str) -> tuple[str, str]:
        log = folder / f"{name}.log"
        with open(log, "w", encoding="utf-8") as file:
            done = subprocess.run([python, "-m", *words], cwd=ROOT, env=surroundings, stdout=file, stderr=file)
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        summary = re.sub(r"^=+ | in [\d.]+s.*$", "", last[0]) if last and name != "smoke" else "runs"
        return name, summary if done.returncode == 0 else f"**{summary if name != 'smoke' else 'fails'}**"

    places = [f"output_dir={folder}/smoke", f"cache_dir={folder}/cache", "resume=never", "callbacks=quiet"]
    yield run("smoke", "lightning_minillm.cli.train", "experiment=smoke", *places)
    chosen = ["pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
    yield run("parity", *chosen, *PARITY.split())
    yield run("parts", *chosen, *PARTS.split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Test every environment, print the table, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to make the environments")
    parser.add_argument("--python", action="append", help="an interpreter; may be repeated (default: this one)")
    given = parser.parse_args(arguments)
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    interpreters = given.python or [sys.executable]
    runs = [(interpreters[0], True), *((interpreter, False) for interpreter in interpreters)]
    rows: list[dict[str, str]] = []
    for number, (interpreter, is_lowest) in enumerate(runs):
        folder = (given.folder / ("lowest" if is_lowest else f"newest_{number}")).absolute()
        python = environment(folder, interpreter, torch, is_lowest)
        rows.append({"set": folder.name.partition("_")[0], **versions(python), **dict(results(python, folder))})
        print(rows[-1], file=sys.stderr)
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(row.values())} |")
    return int(any("**" in value for row in rows for value in row.values()))


if __name__ == "__main__":
    sys.exit(main())
