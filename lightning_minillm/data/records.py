"""Instruction records, and how they are read from files, folders and the Hugging Face hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from lightning_minillm.files import numbered_json_lines, open_text

_JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_TABLE_BUILDERS = {".csv": "csv", ".csv.gz": "csv", ".tsv": "csv", ".parquet": "parquet"}
DATA_SUFFIXES = (*_JSON_SUFFIXES, *_TABLE_BUILDERS)


@dataclass(frozen=True)
class InstructionRecord:
    """One instruction with its acceptable responses."""

    instruction: str
    input: str
    """Context that the instruction refers to; ``""`` if there is none."""
    responses: tuple[str, ...]
    """At least one; training uses the first, Rouge-L takes the best over all."""
    task: str = ""
    """Kind of instruction, ``""`` if unknown; metrics can be grouped by it."""
    exact: bool = False
    """Whether there is one right answer, so that exact match makes sense."""


class RecordSource(Protocol):
    """Where records come from: ``InstructionSource``, ``SyntheticSource`` or your own."""

    def load(self) -> Sequence[InstructionRecord]:
        """Return the records."""


@dataclass(frozen=True)
class FieldMap:
    """Field names of each part of a record: one name, or several in order of preference.

    Only ``instruction`` and ``response`` must exist; give ``()`` to leave an optional part out.
    """

    instruction: str | Sequence[str] = ("instruction",)
    input: str | Sequence[str] = ("input", "context")
    response: str | Sequence[str] = ("output", "response", "responses")
    task: str | Sequence[str] = ("task", "topic", "category")
    exact: str | Sequence[str] = ("exact",)

    def __post_init__(self) -> None:
        for part, names in vars(self).items():
            object.__setattr__(self, part, (names,) if isinstance(names, str) else tuple(names or ()))


@dataclass(frozen=True)
class InstructionSource:
    """A place to read instruction records from.

    Raises:
        ValueError: ``path`` is empty.
    """

    path: str | Path
    """A file (JSONL, JSON, CSV or TSV, gzipped or not, or Parquet), a folder of such files, a folder written by
    ``Dataset.save_to_disk``, or the name of a hub data set."""
    fields: FieldMap = field(default_factory=FieldMap)
    """Field names of each part of a record; the default covers Alpaca, Dolly and Self-Instruct."""
    split: str | None = None
    """Of a folder, the files named ``<split>.*`` or ``<split>-*`` (``None``: all, in order of names); of a hub data
    set, its split; ``None`` for a single file."""
    limit: int | None = None
    """Number of records to read, at least 1; ``None`` reads all."""
    name: str | None = None
    """Configuration of a hub data set that has several."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("there is no path to read records from: give a file, a folder or a data set on the hub")

    def load(self) -> list[InstructionRecord]:
        """Return the records."""
        return load_instructions(self.path, self.split, self.fields, self.limit, name=self.name)


def load_instructions(
    path: str | Path,
    split: str | None = None,
    fields: FieldMap | None = None,
    limit: int | None = None,
    *,
    name: str | None = None,
) -> list[InstructionRecord]:
    """Read instruction records; the arguments are the fields of :class:`InstructionSource`.

    JSON is read here line by line, so that an error can name its line and a field may hold a string in one row and a
    list in the next; all other formats are read by ``datasets``.

    Returns:
        The records, in the order of the data, at least one.

    Raises:
        FileNotFoundError: the path or split does not exist.
        ValueError: a line that is not JSON, a missing field, a row without a response, or no rows at all.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 or null, got {limit}")
    fields = fields or FieldMap()
    rows = islice(iterate_rows(path, split, name=name), limit)
    records = [_to_record(row, fields, where) for where, row in rows]
    if not records:
        part = f"the split {split!r} of {str(path)!r}" if split else repr(str(path))
        raise ValueError(f"{part} contains no records")
    return records


def iterate_rows(
    path: str | Path, split: str | None = None, *, name: str | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield ``(where, row)`` for every row of a file, folder or hub data set; ``where`` is for messages.

    Arguments and errors are those of :func:`load_instructions`.
    """
    local = Path(path).expanduser()
    if local.is_dir() and ((local / "state.json").exists() or (local / "dataset_dict.json").exists()):
        yield from _saved_rows(local, split)
    elif local.is_dir():
        for file in _folder_files(local, split):
            yield from _file_rows(file)
    elif local.is_file():
        if split is not None:
            raise ValueError(f"{str(path)!r} is a single file and has no split {split!r}: set split to null")
        yield from _file_rows(local)
    elif _suffix(local) or str(path).startswith(("/", ".", "~")):
        raise FileNotFoundError(f"there is no data file {str(path)!r} (looked in {str(Path.cwd())!r})")
    else:
        yield from _hub_rows(str(path), split, name)


def _suffix(file: Path) -> str:
    return max((suffix for suffix in DATA_SUFFIXES if file.name.lower().endswith(suffix)), key=len, default="")


def _folder_files(folder: Path, split: str | None) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and _suffix(file))
    if not files:
        raise FileNotFoundError(f"the folder {str(folder)!r} contains no data file ({', '.join(DATA_SUFFIXES)})")
    if split is None:
        return files
    chosen = [file for file in files if file.name.startswith((f"{split}.", f"{split}-"))]
    if not chosen:
        names = ", ".join(file.name for file in files)
        raise FileNotFoundError(f"the folder {str(folder)!r} has no file for the split {split!r}; it contains {names}")
    return chosen


def _file_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    suffix = _suffix(file)
    if not suffix:
        raise ValueError(f"{str(file)!r} has an unknown format: use one of {', '.join(DATA_SUFFIXES)}")
    return _json_rows(file) if suffix in _JSON_SUFFIXES else _table_rows(file, suffix)


def _json_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a JSON Lines file, or of a JSON file with one list (or one ``{"data": list}``)."""
    if ".jsonl" in file.name.lower() or _holds_lines(file):
        unit, rows = "line", numbered_json_lines(file)
    else:
        unit, rows = "record", iter(enumerate(_json_list(file), start=1))
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{str(file)!r}, {unit} {number}: expected a JSON object, got {type(row).__name__}")
        yield f"{str(file)!r}, {unit} {number}", row


def _holds_lines(file: Path) -> bool:
    """Whether the first line of a ``.json`` file is a record, so that the file is JSON Lines under a different name."""
    with open_text(file) as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        value = json.loads(first)
    except json.JSONDecodeError:
        return False
    return isinstance(value, dict) and not isinstance(value.get("data"), list)


def _json_list(file: Path) -> list[Any]:
    with open_text(file) as text:
        try:
            content = json.load(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {error.lineno} of {str(file)!r} is not valid JSON: {error}") from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ValueError(f"{str(file)!r}: expected a list of objects, or an object with a list under 'data'")
    return rows


def _table_rows(file: Path, suffix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    builder = _TABLE_BUILDERS[suffix]
    try:
        options = _csv_options(file, suffix) if builder == "csv" else {}
        data = datasets.load_dataset(builder, data_files=str(file), split="train", **options)
    except Exception as error:  # datasets wraps the parser's own message, which names the line
        if "corresponds to no data" in str(error):  # nothing below the header: the caller reports an empty split
            return
        raise ValueError(f"{str(file)!r} cannot be read as {builder}: {_root_cause(error)}") from error
    yield from _numbered(data, repr(str(file)))


def _csv_options(file: Path, suffix: str) -> dict[str, Any]:
    """Return options that keep text as it is: pandas would turn "NA" into a missing value and "007" into a number."""
    import datasets

    separator = "\t" if suffix == ".tsv" else ","
    with open_text(file, newline="") as handle:
        header = next(csv.reader(handle, delimiter=separator), [])
    features = datasets.Features({name: datasets.Value("string") for name in header})
    return {"sep": separator, "keep_default_na": False, "encoding": "utf-8-sig", "features": features}


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _saved_rows(folder: Path, split: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise FileNotFoundError(f"{str(folder)!r} has no split {split!r}; it has {', '.join(map(str, data))}")
        data = data[split]
    yield from _numbered(data, repr(str(folder)))


def _hub_rows(path: str, split: str | None, name: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    if split is None:
        raise ValueError(f"{path!r} is not a local file or folder; for a hub data set, give the split, e.g. 'train'")
    try:
        data = datasets.load_dataset(path, name, split=split)
    except Exception as error:
        raise FileNotFoundError(
            f"{path!r} is not a local file or folder, and could not be loaded from the hub: {_root_cause(error)}"
        ) from error
    yield from _numbered(data, f"{path!r}, split {split!r}")


def _numbered(rows: Iterable[Any], place: str) -> Iterator[tuple[str, Any]]:
    return ((f"{place}, row {number}", row) for number, row in enumerate(rows, start=1))


def _to_record(row: Mapping[str, Any], fields: FieldMap, where: str) -> InstructionRecord:
    found = {part: next((name for name in names if name in row), None) for part, names in vars(fields).items()}
    for part in ("instruction", "response"):
        if found[part] is None:
            wanted = " or ".join(map(repr, getattr(fields, part)))
            raise ValueError(
                f"{where}: no field {wanted} for the {part}; the row has {', '.join(map(repr, row))}: give the right "
                f"name in fields.{part}"
            )
    value = {part: row[name] if name is not None else None for part, name in found.items()}
    responses = value["response"]
    if not isinstance(responses, (list, tuple)):
        responses = [responses]
    texts = tuple(str(response) for response in responses if response is not None)
    if not texts:
        raise ValueError(f"{where}: the field {found['response']!r} contains no response: fill it or remove the row")
    if value["instruction"] is None:
        raise ValueError(f"{where}: the field {found['instruction']!r} is null: fill it or remove the row")
    return InstructionRecord(
        instruction=str(value["instruction"]),
        input="" if value["input"] is None else str(value["input"]),
        responses=texts,
        task="" if value["task"] is None else str(value["task"]),
        exact=str(value["exact"]).lower() in ("true", "1"),
    )
