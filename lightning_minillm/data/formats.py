"""The rows of one file of any format, read one after the other."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_minillm.files import numbered_json_lines, open_text, parse_json

Row = Mapping[str, Any]

_JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
DATA_SUFFIXES = (*_JSON_SUFFIXES, *_SEPARATORS, ".parquet")


def suffix_of(file: Path) -> str:
    """Return the ending of a data file, or ``""`` for any other."""
    return max((suffix for suffix in DATA_SUFFIXES if file.name.lower().endswith(suffix)), key=len, default="")


def file_rows(file: Path) -> Iterator[tuple[str, Row]]:
    """Yield ``(where, row)`` for every row of a file; ``where`` names file and line in messages.

    Raises:
        ValueError: a format that is not known, or a file that is damaged, not UTF-8, or not in its format.
    """
    suffix = suffix_of(file)
    if not suffix:
        raise ValueError(f"{str(file)!r} has an unknown format: use one of {', '.join(DATA_SUFFIXES)}")
    if suffix == ".parquet":
        return _parquet_rows(file)
    return _json_rows(file) if suffix in _JSON_SUFFIXES else _csv_rows(file, _SEPARATORS[suffix])


def _json_rows(file: Path) -> Iterator[tuple[str, Row]]:
    """Yield the objects of a JSON Lines file, or of a JSON file with a list, a ``{"data": list}`` or columns."""
    if ".jsonl" in file.name.lower() or _holds_lines(file):
        unit, rows = "line", numbered_json_lines(file)
    else:
        unit, rows = "record", iter(enumerate(_json_list(file), start=1))
    for number, row in rows:
        where = f"{str(file)!r}, {unit} {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
        yield where, row


def _holds_lines(file: Path) -> bool:
    """Whether the first line of a ``.json`` file is a record, so that the file is JSON Lines under a different name."""
    with open_text(file, newline="\n") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        value = parse_json(first, file)
    except ValueError:
        return False
    return isinstance(value, dict) and not isinstance(value.get("data"), list) and not _columns(value)


def _json_list(file: Path) -> list[Any]:
    with open_text(file) as text:
        content = parse_json(text.read(), file)
    if isinstance(content, dict):
        columns = _columns(content)
        if len({len(column) for column in columns.values()}) > 1:
            lengths = ", ".join(f"{name!r} {len(column)}" for name, column in columns.items())
            raise ValueError(f"{str(file)!r} has columns of different lengths: {lengths}")
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        content = rows or content.get("data")
    if not isinstance(content, list):
        raise ValueError(
            f"{str(file)!r}: expected a list of objects, an object with a list under 'data', or one with a list per"
            " column"
        )
    return content


def _columns(content: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the columns of an object that holds a table (lists of values, or values by row number), else nothing."""
    if content and all(isinstance(column, dict) and all(map(str.isdigit, column)) for column in content.values()):
        content = {name: list(column.values()) for name, column in content.items()}  # as pandas writes a table
    columns = {name: column for name, column in content.items() if isinstance(column, list)}
    has_objects = any(isinstance(value, dict) for column in columns.values() for value in column)
    return {} if has_objects or len(columns) < len(content) else columns


def _csv_rows(file: Path, separator: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a table as text, exactly as it is written ("NA" and "007" too)."""
    csv.field_size_limit(2**31 - 1)
    with open_text(file, newline="") as handle:
        reader = csv.reader(handle, delimiter=separator, strict=True)
        try:
            header = next(reader, [])
            _check_header(header, file)
            for number, cells in enumerate(filter(None, reader), start=1):
                if len(cells) != len(header):
                    raise csv.Error(f"{len(cells)} cells, and the header has {len(header)} ({', '.join(header)})")
                yield f"{str(file)!r}, row {number}", dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise ValueError(f"{str(file)!r} cannot be read as csv: line {reader.line_num}: {error}") from error


def _check_header(names: Sequence[str], file: Path) -> None:
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        raise ValueError(f"{str(file)!r} has the column {repeated[0]!r} more than once: keep or rename one of them")


def _parquet_rows(file: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            _check_header(table.schema_arrow.names, file)
            batches = table.iter_batches(batch_size=1024)
            yield from numbered((row for batch in batches for row in batch.to_pylist()), repr(str(file)))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{str(file)!r} cannot be read as parquet: {error}") from error


def numbered(rows: Iterable[Any], place: str) -> Iterator[tuple[str, Row]]:
    """Return rows with their number from 1 in a place, for messages."""
    return ((f"{place}, row {number}", row) for number, row in enumerate(rows, start=1))
