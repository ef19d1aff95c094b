"""Tokenised data in files that are named after a digest of everything that they depend on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from lightning_minillm.files import digest, replacing

_FORMAT = "2"


class Ragged:
    """Rows of token ids of different lengths, in one flat array.

    Args:
        values: ``[sum of lengths]`` integers.
        lengths: ``[rows]`` integers, at least 0.
    """

    def __init__(self, values: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> None:
        self.values = values
        self.lengths = lengths.astype(np.int64)
        self._ends = np.cumsum(self.lengths)

    @classmethod
    def from_rows(cls, rows: Iterable[Iterable[int]]) -> Ragged:
        """Pack rows as 32-bit integers."""
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)
        return cls(values, np.array([len(array) for array in arrays], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def rows_with(self, values: Sequence[int]) -> list[int]:
        """Return the rows that have any of these values."""
        places = np.flatnonzero(np.isin(self.values, values))
        rows: list[int] = np.unique(np.searchsorted(self._ends, places, side="right")).tolist()
        return rows

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        end = self._ends[row]
        return self.values[end - self.lengths[row] : end]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of what a tokenizer does to text: its model, vocabulary and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state: Any = [type(tokenizer).__name__, tokenizer.get_vocab()]
    else:
        state = json.loads(backend.to_str())
        for setting in ("truncation", "padding"):  # a call leaves its own settings behind
            state.pop(setting, None)
    return digest([tokenizer.special_tokens_map, state])


def load_or_build(
    cache_dir: str | Path | None,
    kind: str,
    settings: Mapping[str, Any],
    texts: Iterable[str],
    build: Callable[[], Mapping[str, Ragged]],
) -> tuple[dict[str, Ragged], bool]:
    """Return columns from a file in ``cache_dir``, building and writing them when the file does not exist.

    The file is complete or absent, so several processes may call this at once.

    Args:
        cache_dir: folder of the cache, or ``None`` to build every time.
        kind: of the data; begins the name of the file.
        settings: JSON values of everything besides the texts that the columns depend on.
        texts: the texts that are tokenised, in order; not read without a cache.
        build: makes the columns, all with the same number of rows.

    Returns:
        The columns, memory-mapped if they come from the file, and whether they do.
    """
    if cache_dir is None:
        return dict(build()), False
    file = Path(cache_dir).expanduser() / f"{kind}-{digest([_FORMAT, kind, settings], texts)}.arrow"
    if file.is_file():
        return _read(file), True
    columns = dict(build())
    with replacing(file) as scratch:
        _write(scratch, columns)
    return columns, False


def load_or_write_tokens(
    cache_dir: str | Path | None,
    kind: str,
    settings: Mapping[str, Any],
    pieces: Callable[[], Iterable[npt.NDArray[np.int32]]],
) -> tuple[npt.NDArray[np.int32], bool]:
    """Return one long array of tokens that is never in memory as a whole, from a file that is written if it is missing.

    Args:
        cache_dir: folder of the cache, or ``None`` for a temporary file.
        kind: of the data; begins the name of the file.
        settings: JSON values of everything that the tokens depend on.
        pieces: makes the parts of the array, in order; at least one token in all.

    Returns:
        ``[tokens]`` int32, memory-mapped and read-only, and whether the file existed.
    """
    if cache_dir is None:
        with TemporaryFile() as temporary:
            temporary.writelines(piece.tobytes() for piece in pieces())
            temporary.flush()
            return np.memmap(temporary, np.int32, "r"), False
    file = Path(cache_dir).expanduser() / f"{kind}-{digest([_FORMAT, kind, settings])}.tokens"
    exists = file.is_file()
    if not exists:
        with replacing(file) as scratch, open(scratch, "wb") as content:
            content.writelines(piece.tobytes() for piece in pieces())
    return np.memmap(file, np.int32, "r"), exists


def _write(file: Path, columns: Mapping[str, Ragged]) -> None:
    arrays = {}
    for name, column in columns.items():
        offsets = np.concatenate([[0], np.cumsum(column.lengths)])
        arrays[name] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(column.values, pa.int32()))
    table = pa.table(arrays)
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table)


def _read(file: Path) -> dict[str, Ragged]:
    rows = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)  # the only one: a column is written in one piece
    arrays = {name: rows.column(name) for name in rows.schema.names}
    return {name: Ragged(a.values.to_numpy(), np.diff(a.offsets.to_numpy())) for name, a in arrays.items()}
