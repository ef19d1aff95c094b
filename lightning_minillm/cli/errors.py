"""How a command ends when its user made a mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

FULL_ERROR = "HYDRA_FULL_ERROR"
"""The environment variable that gives every exception its traceback."""


class RecipeError(RuntimeError):
    """A stage of a recipe failed; finished stages are kept, and repeating the command resumes the recipe."""


EXPECTED: tuple[type[Exception], ...] = (ValueError, OSError, FloatingPointError, RecipeError)
"""Exceptions whose message is enough: wrong input, files, a loss that is not finite, a failed stage."""


@contextmanager
def short_errors() -> Iterator[None]:
    """Print an exception of :data:`EXPECTED` as ``error: MESSAGE`` and exit with code 1; others keep their traceback.

    ``HYDRA_FULL_ERROR=1`` in the environment gives every exception its traceback.
    """
    try:
        yield
    except EXPECTED as error:
        if os.environ.get(FULL_ERROR) == "1":
            raise
        print(f"error: {_message(error)}\n({FULL_ERROR}=1 shows where it was raised)", file=sys.stderr)
        sys.exit(1)


def _message(error: Exception) -> str:
    """Return the message of an error; the system's begin with their number otherwise."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error)
