"""What tells whether data are still those that a checkpoint was made with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lightning_minillm.data.corpus import PackedCorpus
from lightning_minillm.data.records import InstructionRecord
from lightning_minillm.files import digest


def contents_of_records(records: Iterable[InstructionRecord]) -> dict[str, Any]:
    """Return the number and a digest of records; their places and formats do not matter."""
    records = tuple(records)
    return {"records": len(records), "digest": digest([], (text for record in records for text in _texts(record)))}


def _texts(record: InstructionRecord) -> Iterator[str]:
    yield from (record.instruction, record.input, *record.responses)
    if record.conversation is not None:  # tools, and calls of tools
        yield record.conversation.key()
    if record.response_ids is not None:
        yield str(record.response_ids)


def contents_of_corpus(corpus: PackedCorpus) -> dict[str, Any]:
    """Return the number of blocks, and a digest of the first and last ones."""
    ends = [0, 1, 2, 3, -4, -3, -2, -1]
    rows = [row % len(corpus) for row in ends]
    return {"blocks": len(corpus), "digest": digest(corpus.token_batch(rows, 1.0).input_ids.tolist())}


def describe_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words how contents differ; ``""`` if they do not.

    Example:
        >>> describe_change({"records": 2, "digest": "a"}, {"records": 3, "digest": "b"})
        '2 records then, 3 now'
        >>> describe_change({"records": 3, "digest": "a"}, {"records": 3, "digest": "b"})
        '3 records then and now, with different content'
    """
    if before == now:
        return ""
    unit = next(iter(now))
    if before.get(unit) != now[unit]:
        return f"{before.get(unit)} {unit} then, {now[unit]} now"
    return f"{now[unit]} {unit} then and now, with different content"
