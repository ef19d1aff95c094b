"""Names, groups, tags and ids of runs in Weights & Biases.

The functions for names are resolvers in ``conf/logger/wandb.yaml``. Outside a command, when Hydra has no job, they
return the values of a single run.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lightning_minillm.files import read_json, write_text

TRACKING_FILE = "tracking.json"
"""The id of the W&B run of a folder, and the folder in which it was drawn."""
OVERRIDES_FILE = Path(".hydra") / "overrides.yaml"
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
    """Return the id that is kept in a run's folder, or a new one; ``None`` (W&B draws one) for ``resume=never``.

    A run that was renamed or moved continues its W&B run. A copy gets an id of its own, or two runs would write to one.
    """
    if resume == "never":
        return None
    here = Path(folder).resolve()
    stored = read_json(here / TRACKING_FILE) or {}
    origin = stored.get("folder", "")
    is_copy = origin != str(here) and read_json(Path(origin) / TRACKING_FILE) == stored
    return secrets.token_hex(8) if "id" not in stored or is_copy else str(stored["id"])


def keep_overrides(folder: str | Path) -> None:
    """Write the overrides of a command to its folder, by which the runs of a sweep are told apart."""
    if HydraConfig.initialized():
        write_text(Path(folder) / OVERRIDES_FILE, yaml.safe_dump(list(HydraConfig.get().overrides.task)))


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
