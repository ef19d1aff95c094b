"""Tokenised data in Arrow files, found again by a fingerprint of all that they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT = "1"


class Ragged:
    """Rows of token ids of different lengths, in one flat array.

    Args:
        values: ``[sum of lengths]`` integers.
        lengths: ``[rows]`` integers of at least 0.
    """

    def __init__(self, values: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> None:
        self.values = values
        self.lengths = lengths.astype(np.int64)
        self._ends = np.cumsum(self.lengths)

    @classmethod
    def from_rows(cls, rows: Iterable[Iterable[int]]) -> Ragged:
        """Return the rows, packed as 32-bit integers."""
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)
        return cls(values, np.array([len(array) for array in arrays], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        end = self._ends[row]
        return self.values[end - self.lengths[row] : end]


def fingerprint(kind: str, settings: Mapping[str, Any], texts: Iterable[str] = ()) -> str:
    """Return a digest of settings (JSON values) and texts, equal in every process.

    Args:
        kind: what is cached; part of the digest.
        settings: everything besides the texts that the result depends on.
        texts: what is tokenised, in order.
    """
    digest = hashlib.sha256(json.dumps([_FORMAT, kind, settings], sort_keys=True).encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of what a tokenizer does to text: its model, vocabulary and special tokens."""
    digest = hashlib.sha256(json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        digest.update(type(tokenizer).__name__.encode())
        digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    else:
        state = json.loads(backend.to_str())
        for setting in ("truncation", "padding"):  # a call leaves its own behind
            state.pop(setting, None)
        digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()


def load_or_build(
    cache_dir: str | Path | None, name: str, build: Callable[[], Mapping[str, Ragged]]
) -> tuple[dict[str, Ragged], bool]:
    """Return columns from ``<cache_dir>/<name>.arrow``, building and writing them when the file does not exist.

    The file appears complete or not at all, so that several processes may call this at once.

    Args:
        cache_dir: folder of the cache, or ``None`` to always build.
        name: file name without its ending; contains the fingerprint.
        build: makes the columns, all with equal numbers of rows.

    Returns:
        The columns, memory-mapped where they come from the file, and whether they did.
    """
    if cache_dir is None:
        return dict(build()), False
    file = Path(cache_dir).expanduser() / f"{name}.arrow"
    if file.is_file():
        return _read(file), True
    columns = dict(build())
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=file.parent, prefix=f".{name[:40]}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as sink:
            _write(sink, columns)
        os.replace(scratch, file)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return columns, False


def _write(sink: Any, columns: Mapping[str, Ragged]) -> None:
    arrays = {}
    for name, column in columns.items():
        offsets = np.concatenate([[0], np.cumsum(column.lengths)])
        arrays[name] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(column.values, pa.int32()))
    table = pa.table(arrays)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read(file: Path) -> dict[str, Ragged]:
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    columns = {}
    for name in table.column_names:
        chunked = table.column(name)
        array = chunked.chunk(0) if chunked.num_chunks == 1 else pa.concat_arrays(chunked.chunks)
        offsets = array.offsets.to_numpy()
        columns[name] = Ragged(array.values.to_numpy(), np.diff(offsets))
    return columns
