"""What a checkpoint holds, in either format: one file, or a folder to which every rank wrote its part.

The folder is ``torch.distributed.checkpoint``'s, with Lightning's ``meta.pt`` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from lightning_minillm._reach import load_distributed
from lightning_minillm.distributed.sharding import is_sharded

Shapes = Mapping[str, tuple[int, ...]]
_KEY = "state_dict"


def weight_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the weights in a checkpoint, without reading them.

    Raises:
        OSError, RuntimeError, KeyError, ...: it cannot be read, or holds no weights.
    """
    path = Path(path)
    if path.is_dir():
        metadata = FileSystemReader(path).read_metadata().state_dict_metadata
        prefix = f"{_KEY}."
        return {
            name.removeprefix(prefix): tuple(entry.size)
            for name, entry in metadata.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
    state = torch.load(path, mmap=True, map_location="cpu", weights_only=True)[_KEY]
    return {name: tuple(value.shape) for name, value in state.items()}


def read_weights(path: str | Path) -> dict[str, Any]:
    """Return the weights of a checkpoint as whole tensors on the CPU, in one process.

    Raises:
        OSError, RuntimeError, KeyError, ...: it cannot be read, or holds no weights.
    """
    path = Path(path)
    if path.is_dir():
        return load_distributed(path, _KEY)
    return dict(torch.load(path, mmap=True, map_location="cpu", weights_only=True)[_KEY])


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint holds besides weights and the optimiser's state."""
    path = Path(path)
    file = path / "meta.pt" if path.is_dir() else path
    content = torch.load(file, mmap=not path.is_dir(), map_location="cpu", weights_only=True)
    return {key: value for key, value in content.items() if key not in (_KEY, "optimizer_states")}


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load the weights of a checkpoint into a module, sharded or not; all ranks of a sharded one take part.

    Raises:
        ValueError: the checkpoint is of another architecture.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    check_architecture(own, weight_shapes(path))
    if not is_sharded(module):
        module.load_state_dict(read_weights(path))
        return
    state = read_weights(path) if torch.distributed.get_rank() == 0 else {}
    set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def check_architecture(own: Shapes, theirs: Shapes) -> None:
    """Make sure that weights fit a model.

    Raises:
        ValueError: names or shapes differ.
    """
    if own == theirs:
        return
    names = sorted(own.keys() ^ theirs.keys()) or [name for name in own if own[name] != theirs[name]]
    raise ValueError(
        f"the checkpoint is of another architecture: {len(names)} weights differ in name or shape, e.g."
        f" {names[0]} (here {own.get(names[0])}, there {theirs.get(names[0])}); give the model it was made from"
    )
