"""Jobs of a sweep that need several processes.

Lightning starts the other ranks by repeating the command line, which would repeat the whole sweep, and leaves its rank
variables in the environment of the next job. Therefore such a job runs as a command of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lightning_minillm.cli.build import world_size
from lightning_minillm.cli.config import quote
from lightning_minillm.files import read_json
from lightning_minillm.reports import run_folder as runs

RANKS = "RANK LOCAL_RANK NODE_RANK GROUP_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()
"""The variables that a launcher sets for the processes it starts."""


def run_job(command: Callable[[DictConfig], Any], name: str, cfg: DictConfig) -> float | None:
    """Run a command in this process, or in a new process if it is a job of a sweep for several devices.

    Args:
        command: takes the configuration.
        name: name of the command's module in this package.
        cfg: as composed, with ``trainer`` and ``monitor``.

    Returns:
        The best value of ``monitor``, for a search; ``None`` if the run did not measure it.

    Raises:
        ValueError: the job failed; its messages have been printed.
    """
    trainer: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    if HydraConfig.get().mode != RunMode.MULTIRUN or world_size(trainer) == 1:
        command(cfg)
        return _objective(cfg)
    words = [
        *HydraConfig.get().overrides.task,
        "hydra.mode=RUN",  # otherwise a sweep in the configuration would start again
        f"hydra.run.dir={quote(HydraConfig.get().runtime.output_dir)}",
        f"hydra.sweep.dir={quote(Path(HydraConfig.get().sweep.dir).resolve())}",
    ]
    environment = {key: value for key, value in os.environ.items() if key not in RANKS}
    done = subprocess.run([sys.executable, "-m", f"lightning_minillm.cli.{name}", *words], env=environment)
    if done.returncode:
        raise ValueError(f"the job {' '.join(HydraConfig.get().overrides.task)} ended with exit code {done.returncode}")
    return _objective(cfg)


def _objective(cfg: DictConfig) -> float | None:
    metrics = read_json(Path(cfg.output_dir) / runs.METRICS_FILE) or {}
    best = metrics.get("best") or {"value": metrics.get("last", {}).get(cfg.monitor)}
    return None if best["value"] is None else float(best["value"])
