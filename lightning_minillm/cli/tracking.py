"""Names, groups and tags of runs in Weights & Biases, and what is logged there besides metrics.

The functions for names are resolvers in ``conf/logger/wandb.yaml``. Outside a command, when Hydra has no job, they
return the values of a single run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lightning_minillm.files import digest, read_json

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

_LONGEST_TAG = 64  # characters; more is an error there


def run_name(name: str) -> str:
    """Return the name of a run: the name of its configuration, and in a sweep the job's overrides."""
    return " ".join([name, *_swept()])


def run_group(name: str) -> str | None:
    """Return the group of a run: its sweep or its recipe; ``None`` for a single run."""
    if _sweep() is not None:
        return f"{name}/{_sweep()}"
    if HydraConfig.initialized() and HydraConfig.get().job.config_name == "recipe":
        return "/".join(Path(HydraConfig.get().runtime.output_dir).parts[-2:])
    return None


def run_tags(name: str) -> list[str]:
    """Return the tags of a run: the name of its configuration, and in a sweep the job's overrides."""
    return [tag[:_LONGEST_TAG] for tag in [name, *_swept()]]


def run_id(folder: str, resume: str) -> str | None:
    """Return an id that is the same when a run is resumed in its folder; ``None`` (a new id) for ``resume=never``."""
    return None if resume == "never" else digest(str(Path(folder).resolve()))[:16]


@contextmanager
def tracked(loggers: Sequence[Logger], folder: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Log the configuration, the state of the code and the versions to every logger, and finish W&B runs at the end.

    A logger run that is not finished would continue in the next run of the process, such as the next job of a sweep.

    Args:
        loggers: the trainer's.
        folder: the folder of a run that :func:`lightning_minillm.reports.run_folder.start_run` has created.
        config: resolved.
    """
    from lightning.pytorch.loggers import WandbLogger  # here, since the resolvers above are needed at once
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

    rank_zero_only(_log_start)(loggers, folder, config)
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                place = Path(logger.experiment.dir).parent
                logger.experiment.finish(exit_code)
                if place.name.startswith("offline-run"):
                    rank_zero_info(f"Weights & Biases: the run is in {place}; `wandb sync {place}` uploads it")


def _log_start(loggers: Sequence[Logger], folder: Path, config: Mapping[str, Any]) -> None:
    from lightning_minillm.reports import run_folder as runs

    environment = read_json(folder / runs.ENVIRONMENT_FILE)
    for logger in loggers:
        logger.log_hyperparams({**config, "environment": environment})


def _sweep() -> str | None:
    """Return the name of the sweep's folder if this is one of its jobs."""
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir).resolve()
    # a job for several devices is a command of its own that gets the folder of the sweep
    return folder.name if folder in Path(hydra.runtime.output_dir).resolve().parents else None


def _swept() -> list[str]:
    """Return the overrides in which this job differs from others of its sweep, with the last part of their keys."""
    if _sweep() is None:
        return []
    hydra = HydraConfig.get()
    file = Path(hydra.sweep.dir) / "multirun.yaml"
    shared = set(OmegaConf.load(file).hydra.overrides.task) if file.is_file() else set()
    shared |= {f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()}  # keys with one value
    pairs = (word.partition("=") for word in hydra.overrides.task if word not in shared)
    return [f"{key.rpartition('.')[2]}={value}" for key, _, value in pairs]
