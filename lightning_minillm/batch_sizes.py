"""How a global batch is divided over devices and accumulation steps.

Batch sizes are global: they count the rows of one optimiser step over all devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_minillm.checks import check_range


def divide(value: int, divisor: int, name: str, divisor_name: str) -> int:
    """Return ``value / divisor``, which must be a whole number.

    Args:
        value: the number to divide, at least 1.
        divisor: at least 1.
        name: of ``value``, for the message.
        divisor_name: of ``divisor``, for the message.

    Raises:
        ValueError: ``value`` is not a positive multiple of ``divisor``; the message names the nearest that are.

    Example:
        >>> divide(64, 8, "batch_size", "devices")
        8
    """
    check_range(divisor >= 1, divisor_name, "at least 1", divisor)
    if value < 1 or value % divisor:
        below, above = value // divisor * divisor, (value // divisor + 1) * divisor
        nearest = above if below < 1 else f"{below} or {above}"
        raise ValueError(f"{name}={value} is not a multiple of {divisor_name}={divisor}; the nearest is {nearest}")
    return value // divisor


@dataclass(frozen=True)
class BatchSizes:
    """A global batch and its micro-batches.

    Raises:
        ValueError: a size below 1, or sizes that do not divide; the message names the nearest that do.

    Example:
        >>> BatchSizes(64, micro_batch_size=8, world_size=2).accumulation
        4
    """

    batch_size: int
    """Rows of an optimiser step over all devices."""
    micro_batch_size: int
    """Rows of one forward pass on one device."""
    world_size: int = 1
    """Devices that have rows of their own."""

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "world_size"):
            check_range(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        divide(self.batch_size, self.micro_batch_size * self.world_size, "batch_size", "micro_batch_size x devices")

    @classmethod
    def of(cls, batch_size: int, micro_batch_size: int | None = None, world_size: int = 1) -> BatchSizes:
        """Return the sizes; ``micro_batch_size=None`` takes each device's whole share in one forward pass."""
        if micro_batch_size is None:
            micro_batch_size = divide(batch_size, world_size, "batch_size", "devices")
        return cls(batch_size, micro_batch_size, world_size)

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimiser step on each device."""
        return self.batch_size // (self.micro_batch_size * self.world_size)


def rescale_position(position: int, before: int, now: int) -> int:
    """Return a position, counted in micro-batches, in micro-batches of a different size.

    Args:
        position: micro-batches done, at least 0.
        before: micro-batches of an optimiser step in the run that counted ``position``.
        now: micro-batches of an optimiser step in this run.

    Raises:
        ValueError: ``before`` and ``now`` differ and the position is inside an optimiser step.

    Example:
        >>> rescale_position(12, before=4, now=2)
        6
    """
    step, micro = divmod(position, before)
    if before != now and micro:
        raise ValueError(
            f"the checkpoint is inside an optimiser step, after {micro} of {before} micro-batches, and a step has {now}"
            " here: resume with the same number of devices and micro_batch_size"
        )
    return step * now + micro
