"""Print ``constraints.txt``: the installed version of every package that the extra ``dev`` needs, directly or not.

Run in an environment in which the tests passed: ``.venv/bin/python tools/freeze.py > constraints.txt``.
A package whose installed version asks for a newer Python than the project does gets a marker.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = "lightning-minillm"
OLDEST_PYTHON = (3, 10)


def requirements(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """Yield what ``name`` with ``extras`` requires on this machine."""
    for line in metadata.distribution(name).requires or ():
        requirement = Requirement(line)
        environments = [{"extra": extra} for extra in extras | {""}]
        if requirement.marker is None or any(requirement.marker.evaluate(env) for env in environments):
            yield requirement


def closure(name: str, extras: frozenset[str]) -> set[str]:
    """Return the canonical names of all packages that ``name`` needs, itself left out."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(name), extras)]
    while waiting:
        package = waiting.pop()
        if package in seen:
            continue
        seen.add(package)
        for requirement in requirements(*package):
            waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {package for package, _ in seen} - {canonicalize_name(name)}


def constraint(name: str) -> str:
    """Return ``name==version``, with a marker where that version needs a newer Python than the project."""
    distribution = metadata.distribution(name)
    line = f"{name}=={Version(distribution.version).public}"
    supported = SpecifierSet(distribution.metadata.get("Requires-Python") or "")
    if f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}.99" in supported:
        return line
    oldest = next(minor for minor in range(OLDEST_PYTHON[1], 100) if f"3.{minor}.99" in supported)
    return f'{line} ; python_version >= "3.{oldest}"'


if __name__ == "__main__":
    print("# The versions that the tests ran with; written by tools/freeze.py.")
    for package in sorted(closure(PROJECT, frozenset({"dev"}))):
        print(constraint(package))
