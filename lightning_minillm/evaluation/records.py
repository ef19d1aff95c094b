"""The records of an evaluation on disk: JSON lines, a file a rank, and beside them what they were made with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_minillm.evaluation.base import Record

IDENTITY_FILE = "identity.json"


class RecordFiles:
    """Reads and appends records; what a killed process left half written is cut off before anything is added.

    Args:
        folder: of one evaluation of one model; shared by all ranks.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def check(self, identity: Mapping[str, Any]) -> None:
        """Make sure that records which are there may be gone on with.

        Args:
            identity: what decides the records; plain JSON.

        Raises:
            ValueError: they were made with another one.
        """
        file = self.folder / IDENTITY_FILE
        if not file.is_file():
            return
        there, here = json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(identity))
        if there != here:
            keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
            raise ValueError(
                f"'{self.folder}' holds records of another set-up (they differ in {', '.join(keys)}), which cannot be"
                " gone on with: choose another output_dir, or remove that folder"
            )

    def open(self, identity: Mapping[str, Any]) -> set[int]:
        """Begin, or go on; for one process, before any rank appends.

        Args:
            identity: as in :meth:`check`.

        Returns:
            Items that have a record already.

        Raises:
            ValueError: as :meth:`check`.
        """
        self.check(identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self.folder / IDENTITY_FILE
        if not marker.is_file():
            scratch = marker.with_name(f".{marker.name}.{os.getpid()}")
            scratch.write_text(json.dumps(identity, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(scratch, marker)
        for file in self._files():
            whole, newline, _ = file.read_bytes().rpartition(b"\n")
            os.truncate(file, len(whole) + len(newline))
        return {record["item"] for record in self._lines()}

    def append(self, rank: int, records: Iterable[Record]) -> None:
        """Add the records of a batch; they are in the file when this returns.

        Args:
            rank: names the file; no two processes that write have the same.
            records: each with its ``"item"``.
        """
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with open(self.folder / f"rank_{rank}.jsonl", "a", encoding="utf-8") as file:
            file.write(lines)

    def read(self) -> list[Record]:
        """Return the records of all ranks by their item, the first of each."""
        by_item: dict[int, Record] = {}
        for record in self._lines():
            by_item.setdefault(record["item"], record)
        return [by_item[item] for item in sorted(by_item)]

    def _lines(self) -> Iterable[Record]:
        for file in self._files():
            with open(file, encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)

    def _files(self) -> Sequence[Path]:
        return sorted(self.folder.glob("rank_*.jsonl"))
