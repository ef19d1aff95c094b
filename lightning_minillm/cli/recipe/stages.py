"""The stages of a recipe: their inputs, when they are finished, and how to run one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from filelock import FileLock

import lightning_minillm
from lightning_minillm.cli.config import Config
from lightning_minillm.files import digest, digest_of_files, read_json, replace_in_strings, write_json

Command = Literal["train", "generate", "evaluate"]
COMMANDS: tuple[Command, ...] = ("train", "generate", "evaluate")
STATE_FILE = "stage.json"
LOG_FILE = "log.txt"
PROGRESS_FILE = "progress.json"

# Keys that decide how a stage is shown and where it is stored, not its result.
_NOT_AN_INPUT = ("output_dir", "output", "logger", "name", "cache_dir", "resume", "checkpoint_every")


@dataclass(frozen=True)
class Stage:
    """One step of a recipe."""

    name: str
    command: Command
    folder: Path
    needs: tuple[str, ...]
    """The stages whose results it reads."""
    config: Config = field(repr=False)
    """The resolved configuration of the command."""
    title: str = ""
    """The name in tables."""


def fingerprints_of(stages: Mapping[str, Stage], data: str, folders: Mapping[str, Path]) -> dict[str, str]:
    """Return digests of everything that the result of each stage depends on, by the name of the stage.

    Args:
        stages: all stages by name, each after the stages it needs.
        data: digest of the data files.
        folders: folders that may appear in configurations, by the name that replaces them, so that a recipe keeps its
            stages when it is moved.
    """
    longest_first = sorted(folders.items(), key=lambda item: -len(str(item[1])))
    symbols = {str(folder): f"<{symbol}>" for symbol, folder in longest_first}
    found: dict[str, str] = {}
    for name, stage in stages.items():
        found[name] = digest(
            {
                "version": lightning_minillm.__version__,
                "command": stage.command,
                "config": replace_in_strings(_inputs(stage.config), symbols),
                "data": data,
                "needs": {need: found[need] for need in stage.needs},
            }
        )
    return found


def _inputs(config: Config) -> Config:
    """Return the part of a configuration that decides a stage's result."""
    shown = {"callbacks": {"best": (config["callbacks"] or {}).get("best")}} if "callbacks" in config else {}
    return {key: value for key, value in config.items() if key not in _NOT_AN_INPUT} | shown


def is_finished(stage: Stage, fingerprint: str) -> bool:
    """Whether the folder of the stage contains the result of exactly these inputs."""
    state = read_json(stage.folder / STATE_FILE) or {}
    return bool(state.get("finished")) and state.get("fingerprint") == fingerprint


def run_stage(stage: Stage, fingerprint: str) -> bool:
    """Run a stage unless it is finished, or resume it; return whether there was work to do.

    A folder with the result of different inputs is emptied first. Two processes never work in the same folder.
    """
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(stage.folder.with_name(f".{stage.folder.name}.lock")):
        if is_finished(stage, fingerprint):
            return False
        state = read_json(stage.folder / STATE_FILE) or {}
        if state.get("fingerprint") != fingerprint and stage.folder.exists():
            _empty(stage.folder)
        write_json(stage.folder / STATE_FILE, {"fingerprint": fingerprint, "finished": False})
        started = time.perf_counter()
        resolve_name(f"lightning_minillm.cli.{stage.command}:{stage.command}")(stage.config)
        seconds = round(time.perf_counter() - started, 1)
        write_json(stage.folder / STATE_FILE, {"fingerprint": fingerprint, "finished": True, "seconds": seconds})
        return True


def _empty(folder: Path) -> None:
    """Remove the files of an earlier run, except the log, which may be open."""
    for item in folder.iterdir():
        if item.name == LOG_FILE:
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


def digest_data(data: Any) -> str:
    """Return a digest of the contents of all files in a data configuration that does not depend on their folders."""
    return digest([digest_of_files(path, whole=True) for path in data_files(data)])


def data_files(data: Any) -> Iterator[Path]:
    """Yield every path in a data configuration that exists, except caches."""
    if isinstance(data, Mapping):
        data = [value for key, value in data.items() if key not in ("cache_dir", "prepare", "split")]
    if isinstance(data, list):
        for value in data:
            yield from data_files(value)
    elif isinstance(data, str) and data and len(data) < 1000 and Path(data).exists():
        yield Path(data)
