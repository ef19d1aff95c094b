"""Instruction records, and how they are read from files, folders and the Hugging Face hub."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_TABLE_BUILDERS = {".csv": "csv", ".csv.gz": "csv", ".tsv": "csv", ".parquet": "parquet"}
DATA_SUFFIXES = (*_JSON_SUFFIXES, *_TABLE_BUILDERS)


@dataclass(frozen=True)
class InstructionRecord:
    """One instruction with its acceptable responses."""

    instruction: str
    input: str
    """Context that the instruction refers to; ``""`` when there is none."""
    responses: tuple[str, ...]
    """At least one; training uses the first, Rouge-L the best over all."""
    task: str = ""
    """Kind of instruction, ``""`` when unknown; metrics can be split by it."""
    exact: bool = False
    """Whether there is one right answer, so that exact match makes sense."""


@dataclass(frozen=True)
class FieldMap:
    """Names under which a data set keeps each part of a record: one name, or several of which the first found counts.

    Only ``instruction`` and ``response`` must exist; give ``()`` to leave an optional part out.
    """

    instruction: str | Sequence[str] = ("instruction",)
    input: str | Sequence[str] = ("input", "context")
    response: str | Sequence[str] = ("output", "response", "responses")
    task: str | Sequence[str] = ("task", "topic", "category")
    exact: str | Sequence[str] = ("exact",)

    def __post_init__(self) -> None:
        for part in ("instruction", "input", "response", "task", "exact"):
            names = getattr(self, part)
            object.__setattr__(self, part, (names,) if isinstance(names, str) else tuple(names or ()))


@dataclass(frozen=True)
class InstructionSource:
    """Where to find instruction records; :meth:`load` reads them. See :func:`load_instructions`."""

    path: str
    fields: FieldMap = field(default_factory=FieldMap)
    split: str | None = None
    limit: int | None = None
    name: str | None = None
    """Configuration of a hub data set that has several."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("there is no path to read records from: name a file, a folder or a data set on the hub")

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
    """Read instruction records.

    JSON is read line by line here, so that an error can name its line and a field may hold a string in one row and
    a list in the next; everything else goes through ``datasets``.

    Args:
        path: a file (JSONL or JSON, also gzipped, CSV, TSV, Parquet), a folder of such files, a folder written by
            ``Dataset.save_to_disk``, or the name of a hub data set.
        split: for a folder, the files named ``<split>.*`` or ``<split>-*``; for a hub data set, its split. Must be
            ``None`` for a single file. A folder without a split is read whole, in order of file name.
        fields: names of the fields; by default those that Alpaca, Dolly and Self-Instruct use.
        limit: read only the first ``limit`` records, at least 1; ``None`` reads all.
        name: configuration of a hub data set.

    Returns:
        The records, in the order of the data, at least one.

    Raises:
        FileNotFoundError: when a path or split does not exist.
        ValueError: for a broken line (file and line), missing fields (and which exist), a row without a response,
            or no rows at all.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 or null, got {limit}.")
    fields = fields or FieldMap()
    records: list[InstructionRecord] = []
    for where, row in iterate_rows(path, split, name=name):
        records.append(_to_record(row, fields, where))
        if limit is not None and len(records) == limit:
            break
    if not records:
        suffix = f", split '{split}'," if split else ""
        raise ValueError(f"'{path}'{suffix} holds no records: the split is empty.")
    return records


def iterate_rows(
    path: str | Path, split: str | None = None, *, name: str | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield ``(where, row)`` for every row of a file, folder or hub data set; ``where`` is for messages.

    Arguments and errors as in :func:`load_instructions`.
    """
    local = Path(path).expanduser()
    if local.is_dir() and ((local / "state.json").exists() or (local / "dataset_dict.json").exists()):
        yield from _saved_rows(local, split)
    elif local.is_dir():
        for file in _folder_files(local, split):
            yield from _file_rows(file)
    elif local.is_file():
        if split is not None:
            raise ValueError(f"'{path}' is a single file and has no split '{split}': set split to null.")
        yield from _file_rows(local)
    elif _suffix(local) or str(path).startswith(("/", ".", "~")):
        raise FileNotFoundError(f"No data file '{path}' (looked in '{Path.cwd()}').")
    else:
        yield from _hub_rows(str(path), split, name)


def _suffix(file: Path) -> str:
    return max((suffix for suffix in DATA_SUFFIXES if file.name.lower().endswith(suffix)), key=len, default="")


def _folder_files(folder: Path, split: str | None) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and _suffix(file))
    if not files:
        raise FileNotFoundError(f"The folder '{folder}' holds no data file ({', '.join(DATA_SUFFIXES)}).")
    if split is None:
        return files
    chosen = [file for file in files if file.name.startswith((f"{split}.", f"{split}-"))]
    if not chosen:
        names = ", ".join(file.name for file in files)
        raise FileNotFoundError(f"The folder '{folder}' has no file for the split '{split}'; it holds {names}.")
    return chosen


def _file_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    suffix = _suffix(file)
    if not suffix:
        raise ValueError(f"'{file}' is of an unknown kind: use one of {', '.join(DATA_SUFFIXES)}.")
    return _json_rows(file) if suffix in _JSON_SUFFIXES else _table_rows(file, suffix)


def _json_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a JSONL file, or of a JSON file that holds one list (or one ``{"data": list}``)."""
    opener = gzip.open if file.name.lower().endswith(".gz") else open
    with opener(file, "rt", encoding="utf-8-sig") as handle:
        if ".jsonl" not in file.name.lower():
            first = next((line.strip() for line in handle if line.strip()), "")
            handle.seek(0)
            if not _is_record(first):
                yield from _json_list(file, handle.read())
                return
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield f"{file}, line {number}", _parse_object(line, f"{file}, line {number}")


def _is_record(line: str) -> bool:
    """Whether a line of a ``.json`` file is a record, and the file thus JSON lines under another name."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return False
    return isinstance(value, dict) and not isinstance(value.get("data"), list)


def _json_list(file: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {error.lineno}: broken JSON ({error.msg}): repair the file.") from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ValueError(f"{file}: expected a list of objects, or an object with a list under 'data'.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{file}, record {number}: expected an object, got {type(row).__name__}.")
        yield f"{file}, record {number}", row


def _parse_object(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: broken JSON ({error.msg} at column {error.colno}): repair the line.") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected one JSON object a line, got {type(row).__name__}.")
    return row


def _table_rows(file: Path, suffix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    builder = _TABLE_BUILDERS[suffix]
    try:
        options = _csv_options(file, suffix) if builder == "csv" else {}
        data = datasets.load_dataset(builder, data_files=str(file), split="train", **options)
    except Exception as error:  # datasets wraps the parser's own message, which names the line
        if "corresponds to no data" in str(error):  # nothing below the header: whoever reads says what is missing
            return
        raise ValueError(f"'{file}' can not be read as {builder}: {_root_cause(error)}") from error
    for number, row in enumerate(data, start=1):
        yield f"{file}, row {number}", row


def _csv_options(file: Path, suffix: str) -> dict[str, Any]:
    """Return the reader's options by which text stays text: pandas would make "NA" missing and "007" a number."""
    import datasets

    separator = "\t" if suffix == ".tsv" else ","
    opener = gzip.open if suffix.endswith(".gz") else open
    with opener(file, "rt", encoding="utf-8-sig", newline="") as handle:
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
            raise FileNotFoundError(f"'{folder}' has no split '{split}'; it has {', '.join(map(str, data))}.")
        data = data[split]
    for number, row in enumerate(data, start=1):
        yield f"{folder}, row {number}", row


def _hub_rows(path: str, split: str | None, name: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    if split is None:
        raise ValueError(f"'{path}' is no local file or folder; for a hub data set, name the split (e.g. 'train').")
    try:
        data = datasets.load_dataset(path, name, split=split)
    except Exception as error:
        raise FileNotFoundError(
            f"'{path}' is no local file or folder, and could not be loaded from the hub: {_root_cause(error)}"
        ) from error
    for number, row in enumerate(data, start=1):
        yield f"{path} [{split}], row {number}", row


def _find(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _to_record(row: Mapping[str, Any], fields: FieldMap, where: str) -> InstructionRecord:
    found = {part: _find(row, getattr(fields, part)) for part in ("instruction", "input", "response", "task", "exact")}
    for part in ("instruction", "response"):
        if found[part] is None:
            wanted = " or ".join(f"'{name}'" for name in getattr(fields, part))
            raise ValueError(
                f"{where}: no field {wanted} for the {part}; the row has {', '.join(map(repr, row))}. "
                f"Name the right one in fields.{part}."
            )
    value = {part: row[name] if name is not None else None for part, name in found.items()}
    responses = value["response"]
    if not isinstance(responses, (list, tuple)):
        responses = [responses]
    texts = tuple(str(response) for response in responses if response is not None)
    if not texts:
        raise ValueError(f"{where}: the field '{found['response']}' holds no response: fill it or remove the row.")
    if value["instruction"] is None:
        raise ValueError(f"{where}: the field '{found['instruction']}' is null: fill it or remove the row.")
    return InstructionRecord(
        instruction=str(value["instruction"]),
        input="" if value["input"] is None else str(value["input"]),
        responses=texts,
        task="" if value["task"] is None else str(value["task"]),
        exact=str(value["exact"]).lower() in ("true", "1"),
    )
