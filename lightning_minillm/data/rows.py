"""Rows of files, folders and hub data sets, read one after the other, each with its place for messages."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lightning_minillm.files import numbered_json_lines, open_text, parse_json

Row = Mapping[str, Any]
Paths = str | Path | Sequence[str | Path]
"""One or several files, folders or names of hub data sets."""

_JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
DATA_SUFFIXES = (*_JSON_SUFFIXES, *_SEPARATORS, ".parquet")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
"""The names of each split in files and on the hub, in order of preference."""


def iterate_rows(
    path: Paths,
    split: str | None = None,
    *,
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Iterator[tuple[str, Row]]:
    """Yield ``(where, row)`` for every row; ``where`` names file and line in messages.

    JSON and CSV are read line by line, so that an error can name its line and a field may hold a string in one row and
    a list in the next. No more of a file is read than is asked for.

    Args:
        path: files (JSONL, JSON, CSV or TSV, gzipped or not, or Parquet), folders of such files, folders written by
            ``Dataset.save_to_disk``, or names of hub data sets; several are read in order.
        split: of a folder, the files named ``<split>.*`` or ``<split>-*``; of a hub data set, its split; ``None`` for
            a single file, and for all files of a folder.
        name: configuration of a hub data set.
        revision: branch, tag or commit of a hub data set.
        streaming: download only the rows of a hub data set that are asked for, instead of all of it first.

    Raises:
        FileNotFoundError: the path or split does not exist.
        ValueError: a file that is damaged, not UTF-8 or not in its format (the message names file and line); a folder
            whose files belong to several splits, without a split.
    """
    for place in each_path(path):
        yield from _rows_of(place, split, name, revision, streaming)


def each_path(path: Paths) -> tuple[str | Path, ...]:
    """Return one or several paths as a tuple."""
    return (path,) if isinstance(path, str | Path) else tuple(path)


def check_limit(limit: int | None) -> None:
    """Raise ``ValueError`` unless ``limit`` is ``None`` or a whole number of at least 1."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ValueError(f"limit must be at least 1 and a whole number, or null for all, got {limit!r}")


def _rows_of(
    path: str | Path, split: str | None, name: str | None, revision: str | None, streaming: bool
) -> Iterator[tuple[str, Row]]:
    local = Path(path).expanduser()
    if local.is_dir() and ((local / "state.json").exists() or (local / "dataset_dict.json").exists()):
        yield from _saved_rows(local, split)
    elif local.is_dir():
        for file in folder_files(local, split):
            yield from _file_rows(file)
    elif local.is_file():
        if split is not None:
            raise ValueError(f"{str(path)!r} is a single file and has no split {split!r}: set split to null")
        yield from _file_rows(local)
    elif not is_hub_name(path):
        near = did_you_mean(local.name, [file.name for file in local.parent.glob("*")])
        raise FileNotFoundError(f"there is no data file {str(path)!r} (looked in {str(Path.cwd())!r}){near}")
    else:
        yield from _hub_rows(str(path), split, name, revision, streaming)


def is_hub_name(path: str | Path) -> bool:
    """Whether a path is neither a local file or folder nor written like one."""
    local = Path(path).expanduser()
    return not (local.exists() or _suffix(local) or str(path).startswith(("/", ".", "~")))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message that proposes the known word nearest to ``word``, or ``""``.

    Example:
        >>> did_you_mean("Instructions", ["instruction", "output"])
        "; did you mean 'instruction'?"
    """
    by_folded = {name.strip().casefold(): name for name in known}
    near = get_close_matches(word.strip().casefold(), list(by_folded), n=1, cutoff=0.75)
    return f"; did you mean {by_folded[near[0]]!r}?" if near else ""


# --- local files ----------------------------------------------------------------------------------------------------


def _suffix(file: Path) -> str:
    return max((suffix for suffix in DATA_SUFFIXES if file.name.lower().endswith(suffix)), key=len, default="")


def folder_files(folder: Path, split: str | None) -> list[Path]:
    """Return the data files of a folder, or those of one split, in order of their names.

    Raises:
        FileNotFoundError: there are none.
        ValueError: there is no split, and the files do not all belong to the same one.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and _suffix(file))
    if not files:
        raise FileNotFoundError(f"the folder {str(folder)!r} contains no data file ({', '.join(DATA_SUFFIXES)})")
    names = ", ".join(file.name for file in files)
    if split is None:
        if len({_split_in_name(file) for file in files}) > 1:
            raise ValueError(
                f"the folder {str(folder)!r} has files of several splits ({names}): give the split, or name one file"
            )
        return files
    chosen = [file for file in files if _belongs(file, split)]
    if not chosen:
        raise FileNotFoundError(f"the folder {str(folder)!r} has no file for the split {split!r}; it contains {names}")
    return chosen


def _belongs(file: Path, split: str) -> bool:
    return file.name.startswith((f"{split}.", f"{split}-"))


def _split_in_name(file: Path) -> str | None:
    """Return the split that the name of a file begins with, or ``None``."""
    return next((split for split, names in SPLIT_NAMES.items() if any(_belongs(file, name) for name in names)), None)


def _file_rows(file: Path) -> Iterator[tuple[str, Row]]:
    suffix = _suffix(file)
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
            yield from _numbered((row for batch in batches for row in batch.to_pylist()), repr(str(file)))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{str(file)!r} cannot be read as parquet: {error}") from error


def _saved_rows(folder: Path, split: str | None) -> Iterator[tuple[str, Row]]:
    import datasets

    data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise FileNotFoundError(f"{str(folder)!r} has no split {split!r}; it has {', '.join(map(str, data))}")
        data = data[split]
    yield from _numbered(data, repr(str(folder)))


def _numbered(rows: Iterable[Any], place: str) -> Iterator[tuple[str, Row]]:
    return ((f"{place}, row {number}", row) for number, row in enumerate(rows, start=1))


# --- the hub --------------------------------------------------------------------------------------------------------


def _hub_rows(
    path: str, split: str | None, name: str | None, revision: str | None, streaming: bool
) -> Iterator[tuple[str, Row]]:
    import datasets

    if split is None:
        raise ValueError(
            f"there is no file or folder {path!r} (looked in {str(Path.cwd())!r}); for a hub data set of this name, "
            "give the split, e.g. 'train'"
        )
    options: dict[str, Any] = {"revision": revision} if revision else {}
    streamed = {"streaming": True} if streaming and "[" not in split else {}  # "train[:10%]" cannot be streamed
    try:
        try:
            data = datasets.load_dataset(path, name, split=split, **options, **streamed)
        except Exception:
            if not (streamed and datasets.config.HF_HUB_OFFLINE):
                raise
            data = datasets.load_dataset(path, name, split=split, **options)  # a stream does not use the cache
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        hint = "; give one of them as name" if "Config name is missing" in str(cause) else ""
        raise FileNotFoundError(
            f"{path!r} is not a local file or folder, and could not be loaded from the hub: {type(cause).__name__}: "
            f"{cause}{hint}"
        ) from error
    yield from _numbered(data, f"{path!r}, split {split!r}")
