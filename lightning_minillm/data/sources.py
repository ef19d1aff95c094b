"""Where instruction records come from: files, folders and the Hugging Face hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from lightning.pytorch.utilities import rank_zero_info

from lightning_minillm.data.records import FieldMap, InstructionRecord, to_record
from lightning_minillm.data.rows import Paths, check_limit, iterate_rows


class RecordSource(Protocol):
    """Where records come from: ``InstructionSource``, ``SyntheticSource`` or your own."""

    def load(self) -> Sequence[InstructionRecord]:
        """Return the records."""


@dataclass(frozen=True)
class InstructionSource:
    """A place to read instruction records from.

    Raises:
        ValueError: ``path`` is empty, or ``limit`` is not a whole number of at least 1.
    """

    path: Paths
    """A file (JSONL, JSON, CSV or TSV, gzipped or not, or Parquet), a folder of such files, a folder written by
    ``Dataset.save_to_disk``, or the name of a hub data set; or a list of these."""
    fields: FieldMap = field(default_factory=FieldMap)
    """Field names of each part of a record; the default covers Alpaca, Dolly and Self-Instruct."""
    split: str | None = None
    """Of a folder, the files named ``<split>.*`` or ``<split>-*``; of a hub data set, its split; ``None`` for a single
    file, and for all files of a folder that are not named after different splits."""
    limit: int | None = None
    """Number of records to read, at least 1; ``None`` reads all."""
    name: str | None = None
    """Configuration of a hub data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("there is no path to read records from: give a file, a folder or a data set on the hub")
        check_limit(self.limit)

    def load(self) -> list[InstructionRecord]:
        """Return the records, in the order of the data, at least one.

        Null and NaN are no input; a number is read as its digits, and how many there were is said.

        Raises:
            FileNotFoundError: the path or split does not exist.
            ValueError: a row that cannot be read (:func:`iterate_rows`), lacks a field, or holds something other than
                text in it; a blank instruction or response; or no rows at all. The message names file and line.
        """
        numbers: Counter[str] = Counter()
        is_part = self.limit is not None
        rows = iterate_rows(self.path, self.split, name=self.name, revision=self.revision, streaming=is_part)
        records = [to_record(row, self.fields, where, numbers) for where, row in islice(rows, self.limit)]
        place = f"the split {self.split!r} of {str(self.path)!r}" if self.split else repr(str(self.path))
        if not records:
            raise ValueError(f"{place} contains no records")
        if numbers:
            counts = ", ".join(f"{count} of {name!r}" for name, count in numbers.items())
            rank_zero_info(f"{place}: numbers are read as text ({counts})")
        return records


def load_instructions(
    path: Paths,
    split: str | None = None,
    fields: FieldMap | None = None,
    limit: int | None = None,
    *,
    name: str | None = None,
    revision: str | None = None,
) -> list[InstructionRecord]:
    """Read instruction records: :meth:`InstructionSource.load` of a source with these arguments."""
    return InstructionSource(path, fields or FieldMap(), split, limit, name, revision).load()
