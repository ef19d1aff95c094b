"""Checkpoints that are whole or not there, as files and as folders."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException

METADATA_FILE = "meta.pt"  # Lightning's name for what is not weights or optimiser in a folder
_UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
    KeyError,
    ValueError,
    AttributeError,
    CheckpointException,  # of a folder; torch makes it no Exception
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it lies on the disk.

    Lightning writes to the system's temporary folder and moves from there, which is a copy where that is another disk;
    a run that is killed in the middle would leave half a file under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file.

        Raises:
            TypeError: storage options, which a local file has not.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes local files and takes no storage_options")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with open(scratch, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.is_dir():  # of a run that wrote folders
                shutil.rmtree(path)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
        for older in path.parent.glob(f".{path.name}.*.part"):  # of a run that was killed while it wrote
            older.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read one file.

        Raises:
            ValueError: it is no whole checkpoint, or a folder, which needs a strategy that shards.
        """
        if Path(path).is_dir():
            raise ValueError(
                f"{str(path)!r} is a folder to which several ranks wrote: go on with strategy=fsdp on any number of"
                " devices, or make a Hugging Face folder of it with minillm-export"
            )
        load = super().load_checkpoint
        return read_checkpoint(path, lambda: load(path, *args, **kwargs))


def read_checkpoint(path: str | Path, load: Callable[[], Any]) -> dict[str, Any]:
    """Return what ``load`` reads from ``path``.

    Raises:
        ValueError: it is cut off, or something else than a checkpoint of training.
    """
    try:
        checkpoint = load()
    except _UNREADABLE as error:
        raise ValueError(
            f"{str(path)!r} is not a whole checkpoint ({type(error).__name__}: {str(error).splitlines()[0][:200]})."
            f" {others(Path(path))}"
        ) from error
    if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
        raise ValueError(f"{str(path)!r} is not a checkpoint of a training run. {others(Path(path))}")
    return checkpoint


def others(path: Path) -> str:
    """Say which other checkpoints lie beside one that cannot be used."""
    names = sorted(item.name for item in path.parent.glob("*.ckpt") if item != path)
    if not names:
        return "There is no other checkpoint beside it: start anew with resume=never."
    return f"Beside it lie {', '.join(names)}: go on from one with ckpt_path={path.parent}/NAME."


def backup_of(path: Path) -> Path:
    """Where the previous folder stays until the new one is in its place."""
    return path.with_name(f".{path.name}.previous")


def recover(path: Path) -> bool:
    """Put the previous folder back if a run was killed between two moves; return whether there is a checkpoint."""
    if not path.exists() and backup_of(path).exists():
        os.replace(backup_of(path), path)
    return path.exists()


def put_in_place(scratch: Path, path: Path) -> None:
    """Replace what lies at ``path`` by a folder that is whole; :func:`recover` undoes half of it."""
    backup = backup_of(path)
    shutil.rmtree(backup, ignore_errors=True)
    if path.is_file():
        path.unlink()
    elif path.exists():
        os.replace(path, backup)
    os.replace(scratch, path)
    shutil.rmtree(backup, ignore_errors=True)
