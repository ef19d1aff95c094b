"""Which share of the data a process takes.

All processes have data of their own, but for those that hold pieces of the same matrices (tensor parallelism): these
see the same rows. A strategy with such processes has the attributes ``data_rank``, ``data_world_size`` and
``data_group``.
"""

from __future__ import annotations

from typing import Any


def data_rank(trainer: Any) -> int:
    """Return this process's number among those with data of their own."""
    return int(getattr(trainer.strategy, "data_rank", trainer.global_rank))


def data_world_size(trainer: Any) -> int:
    """Return how many processes have data of their own."""
    return int(getattr(trainer.strategy, "data_world_size", trainer.world_size))


def data_group(trainer: Any) -> Any:
    """Return the process group that has all data, each row once; ``None`` for all processes."""
    return getattr(trainer.strategy, "data_group", None)
