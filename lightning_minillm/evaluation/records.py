"""The records of an evaluation on disk: one JSON Lines file per rank, and the settings that they were made with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_minillm.evaluation.base import Record
from lightning_minillm.files import (
    append_json_lines,
    changed_keys,
    drop_cut_line,
    iterate_json_lines,
    read_json,
    write_json,
)

IDENTITY_FILE = "identity.json"


class RecordFiles:
    """Reads and appends records; the half-written line of a killed process is removed before anything is appended.

    Args:
        folder: of one evaluation of one model; shared by all ranks.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def check(self, identity: Mapping[str, Any]) -> None:
        """Check that existing records, if there are any, may be resumed.

        Args:
            identity: the settings that determine the records, as plain JSON.

        Raises:
            ValueError: the records were made with different settings.
        """
        stored = read_json(self.folder / IDENTITY_FILE)
        changed = [] if stored is None else changed_keys(stored, identity)
        if changed:
            raise ValueError(
                f"{str(self.folder)!r} contains records made with different settings ({', '.join(changed)}) and cannot"
                " be resumed: use a different output_dir (or output), or delete the folder"
            )

    def open(self, identity: Mapping[str, Any]) -> set[int]:
        """Start or resume; called by one process, before any rank appends.

        Returns:
            The items that already have a record.

        Raises:
            ValueError: the existing records were made with different settings.
        """
        self.check(identity)
        if not (self.folder / IDENTITY_FILE).is_file():
            write_json(self.folder / IDENTITY_FILE, dict(identity))
        for file in self._files():
            drop_cut_line(file)
        return {record["item"] for record in self._records()}

    def append(self, rank: int, records: Iterable[Record]) -> None:
        """Append to the file of a rank, which no other process writes; the system has the records when this returns."""
        append_json_lines(self.folder / f"rank_{rank}.jsonl", records)

    def read(self) -> list[Record]:
        """Return the records of all ranks, sorted by item; if an item has several, the first counts."""
        by_item: dict[int, Record] = {}
        for record in self._records():
            by_item.setdefault(record["item"], record)
        return [by_item[item] for item in sorted(by_item)]

    def _records(self) -> Iterator[Record]:
        for file in self._files():
            yield from iterate_json_lines(file)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("rank_*.jsonl"))
