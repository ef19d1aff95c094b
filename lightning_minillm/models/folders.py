"""What a model folder holds, read from its names and the headers of its files; no weights are read."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_minillm.files import local_path, read_json

ADAPTER_FILE = "adapter_config.json"
CONFIG_FILE = "config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LFS_POINTER = b"version https://git-lfs"
_STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
REMEDY = "copy or download the folder again"


def local_or_hub(path: str | Path, what: str) -> str:
    """Return a hub name, or an existing folder with ``~`` expanded.

    Args:
        path: as a user gave it.
        what: is loaded from it, for the message.

    Raises:
        ValueError: the path looks like a folder and there is none.
    """
    name, folder = str(path), local_path(path)
    if folder is None:
        return name
    if folder.is_file():
        raise ValueError(
            f"{name!r} is a file: pass the folder of a {what} or a hub name (minillm-export makes a folder of a"
            " checkpoint)"
        )
    if not folder.is_dir():
        raise ValueError(f"there is no folder {name!r} to load a {what} from: pass an existing folder or a hub name")
    return str(folder)


def adapted_model(folder: str | Path) -> str | None:
    """Return the folder or hub name of the model that a folder's adapters belong to; ``None`` if it has none.

    Raises:
        ValueError: the adapters do not name their model.
    """
    file = Path(folder) / ADAPTER_FILE
    if not file.is_file():
        return None
    name = read_json(file).get("base_model_name_or_path")
    if not name:
        raise ValueError(
            f"{str(file)!r} does not name the model that the adapters belong to: set its base_model_name_or_path"
        )
    return str(name)


def weight_shapes(folder: str | Path, names: Sequence[str] = WEIGHTS) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a folder's files of weights, of which only the headers are read.

    Raises:
        ValueError: there are no weights, a file is missing, empty or cut off, or is a pointer of Git LFS.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(Path(folder), names):
        with open(file, "rb") as content:
            start = content.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise ValueError(f"{str(file)!r} is a pointer of Git LFS instead of weights: run 'git lfs pull' beside it")
        try:
            shapes |= _header(file)
        except Exception as error:  # torch and safetensors raise exceptions of many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ValueError(f"{str(file)!r} is not a complete file of weights ({reason}): {REMEDY}") from error
    return shapes


def stored_dtype(folder: str | Path) -> torch.dtype | None:
    """Return the commonest dtype of a folder's weights; ``None`` if it has none in the format of safetensors."""
    files = [*_weight_files(Path(folder), WEIGHTS)] if Path(folder).is_dir() else []
    if not files or files[0].suffix != ".safetensors":
        return None
    with safe_open(files[0], framework="pt") as content:
        kinds = Counter(content.get_slice(name).get_dtype() for name in content.keys())  # noqa: SIM118
    return _STORED_DTYPES.get(kinds.most_common(1)[0][0])


def _weight_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield the files that transformers would read."""
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            yield folder / name
            return
        if index.is_file():
            try:
                files = sorted({folder / file for file in read_json(index)["weight_map"].values()})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{str(index)!r} is not a complete index of weights: {REMEDY}") from error
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise ValueError(
                    f"{len(missing)} of {len(files)} files of weights are missing in {str(folder)!r}, e.g."
                    f" {missing[0]}: {REMEDY}"
                )
            yield from files
            return
    raise ValueError(f"{str(folder)!r} contains no weights ({' or '.join(names)}): {REMEDY}")


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as content:
                return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    state = torch.load(file, map_location="meta", mmap=zipfile.is_zipfile(file) or None, weights_only=True)
    return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
