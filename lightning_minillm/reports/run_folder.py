"""The content of a run directory: the resolved configuration, the state of the code, package versions, the metrics."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

import lightning_minillm
from lightning_minillm.files import write_json, write_text

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.json"
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
    """Return the configuration of an earlier run in this directory, or ``None``."""
    file = folder / CONFIG_FILE
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None


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
