"""Checks of options, whose errors read alike."""

from __future__ import annotations

from typing import Any, get_args


def check_range(is_inside: bool, name: str, allowed: str, value: object) -> None:
    """Raise a ``ValueError`` such as "top_k must be at least 1, got 0" unless ``is_inside``."""
    if not is_inside:
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_choice(name: str, value: object, literal: Any) -> None:
    """Raise a ``ValueError`` unless ``value`` is one of the values of a ``typing.Literal``."""
    if value not in get_args(literal):
        raise ValueError(f"{name} must be one of {get_args(literal)}, got {value!r}")
