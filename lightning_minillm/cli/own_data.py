"""Paths in configurations: the home directory, and data of one's own next to the built-in data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

FINGERPRINT_FILE = "fingerprint.json"
"""A file that every built-in data set has."""
_HOME = re.compile(r"""(?<=[=,\[{:\s'"])~(?=/|$)""")
_OWN_DATA = re.compile(r"\+*data\.(path|train|validation|test|sources)=")


def expand_home(value: Any) -> Any:
    """Return a plain configuration in which every text that begins with ``~/`` has the home directory in its place."""
    if isinstance(value, Mapping):
        return {key: expand_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_home(item) for item in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def expand_overrides(overrides: Iterable[str]) -> list[str]:
    """Put the home directory in place of ``~/`` at the beginning of a value, which Hydra's grammar does not know."""
    home = str(Path.home()).replace("\\", "/")
    return [_HOME.sub(lambda _: home, override) for override in overrides]


def settle_data(cfg: DictConfig) -> DictConfig:
    """Let data whose splits have places of their own, or whose sources are mixed, do without ``data.path``."""
    data = cfg.get("data")
    if isinstance(data, DictConfig) and OmegaConf.is_missing(data, "path"):
        raw = OmegaConf.to_container(data, resolve=False)
        places = [raw.get(key) for key in ("train", "sources")] if isinstance(raw, dict) else []
        if any(place and "${" not in str(place) for place in places):
            with open_dict(cfg):
                data.path = None
    return cfg


def check_own_data(config: Mapping[str, Any], overrides: Iterable[str]) -> None:
    """Check that data of one's own are read where they were given, and not replaced by the built-in data set.

    Args:
        config: resolved.
        overrides: as given on the command line.

    Raises:
        ValueError: a place of data was given without ``data=...``, and the built-in data set would be used or written.
    """
    overrides = tuple(overrides)
    given = [override for override in overrides if _OWN_DATA.match(override)]
    data = config.get("data") or {}
    if not (given and data.get("prepare")) or any(override.startswith("data=") for override in overrides):
        return
    if all(override.lstrip("+").startswith("data.path=") for override in given):
        if (Path(data["path"]) / FINGERPRINT_FILE).is_file():
            return
        other = ", or data=synthetic to write the built-in data set there"
    else:
        other = ""
    raise ValueError(f"{given[0]} would not be read: add data=instructions to read data of your own{other}")
