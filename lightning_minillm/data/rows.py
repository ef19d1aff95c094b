"""Rows of files, folders and hub data sets, one after the other, and how their splits are called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_minillm.data.formats import DATA_SUFFIXES, Row, file_rows, numbered, suffix_of
from lightning_minillm.files import nearest, read_json

Paths = str | Path | Sequence[str | Path]
"""One or several files, folders or names of hub data sets."""

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
"""The names of each split in files and on the hub, in order of preference."""
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "fingerprint.json"}


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
        for file in split_files(local, split):
            yield from file_rows(file)
    elif local.is_file():
        if split is not None:
            raise ValueError(f"{str(path)!r} is a single file and has no split {split!r}: set split to null")
        yield from file_rows(local)
    elif not is_hub_name(path):
        near = nearest(local.name, [file.name for file in local.parent.glob("*")])
        raise FileNotFoundError(f"there is no data file {str(path)!r} (looked in {str(Path.cwd())!r}){near}")
    else:
        yield from _hub_rows(str(path), split, name, revision, streaming)


def is_hub_name(path: str | Path) -> bool:
    """Whether a path is neither a local file or folder nor written like one."""
    local = Path(path).expanduser()
    return not (local.exists() or suffix_of(local) or str(path).startswith(("/", ".", "~")))


def find_split(path: str | Path, split: str, name: str | None = None, revision: str | None = None) -> str | None:
    """Return what a folder or a hub data set calls its train, validation or test split, or ``None``.

    Args:
        path: folder of files, folder written by ``Dataset.save_to_disk``, or name of a hub data set.
        split: ``train``, ``validation`` or ``test``.
        name: configuration of a hub data set.
        revision: of a hub data set.

    Raises:
        FileNotFoundError: the hub data set cannot be found.
        ValueError: several of the data set's splits could be meant.
    """
    local = Path(path).expanduser()
    if (local / "state.json").is_file():  # one split without a name
        present = []
    elif (local / "dataset_dict.json").is_file():
        present = list(read_json(local / "dataset_dict.json")["splits"])
    elif local.is_dir():
        files = folder_files(local)
        present = [known for known in SPLIT_NAMES[split] if any(_belongs(file, known) for file in files)]
    else:
        import datasets

        try:
            present = list(datasets.get_dataset_split_names(str(path), name, revision=revision))
        except Exception as error:
            raise _not_on_the_hub(path, error) from error
    found = [known for known in SPLIT_NAMES[split] if known in present]
    if len(found) > 1:
        raise ValueError(f"{str(path)!r} has {' and '.join(found)}, each of which could be the {split} split: name one")
    return found[0] if found else None


# --- local files ----------------------------------------------------------------------------------------------------


def folder_files(folder: Path) -> list[Path]:
    """Return the data files of a folder, or of the folder ``data`` in it, in order of their names.

    Raises:
        FileNotFoundError: there are none.
    """
    present = (file for file in folder.iterdir() if file.name not in _NOT_DATA)
    files = sorted(file for file in present if file.is_file() and suffix_of(file))
    if not files and (folder / "data").is_dir():  # as in a copy of a hub data set
        return folder_files(folder / "data")
    if not files:
        raise FileNotFoundError(f"the folder {str(folder)!r} contains no data file ({', '.join(DATA_SUFFIXES)})")
    return files


def split_files(folder: Path, split: str | None) -> list[Path]:
    """Return the data files of one split of a folder, in order of their names.

    Raises:
        FileNotFoundError: there are none.
        ValueError: there is no split, and the files do not all belong to the same one; or two files are the same one in
            different formats.
    """
    files = folder_files(folder)
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
    same = [file.name for file in chosen if file.name.removesuffix(suffix_of(file)) == split]
    if len(same) > 1:
        raise ValueError(f"the folder {str(folder)!r} has {' and '.join(same)}: name the one to read, or remove others")
    return chosen


def _belongs(file: Path, split: str) -> bool:
    return file.name.startswith((f"{split}.", f"{split}-"))


def _split_in_name(file: Path) -> str | None:
    """Return the split that the name of a file begins with, or ``None``."""
    return next((split for split, names in SPLIT_NAMES.items() if any(_belongs(file, name) for name in names)), None)


def _saved_rows(folder: Path, split: str | None) -> Iterator[tuple[str, Row]]:
    import datasets

    data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise FileNotFoundError(f"{str(folder)!r} has no split {split!r}; it has {', '.join(map(str, data))}")
        data = data[split]
    yield from numbered(data, repr(str(folder)))


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
        raise _not_on_the_hub(path, error) from error
    yield from numbered(data, f"{path!r}, split {split!r}")


def _not_on_the_hub(path: str | Path, error: BaseException) -> FileNotFoundError:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    hint = "; give one of them as name" if "Config name is missing" in str(cause) else ""
    return FileNotFoundError(
        f"{str(path)!r} is not a local file or folder, and could not be loaded from the hub: {type(cause).__name__}: "
        f"{cause}{hint}"
    )
