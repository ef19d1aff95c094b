"""Files that are either complete or absent, JSON Lines, and digests that tell whether two things are the same.

Everything that a run keeps goes through here, so that a process killed at any moment leaves no half-written file under
its final name, and a cut last line is dropped before anything is appended.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TextIO

_SAMPLED_BYTES = 2**16


# --- whole files ----------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and move it into place when the block succeeds.

    Args:
        path: the file or folder; its parent folder is created. A folder of that name is replaced.
        durable: wait until the content of a file is on the disk before it is moved.

    Yields:
        The path of a file to write, or of a folder to make, on the same file system. It is removed when the block
        raises.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(file) as scratch:
        ...     _ = scratch.write_text("done")
        >>> file.read_text()
        'done'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield scratch
        if durable:
            with open(scratch, "rb+") as file:
                os.fsync(file.fileno())
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(scratch, path)
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        scratch.unlink(missing_ok=True)


def make_folder(path: str | Path) -> None:
    """Make the folder of a run.

    Raises:
        ValueError: it cannot be made: something else is in the way, or there are no rights.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"output_dir {str(path)!r} cannot be made ({error.strerror}): use another output_dir"
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8; it is complete or absent."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON; the file is complete or absent."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file, or ``None`` if there is no such file.

    Raises:
        ValueError: the file is not JSON, or only a part of it.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}") from error


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``"; did you mean NAME?"`` for the most similar of the known names, or nothing.

    Args:
        name: that is not known.
        known: to choose from; upper and lower case do not matter.
        cutoff: least similarity, in [0, 1].

    Example:
        >>> nearest("val/rougel", ["val/loss", "val/rougeL"])
        '; did you mean val/rougeL?'
    """
    by_lower = {other.lower(): other for other in known}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return f"; did you mean {by_lower[found[0]]}?" if found else ""


def local_path(path: str | Path | None) -> Path | None:
    """Return the file or folder that a path names, with ``~`` expanded; ``None`` for a hub name or no path.

    Example:
        >>> local_path("./model"), local_path("openai-community/gpt2")
        (PosixPath('model'), None)
    """
    name = str(path or "")
    place = Path(name).expanduser()
    is_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or (name and place.exists())
    return place if is_local else None


# --- JSON Lines -----------------------------------------------------------------------------------------------------


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON Lines file; it is complete or absent."""
    with replacing(path) as scratch:
        append_json_lines(scratch, rows)


def append_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a JSON Lines file; they have been handed to the system when this returns."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@contextmanager
def open_text(path: str | Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a UTF-8 text file for reading, gzipped (``.gz``) or not, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, a line is not UTF-8, or a gzip file is damaged; the message names file and line.
    """
    path = Path(path).expanduser()
    opener: Callable[..., Any] = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        with opener(path, "rb") as lines:
            number = next(number for number, line in enumerate(lines, start=1) if not _is_utf8(line))
        raise ValueError(f"line {number} of {str(path)!r} is not UTF-8 text: save the file in UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{str(path)!r} is not a complete gzip file ({error}): copy it again, or rename it if it is not compressed"
        ) from error
    except (PermissionError, IsADirectoryError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def parse_json(text: str, path: str | Path, line: int | None = None) -> Any:
    """Return the value of a JSON text.

    Args:
        text: the JSON.
        path: its file, for messages.
        line: number of the line that the text is; ``None`` for a whole file.

    Raises:
        ValueError: it is not JSON, or an object has a key twice; the message names file and line.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeated_keys)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno} of {str(path)!r}"
        raise ValueError(f"{place} is not valid JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        place = f"line {line} of {str(path)!r}" if line else repr(str(path))
        raise ValueError(f"{place} cannot be used: {error}") from error


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {repeated!r} more than once: keep one of them")
    return value


def numbered_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    r"""Yield line number, from 1, and value of every line of a JSON Lines file that is not blank.

    Only ``\n`` ends a line: text may contain any other line separator of Unicode.

    Raises:
        ValueError: a line is not JSON, or has a key twice; the message gives its number.
    """
    with open_text(path, newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, parse_json(line, path, number)


def iterate_json_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON Lines file, as :func:`numbered_json_lines` reads them."""
    for _, row in numbered_json_lines(path):
        yield row


def drop_cut_line(path: str | Path) -> None:
    r"""Truncate a file after its last ``\n``, removing what a killed process left of a line."""
    whole, newline, _ = Path(path).read_bytes().rpartition(b"\n")
    os.truncate(path, len(whole) + len(newline))


# --- the same thing? ------------------------------------------------------------------------------------------------


def digest(value: Any, texts: Iterable[str] = ()) -> str:
    """Return a SHA-256 digest of a JSON value and of texts, equal in every process.

    Args:
        value: plain JSON; the order of keys does not matter.
        texts: any number of strings, in order; not held in memory together.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    hashed = hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        hashed.update(len(encoded).to_bytes(8, "little"))
        hashed.update(encoded)
    return hashed.hexdigest()


def digest_of_files(path: str | Path, *, whole: bool = False) -> str:
    """Return a digest of a file, or of all files in a folder, that does not depend on where they are stored.

    Args:
        path: a file or a folder; for anything else, such as a hub name, the string itself is returned.
        whole: read all of every file. By default its name, its size, and its first and last 64 KiB count, so that large
            weights are not read whole.
    """
    place = Path(path).expanduser()
    if not place.exists():
        return str(path)
    hashed = hashlib.sha256()
    for file in sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]:
        size = file.stat().st_size
        hashed.update(f"{file.relative_to(place)} {size}".encode())
        with open(file, "rb") as content:
            for start in range(0, size, _SAMPLED_BYTES) if whole else (0, max(0, size - _SAMPLED_BYTES)):
                content.seek(start)
                hashed.update(content.read(_SAMPLED_BYTES))
    return hashed.hexdigest()


def replace_in_strings(value: Any, replacements: Mapping[str, str]) -> Any:
    """Return a JSON value in whose strings each key of ``replacements`` is replaced, in order, such as a folder's path.

    Example:
        >>> replace_in_strings({"path": ["/a/b/c", 1]}, {"/a/b": "<folder>"})
        {'path': ['<folder>/c', 1]}
    """
    if isinstance(value, Mapping):
        return {key: replace_in_strings(item, replacements) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_in_strings(item, replacements) for item in value]
    if isinstance(value, str):
        for old, new in replacements.items():
            value = value.replace(old, new)
    return value


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the sorted keys in which two descriptions of the same work differ, compared as JSON.

    Example:
        >>> changed_keys({"seed": 1, "lengths": [1, 2]}, {"seed": 2, "lengths": (1, 2)})
        ['seed']
    """
    first, second = (json.loads(json.dumps(dict(mapping), default=str)) for mapping in (before, now))
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
