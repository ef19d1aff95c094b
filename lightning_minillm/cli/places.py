"""The files and folders that a configuration names, checked before the slow imports."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_minillm.files import local_path


def check_places(config: Mapping[str, Any]) -> None:
    """Check that the files and folders to read exist, and that there can be a folder to write to.

    Args:
        config: resolved.

    Raises:
        ValueError: names the key and the path.
    """
    for key, path in _models(config):
        place = local_path(path)
        if place is not None and not place.exists():
            raise ValueError(f"{key}={path}: there is no folder {str(place)!r}; give an existing folder or a hub name")
    for key, path in _files(config):
        place = local_path(path)
        if place is not None and not place.exists():
            raise ValueError(f"{key}={path}: there is no file or folder {str(place)!r} (looked in {os.getcwd()!r})")
    folder = Path(config["output_dir"])
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise ValueError(f"output_dir={folder}: {str(existing)!r} is a file; give a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"output_dir={folder}: no right to write to {str(existing)!r}")


def _models(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and paths of models and tokenizers."""
    for key in ("student", "teacher"):
        yield f"{key}.path", (config.get(key) or {}).get("path")
    models = config.get("models")
    named = models if isinstance(models, Mapping) else {}
    yield from (("model", config.get("model")), *((f"models.{name}", path) for name, path in named.items()))


def _files(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and paths of data and checkpoints."""
    yield "ckpt_path", config.get("ckpt_path")
    data, sets = config.get("data") or {}, config.get("data_sets")
    if not data.get("prepare"):  # otherwise it is written first
        for key in ("path", "train", "validation", "test"):
            yield from ((f"data.{key}", path) for path in _each(data.get(key)))
        for name, source in (data.get("sources") or {}).items():
            if isinstance(source, Mapping):
                yield from ((f"data.sources.{name}.path", path) for path in _each(source.get("path")))
    yield from ((f"data_sets.{name}", path) for name, path in (sets if isinstance(sets, Mapping) else {}).items())


def _each(path: Any) -> list[Any]:
    """Return one or several paths as a list."""
    return path if isinstance(path, list) else [path]
