"""The stages of a recipe: their inputs, when they are finished, and how to run one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

import yaml
from filelock import FileLock

import lightning_minillm
from lightning_minillm.cli.build import world_size
from lightning_minillm.cli.config import Config
from lightning_minillm.cli.sweeps import RANKS
from lightning_minillm.files import digest, digest_of_files, read_json, replace_in_strings, write_json, write_text

Command = Literal["train", "generate", "evaluate"]
COMMANDS: tuple[Command, ...] = ("train", "generate", "evaluate")
STATE_FILE = "stage.json"
LOG_FILE = "log.txt"
PROGRESS_FILE = "progress.json"
CONFIG_FILE = ".stage.yaml"
SET_ASIDE = "set_aside"

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
    state = _state(stage.folder)
    return bool(state.get("finished")) and state.get("fingerprint") == fingerprint and not state.get("redo")


def check_folder(stage: Stage) -> None:
    """Check that the folder of a stage is new, or was written by a recipe.

    Raises:
        ValueError: it contains files of the user, or of a run of their own.
    """
    folder = stage.folder
    if folder.exists() and not _state(folder) and {item.name for item in folder.iterdir()} - {LOG_FILE}:
        raise ValueError(
            f"{str(folder)!r} is the folder of stage '{stage.name}', but contains files that no recipe wrote: move them"
            " away, or use another output_dir and shared_dir"
        )


def redo(stage: Stage) -> None:
    """Make a stage run again even if it is finished."""
    if _state(stage.folder):
        write_json(stage.folder / STATE_FILE, {**_state(stage.folder), "redo": True})


def is_stale(stage: Stage, fingerprint: str) -> bool:
    """Whether the folder of the stage contains the result of different inputs, or one to be made again."""
    state = _state(stage.folder)
    return bool(state) and (state["fingerprint"] != fingerprint or bool(state.get("redo")))


def run_stage(stage: Stage, fingerprint: str) -> bool:
    """Run a stage unless it is finished, or resume it; return whether there was work to do.

    The result of different inputs is set aside first, and put back when its inputs return. Two processes never work in
    the same folder.

    Raises:
        ValueError: the folder contains files that no recipe wrote, or the command failed.
    """
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(stage.folder.with_name(f".{stage.folder.name}.lock")):
        check_folder(stage)
        if is_stale(stage, fingerprint):
            is_redone = _state(stage.folder).get("redo")
            _set_aside(stage.folder)
            if not is_redone:
                _put_back(stage.folder, fingerprint)
            (stage.config.get("logger") or {}).get("wandb", {}).update(id=None)  # it belonged to what was set aside
        if is_finished(stage, fingerprint):
            return False
        write_json(stage.folder / STATE_FILE, {"fingerprint": fingerprint, "finished": False})
        started = time.perf_counter()
        if world_size(stage.config.get("trainer", {})) > 1:
            run_alone(stage)
        else:
            resolve_name(f"lightning_minillm.cli.{stage.command}:{stage.command}")(stage.config)
        seconds = round(time.perf_counter() - started, 1)
        write_json(stage.folder / STATE_FILE, {"fingerprint": fingerprint, "finished": True, "seconds": seconds})
        return True


def run_alone(stage: Stage) -> None:
    """Run a stage for several devices as a command of its own, whose ranks are started by repeating that command.

    Raises:
        ValueError: it failed; its messages have been printed.
    """
    file = stage.folder / CONFIG_FILE
    write_text(file, yaml.safe_dump(stage.config, sort_keys=False, allow_unicode=True))
    words = [sys.executable, "-m", "lightning_minillm.cli.recipe.run_alone", stage.command, str(file)]
    sys.stdout.flush()
    done = subprocess.run(words, env={key: value for key, value in os.environ.items() if key not in RANKS})
    if done.returncode:
        raise ValueError(f"its command ended with exit code {done.returncode}; the reason is printed above")


def _state(folder: Path) -> dict[str, Any]:
    """Return the state that a recipe left in the folder of a stage; empty if none did."""
    state = read_json(folder / STATE_FILE)
    return state if isinstance(state, dict) and {"fingerprint", "finished"} <= state.keys() else {}


def set_aside(folder: Path, names: Iterable[str], to: Path) -> Path:
    """Move files and folders to a new folder, and return it.

    Args:
        folder: where they are.
        names: those that do not exist are left out.
        to: the new folder; a number is added to its name if it exists.
    """
    places = chain([to], (to.with_name(f"{to.name}_{number}") for number in count(2)))
    place = next(place for place in places if not place.exists())
    place.mkdir(parents=True)
    for name in names:
        if (folder / name).exists():
            (folder / name).rename(place / name)
    return place


def _set_aside(folder: Path) -> None:
    """Set the result of a stage aside, except the log, which may be open; its state last, which says whose it is."""
    names = sorted((item.name for item in folder.iterdir()), key=lambda name: name == STATE_FILE)
    to = folder.parent / SET_ASIDE / f"{folder.name}-{str(_state(folder)['fingerprint'])[:8]}"
    place = set_aside(folder, [name for name in names if name != LOG_FILE], to)
    print(f"the earlier result in {folder} is moved to {place}", flush=True)


def _put_back(folder: Path, fingerprint: str) -> None:
    """Move a finished result of these inputs back if it was set aside."""
    for place in (folder.parent / SET_ASIDE).glob(f"{folder.name}-{fingerprint[:8]}*"):
        state = _state(place)
        if state.get("fingerprint") == fingerprint and state["finished"] and not state.get("redo"):
            for item in sorted(place.iterdir(), key=lambda item: item.name == STATE_FILE):
                item.rename(folder / item.name)
            place.rmdir()
            return


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
