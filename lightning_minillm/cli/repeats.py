"""Keys that occur twice in one mapping of the command line, of which Hydra silently keeps the last."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[{}\[\](),:]|[^'"{}\[\](),:]+""")


def check_repeats(overrides: Iterable[str]) -> None:
    """Check that no mapping in an override has a key twice.

    Raises:
        ValueError: one has.
    """
    for override in overrides:
        key = repeated_key(override)
        if key is not None:
            name = override.partition("=")[0].lstrip("+~")
            raise ValueError(f"{name} has the key {key!r} twice, and only one can count: give each a name of its own")


def repeated_key(override: str) -> str | None:
    """Return the first key that a mapping in an override repeats, or ``None``.

    Example:
        >>> repeated_key("models={a: x, b: {a: 1}, 'a': y}"), repeated_key("models={a: 'b: {a: x}', b: [a, a]}")
        ('a', None)
    """
    open_mappings: list[set[str] | None] = []  # None for a bracket that has no keys
    at_key = False
    tokens: list[str] = _TOKEN.findall(override.partition("=")[2])
    for token in tokens:
        if token in "{[(":
            open_mappings.append(set() if token == "{" else None)
        elif token in "}])" and open_mappings:
            open_mappings.pop()
        keys = open_mappings[-1] if open_mappings else None
        name = token.strip().strip("'\"")
        if at_key and keys is not None and name and token not in "{}[](),:":
            if name in keys:
                return name
            keys.add(name)
        at_key = token in "{," if token.strip() else at_key
    return None
