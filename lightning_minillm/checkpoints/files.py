"""Training checkpoints, files or folders, that are either complete or absent."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException

from lightning_minillm._reach import is_out_of_memory
from lightning_minillm.files import replacing

_LITTLE = 2**20  # bytes
_UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
    KeyError,
    ValueError,
    AttributeError,
    CheckpointException,  # raised for folders; torch does not derive it from Exception
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final path and moves it there once it is on the disk.

    Lightning writes to the system's temporary folder and copies from there if that is on a different disk; a run killed
    during the copy would leave half a file under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file.

        Raises:
            TypeError: storage options were given, which local files do not have.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes local files and takes no storage_options")
        path = Path(path)
        with replacing(path, durable=True) as scratch:
            try:
                torch.save(checkpoint, scratch)
            except RuntimeError as error:  # torch does not say why it could not write
                if shutil.disk_usage(path.parent).free < _LITTLE:
                    raise OSError(errno.ENOSPC, "no space left on the disk for the checkpoint", str(path)) from error
                raise
        for abandoned in path.parent.glob(f".{path.name}.*.part"):  # by a run that was killed while it wrote
            abandoned.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read one file.

        Raises:
            ValueError: the file is not a complete checkpoint, or it is a folder, which only a sharding strategy reads.
        """
        if Path(path).is_dir():
            raise ValueError(
                f"{str(path)!r} is a folder written by several ranks: resume with strategy=fsdp on any number of"
                " devices, or convert it to a Hugging Face folder with minillm-export"
            )
        return read_checkpoint(path, partial(super().load_checkpoint, path, *args, **kwargs))


def read_checkpoint(path: str | Path, load: Callable[[], Any]) -> dict[str, Any]:
    """Return what ``load`` reads from ``path``.

    Raises:
        ValueError: the content is cut off, or is not a training checkpoint.
    """
    try:
        checkpoint = load()
    except _UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        first_line, _, _ = str(error).partition("\n")
        raise ValueError(
            f"{str(path)!r} is not a complete checkpoint ({type(error).__name__}: {first_line[:200]});"
            f" {_other_checkpoints(path)}"
        ) from error
    if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
        raise ValueError(f"{str(path)!r} is not a checkpoint of a training run; {_other_checkpoints(path)}")
    return checkpoint


def _other_checkpoints(path: str | Path) -> str:
    """Say what to do about a checkpoint that cannot be used."""
    path = Path(path)
    names = sorted(item.name for item in path.parent.glob("*.ckpt") if item != path)
    if not names:
        return "there is no other checkpoint in its folder: start from scratch with resume=never"
    return f"its folder also contains {', '.join(names)}: resume from one with ckpt_path={path.parent}/NAME"


def backup_of(path: Path) -> Path:
    """Return where the previous folder is kept until the new one is in place."""
    return path.with_name(f".{path.name}.previous")


def recover(path: Path) -> bool:
    """Restore the previous folder if a run was killed between two moves; return whether there is a checkpoint."""
    if not path.exists() and backup_of(path).exists():
        os.replace(backup_of(path), path)
    return path.exists()


def put_in_place(scratch: Path, path: Path) -> None:
    """Replace whatever is at ``path`` with a complete folder; :func:`recover` repairs an interrupted replacement."""
    backup = backup_of(path)
    shutil.rmtree(backup, ignore_errors=True)
    if path.is_file():
        path.unlink()
    elif path.exists():
        os.replace(path, backup)
    os.replace(scratch, path)
    shutil.rmtree(backup, ignore_errors=True)
