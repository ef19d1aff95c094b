"""How a command ends when its user made a mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXPECTED: tuple[type[Exception], ...] = (ValueError, FileNotFoundError, FloatingPointError)
"""Exceptions whose message is enough: wrong input, a missing file, a loss that is not finite."""


@contextmanager
def short_errors(*more: type[Exception]) -> Iterator[None]:
    """Print an expected exception as ``error: MESSAGE`` and exit with code 1; others keep their traceback.

    ``HYDRA_FULL_ERROR=1`` in the environment gives every exception its traceback.

    Args:
        more: exceptions that are expected besides :data:`EXPECTED`.
    """
    try:
        yield
    except (*EXPECTED, *more) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}\n(HYDRA_FULL_ERROR=1 shows where it was raised)", file=sys.stderr)
        sys.exit(1)
