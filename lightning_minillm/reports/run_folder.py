"""A run directory: who may write to it, the resolved configuration, the state of the code, versions, metrics."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

import lightning_minillm
from lightning_minillm.files import make_folder, read_json, write_json, write_text

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.json"
LOCK_FILE = ".lock"
OWNER_FILE = ".lock.json"
_KEY_OF_KIND = {"train": "module", "evaluate": "evaluation", "generate": "generation", "recipe": "recipe"}
_REPORT = ("results.json", "results.csv", "report.md", "pictures")
WRITTEN = {
    "train": (METRICS_FILE, "checkpoints", "student", "samples", "plots"),
    "evaluate": (*_REPORT, "responses"),
    "generate": (METRICS_FILE,),
    "recipe": (*_REPORT, "table.md", "curves.png", "bars.png", "samples.md"),
}
"""What a command writes to its folder under a fixed name, and would therefore overwrite."""
_PACKAGES = ("torch", "lightning", "transformers", "datasets", "torchmetrics", "tokenizers", "hydra-core", "numpy")


@rank_zero_only
def start_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Create the run directory, and write the configuration and the environment to it."""
    write_text(folder / CONFIG_FILE, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    environment = {
        "command": sys.argv,
        "git": git_state(),
        "python": platform.python_version(),
        "lightning_minillm": lightning_minillm.__version__,
        "packages": package_versions(),
    }
    write_json(folder / ENVIRONMENT_FILE, environment)


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the configuration of an earlier run in this directory, or ``None``.

    Raises:
        ValueError: ``config.yaml`` is not a YAML mapping.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return None
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{str(file)!r} is not the configuration of a run: it has no keys")
    return config


# --- who may write --------------------------------------------------------------------------------------------------


def kind_of(config: Mapping[str, Any]) -> str | None:
    """Return the command that a configuration belongs to, such as ``train``; ``None`` for a file of something else."""
    return next((kind for kind, key in _KEY_OF_KIND.items() if isinstance(config.get(key), Mapping)), None)


def check_folder(folder: Path, kind: str) -> dict[str, Any] | None:
    """Check that a command may write to a folder: nothing in it may belong to the user or to a run of another kind.

    Args:
        folder: the run's; it need not exist.
        kind: the command: ``train``, ``evaluate``, ``generate`` or ``recipe``.

    Returns:
        The configuration of the run of this kind that the folder contains, if any.

    Raises:
        ValueError: the folder contains something else that would be overwritten.
    """
    config = read_config(folder)
    if config is not None:
        found = kind_of(config)
        if found == kind:
            return config
        owner = f"a run of minillm-{found}" if found else f"a {CONFIG_FILE} that no run wrote"
        raise ValueError(
            f"output_dir {str(folder)!r} contains {owner}, which minillm-{kind} would overwrite: use another output_dir"
        )
    taken = [name for name in (ENVIRONMENT_FILE, *WRITTEN[kind]) if (folder / name).exists()]
    if taken:
        raise ValueError(
            f"output_dir {str(folder)!r} contains {', '.join(taken)}, which minillm-{kind} would overwrite, but no"
            f" {CONFIG_FILE} of the run that wrote them: put it back, or use another output_dir"
        )
    return None


def check_inputs(folder: Path, kind: str, inputs: Mapping[str, str]) -> None:
    """Check that a run does not overwrite what it reads.

    Args:
        folder: the run's.
        kind: the command.
        inputs: paths by their names in the configuration; hub names do no harm.

    Raises:
        ValueError: an input is one of the files and folders that the command writes.
    """
    for key, path in inputs.items():
        place = Path(path).expanduser().resolve()
        if any(place.is_relative_to(folder.resolve() / name) for name in WRITTEN[kind]):
            raise ValueError(f"{key}={path} is overwritten by a run with output_dir={folder}: use another output_dir")


@rank_zero_only
def _is_first_rank() -> bool:
    return True  # None on the other ranks


@contextmanager
def claimed(folder: Path, keep: bool = True) -> Iterator[None]:
    """Create a run's folder and keep other processes from working in it until the block ends.

    The system releases the lock of a process that was killed.

    Args:
        folder: the run's; one that did not exist and is still empty at the end is removed.
        keep: otherwise it is removed whenever it is empty at the end.

    Raises:
        ValueError: another process works in the folder (the message names it), or nothing can be written there.
    """
    if not _is_first_rank():  # the others work for it
        yield
        return
    existed = folder.exists()
    lock = FileLock(folder / LOCK_FILE)
    make_folder(folder)
    try:
        lock.acquire(timeout=0)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_json(folder / OWNER_FILE, owner)
    except Timeout as error:
        owner = read_json(folder / OWNER_FILE) or {}
        who = f"process {owner['pid']} on {owner['host']} since {owner['since']}" if owner else "another process"
        raise ValueError(
            f"output_dir {str(folder)!r} is in use by {who}: wait until it ends, or use another output_dir"
        ) from error
    except OSError as error:
        lock.release()
        raise ValueError(
            f"nothing can be written to output_dir {str(folder)!r} ({error.strerror}): use another output_dir"
        ) from error
    try:
        yield
    finally:
        for name in (OWNER_FILE, LOCK_FILE):
            with suppress(OSError):  # gone, or open on a system that does not remove open files
                (folder / name).unlink()
        lock.release()
        if not (existed and keep) and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


# --- versions -------------------------------------------------------------------------------------------------------


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that numbers depend on."""
    return {name: metadata.version(name) for name in _PACKAGES}


def git_state() -> dict[str, Any] | None:
    """Return the commit of the package's checkout and whether it has changes; ``None`` without a checkout or git."""
    root = Path(lightning_minillm.__file__).parent.parent
    commit = _git(root, "rev-parse", "HEAD")
    tracked = _git(root, "ls-files", "--error-unmatch", "lightning_minillm/__init__.py")
    if not commit or not tracked:
        return None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "branch": _git(root, "rev-parse", "--abbrev-ref", "HEAD"), "changed": bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
