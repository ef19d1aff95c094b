"""Print the public API: every name in a subpackage's ``__all__``, with the parameters of functions and classes.

``tests/test_api.py`` compares it with ``tests/public_api.txt``. After a change that is meant:
``python tools/public_api.py > tests/public_api.txt``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any, get_origin

import lightning_minillm

# The commands are called from the shell: their API is the configuration.
_LEFT_OUT = ("cli", "conf")


def public_api() -> Iterator[str]:
    """Yield one line a name, such as ``losses.GeneralizedJSD(beta=, chunk_size=)``; ``=`` marks a default."""
    for module in sorted(pkgutil.iter_modules(lightning_minillm.__path__), key=lambda module: module.name):
        if module.name in _LEFT_OUT:
            continue
        package = importlib.import_module(f"lightning_minillm.{module.name}")
        for name in sorted(getattr(package, "__all__", ())):
            yield f"{module.name}.{name}{_parameters(getattr(package, name))}"


def _parameters(item: Any) -> str:
    if isinstance(item, type) and issubclass(item, Exception):
        return ""
    if not callable(item) or get_origin(item) is not None or getattr(item, "_is_protocol", False):
        return ""
    words, keyword_only = [], False
    for parameter in inspect.signature(item).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            words.append("*")
        keyword_only |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        words.append(f"{stars}{parameter.name}{'' if parameter.default is parameter.empty else '='}")
    return f"({', '.join(words)})"


if __name__ == "__main__":
    print("\n".join(public_api()))
