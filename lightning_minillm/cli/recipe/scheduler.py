"""Runs the stages of a recipe, one after the other or several at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from lightning_minillm.cli.console import quiet_libraries
from lightning_minillm.cli.errors import EXPECTED, RecipeError
from lightning_minillm.cli.recipe.stages import (
    LOG_FILE,
    PROGRESS_FILE,
    Stage,
    is_finished,
    run_stage,
)
from lightning_minillm.files import read_json

_PRELOADED = ("torch", "lightning", "transformers", "datasets", "lightning_minillm.cli.train")
_REFRESH_SECONDS = 1.0


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_workers(workers: int | str) -> int:
    """Return the number of stages to run at once; ``auto``: one on a GPU, otherwise one per core up to four.

    Raises:
        ValueError: neither ``auto`` nor at least 1.
    """
    if workers == "auto":
        return 1 if torch.cuda.is_available() else min(4, available_cores())
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be auto or at least 1, got {workers!r}")
    return workers


def run_stages(
    stages: Sequence[Stage], fingerprints: Mapping[str, str], workers: int, console: Console
) -> dict[str, bool]:
    """Run all stages, each after the stages it needs.

    Args:
        stages: in an order in which every stage comes after those it needs.
        fingerprints: digests of their inputs.
        workers: number of stages to run at once. With 1, stages run in this process and show their own progress; with
            more, each runs in its own process and writes to ``log.txt`` in its folder, and a table shows all of them.
        console: where to print.

    Returns:
        By stage, whether there was work to do.

    Raises:
        RecipeError: a stage failed; the message names its log.
    """
    if workers == 1:
        return {stage.name: _run_here(stage, fingerprints[stage.name], console) for stage in stages}
    return _Parallel(stages, fingerprints, workers, console).run()


def _run_here(stage: Stage, fingerprint: str, console: Console) -> bool:
    if is_finished(stage, fingerprint):
        console.print(f"[dim]{stage.name}: kept[/dim]")
        return False
    console.rule(stage.name)
    try:
        return run_stage(stage, fingerprint)
    except Exception as error:
        if not isinstance(error, EXPECTED):
            traceback.print_exc()
        raise RecipeError(f"stage '{stage.name}' failed: {error}") from error


@dataclass
class _Parallel:
    """Runs each stage in its own process."""

    stages: Sequence[Stage]
    fingerprints: Mapping[str, str]
    workers: int
    console: Console
    done: dict[str, bool] = field(default_factory=dict)
    running: dict[str, BaseProcess] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    def run(self) -> dict[str, bool]:
        """Run all stages."""
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")  # on Windows
        if "forkserver" in methods:
            context.set_forkserver_preload(list(_PRELOADED))
        threads = max(1, available_cores() // self.workers)
        with self._display() as refresh:
            try:
                while len(self.done) < len(self.stages):
                    self._start_ready(context.Process, threads)
                    if self.running:
                        wait([process.sentinel for process in self.running.values()], _REFRESH_SECONDS)
                    self._collect()
                    refresh()
            finally:
                self._stop_all()
        return {stage.name: self.done[stage.name] for stage in self.stages}

    def _start_ready(self, make_process: Callable[..., BaseProcess], threads: int) -> None:
        for stage in self.stages:
            if stage.name in self.done or stage.name in self.running or not set(stage.needs) <= set(self.done):
                continue
            fingerprint = self.fingerprints[stage.name]
            if is_finished(stage, fingerprint):
                self.done[stage.name] = False
                self._say(f"{stage.name}: kept")
            elif len(self.running) < self.workers:
                process = make_process(target=_run_in_child, args=(stage, fingerprint, threads), name=stage.name)
                process.start()
                self.running[stage.name] = process
                self.started[stage.name] = time.monotonic()
                self._say(f"{stage.name}: started")

    def _collect(self) -> None:
        for name, process in list(self.running.items()):
            if process.is_alive():
                continue
            process.join()
            del self.running[name]
            self.ended[name] = time.monotonic()
            if process.exitcode != 0:
                folder = next(stage.folder for stage in self.stages if stage.name == name)
                raise RecipeError(
                    f"stage '{name}' failed:\n{_tail(folder / LOG_FILE)}\nThe full log is {str(folder / LOG_FILE)!r}"
                )
            self.done[name] = True
            self._say(f"{name}: done in {self.ended[name] - self.started[name]:.0f} s")

    def _stop_all(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.join(10)
            if process.is_alive():
                process.kill()

    def _say(self, text: str) -> None:
        """Print a line if no table is shown."""
        if not self.console.is_terminal:
            self.console.print(text)

    @contextlib.contextmanager
    def _display(self) -> Iterator[Callable[[], None]]:
        if not self.console.is_terminal:
            yield lambda: None
            return
        with Live(self._table(), console=self.console, refresh_per_second=4) as live:
            yield lambda: live.update(self._table())

    def _table(self) -> RenderableType:
        table = Table("stage", "state", "step", "rollouts", "validation", "time")
        for stage in self.stages:
            state = "kept" if self.done.get(stage.name) is False else "done" if stage.name in self.done else "waiting"
            progress: Mapping[str, object] = {}
            if stage.name in self.running:
                state = "[bold]running[/bold]"
                progress = read_json(stage.folder / PROGRESS_FILE) or {}
            elapsed = ""
            if stage.name in self.started:
                elapsed = f"{self.ended.get(stage.name, time.monotonic()) - self.started[stage.name]:.0f} s"
            table.add_row(stage.name, state, *_progress_cells(progress), elapsed)
        return table


def _progress_cells(progress: Mapping[str, object]) -> tuple[str, str, str]:
    if not progress:
        return "", "", ""
    step = f"{progress['step']} / {progress['max_steps']}" if progress.get("max_steps") else ""
    rollouts = progress.get("rollouts")
    shown = f"{rollouts[0]} / {rollouts[1]}" if isinstance(rollouts, list) else ""
    metrics = progress.get("metrics")
    value = metrics.get("val/rougeL") if isinstance(metrics, dict) else None
    return step, shown, f"Rouge-L {value:.1f}" if value is not None else ""


def _run_in_child(stage: Stage, fingerprint: str, threads: int) -> None:
    """Run a stage in this child process, and write its output to the log of the stage."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    log = open(stage.folder / LOG_FILE, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open until the process ends
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    _end_with_parent()
    quiet_libraries()
    torch.set_num_threads(threads)
    run_stage(stage, fingerprint)


def _end_with_parent() -> None:
    """Stop when the recipe's process ends for any reason; the stage can be resumed from its checkpoint."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tail(file: Path, lines: int = 15) -> str:
    if not file.is_file():
        return "(no output)"
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
