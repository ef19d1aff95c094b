"""The content of a checkpoint in either format: one file, or a folder to which every rank wrote its part.

The folder has the format of ``torch.distributed.checkpoint``, and Lightning's ``meta.pt`` beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from lightning_minillm._reach import load_distributed
from lightning_minillm.distributed.sharding import is_sharded
from lightning_minillm.files import digest

Shapes = Mapping[str, tuple[int, ...]]
ENDS_KEY = "end_token_ids"
"""Key of a checkpoint with the ids that end a response of the student."""
_KEY = "state_dict"
_FROZEN_KEY = "frozen_weights"
_SAMPLES = 64  # numbers of a weight in a digest
_METADATA_FILE = "meta.pt"


def weight_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the weights in a checkpoint without reading the weights.

    Raises:
        OSError, RuntimeError, KeyError, ...: the checkpoint cannot be read or contains no weights.
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
    return shapes_of(_read_file(path)[_KEY])


def read_weights(path: str | Path) -> dict[str, Any]:
    """Return the weights of a checkpoint as whole tensors on the CPU, in one process.

    Raises:
        OSError, RuntimeError, KeyError, ...: the checkpoint cannot be read or contains no weights.
    """
    path = Path(path)
    return load_distributed(path, _KEY) if path.is_dir() else dict(_read_file(path)[_KEY])


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint except weights and optimiser state."""
    path = Path(path)
    content = _read_file(path / _METADATA_FILE if path.is_dir() else path)
    return {key: value for key, value in content.items() if key not in (_KEY, "optimizer_states")}


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load the weights of a checkpoint into a module; all ranks of a sharded module take part.

    Raises:
        ValueError: the checkpoint has a different architecture, or belongs to other frozen weights.
    """
    if not is_sharded(module):
        module.load_state_dict(completed(module, read_weights(path), read_metadata(path)))
        return
    check_architecture(shapes_of(module.state_dict()), weight_shapes(path))
    state = read_weights(path) if torch.distributed.get_rank() == 0 else {}
    set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def leave_out_frozen(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Remove the weights that are not trained from a checkpoint, in place, and record a digest of them.

    A module without frozen weights keeps all of them.
    """
    frozen = _frozen(module)
    if frozen:
        checkpoint[_KEY] = {name: value for name, value in checkpoint[_KEY].items() if name not in frozen}
        checkpoint[_FROZEN_KEY] = _digest(frozen)


def completed(module: nn.Module, weights: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of a checkpoint with those of the module that :func:`leave_out_frozen` removed.

    Args:
        module: was made as the one that wrote the checkpoint.
        weights: of the checkpoint, under the module's names.
        metadata: of the checkpoint.

    Raises:
        ValueError: the checkpoint has a different architecture, or was trained on other frozen weights.
    """
    own, frozen, recorded = module.state_dict(), _frozen(module), metadata.get(_FROZEN_KEY)
    whole = dict(weights)
    if frozen and recorded is not None:
        whole |= {name: own[name] for name in frozen}
    check_architecture(shapes_of(own), shapes_of(whole))
    if frozen and recorded not in (None, _digest(frozen)):
        raise ValueError(
            "the checkpoint holds adapters alone, and the model they were trained on has other weights now: restore the"
            " folder or the revision that the run began with"
        )
    return whole


def _frozen(module: nn.Module) -> dict[str, Tensor]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in parameters if not parameter.requires_grad}


@torch.no_grad()
def _digest(frozen: Mapping[str, Tensor]) -> str:
    """Return a digest of shapes and some numbers of weights, which does not depend on their names."""
    values = (value.reshape(-1) for value in frozen.values())
    samples = [value[:: max(1, value.numel() // _SAMPLES)].float().tolist() for value in values]
    return digest([samples, [list(value.shape) for value in frozen.values()]])


def shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a state dict."""
    return {name: tuple(value.shape) for name, value in state.items()}


def check_architecture(own: Shapes, theirs: Shapes) -> None:
    """Check that the weights of a checkpoint (``theirs``) fit a model (``own``).

    Raises:
        ValueError: names or shapes differ.
    """
    if own == theirs:
        return
    names = sorted(own.keys() ^ theirs.keys()) or [name for name in own if own[name] != theirs[name]]
    raise ValueError(
        f"the checkpoint has a different architecture: {len(names)} weights differ in name or shape, e.g. {names[0]}"
        f" (here {own.get(names[0])}, in the checkpoint {theirs.get(names[0])}); use the model it was trained from"
    )


def _read_file(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, mmap=True, map_location="cpu", weights_only=True))
