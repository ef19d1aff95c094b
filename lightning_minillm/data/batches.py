"""Micro-batches of a global batch: how rows are ordered and dealt over ranks and accumulation steps.

Batch sizes are global. Every rank computes the whole global batch from integers, takes its share, and knows the number
of target tokens of all shares. Nothing is communicated, and the sum over ranks and micro-batches is the mean over the
tokens of the global batch, whatever the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lightning_minillm.batch_sizes import BatchSizes, rescale_position
from lightning_minillm.data.encoding import EncodedInstructions
from lightning_minillm.data.mixing import Mixture
from lightning_minillm.types import EvaluationBatch, TokenBatch

# --- order ----------------------------------------------------------------------------------------------------------


def shuffle_seed(seed: int, number: int) -> int:
    """Return the random seed of the ``number``-th shuffle (epoch or phase) of a run with ``seed``."""
    return (seed * 1_000_003 + number) % (2**63 - 1)


@lru_cache(maxsize=4)  # two streams, each of which may cross from one epoch to the next
def epoch_permutation(num_rows: int, seed: int, epoch: int) -> Tensor:
    """Return the order ``[num_rows]`` int64 of the rows in one epoch. Do not write to it: it is shared."""
    generator = torch.Generator().manual_seed(shuffle_seed(seed, epoch))
    return torch.randperm(num_rows, generator=generator)


@lru_cache(maxsize=4)
def mixed_epoch(mixture: Mixture, seed: int, epoch: int) -> Tensor:
    """Return the order ``[rows]`` int64 of one epoch of a mixture. Do not write to it: it is shared.

    Each source goes through permutations of its own rows, over all epochs, so that none of its rows comes again before
    all others have come; the parts of the epoch are then shuffled together.
    """
    parts = [
        rows[ShuffledStream(len(rows), shuffle_seed(seed, number)).indices(epoch * count, count)]
        for number, (rows, count) in enumerate(zip(mixture.rows, mixture.counts, strict=True))
    ]
    joined = torch.cat(parts)
    return joined[epoch_permutation(len(joined), seed, epoch)]


@dataclass(frozen=True)
class ShuffledStream:
    """Endless sequence of row numbers: one permutation of the rows, or one epoch of a mixture, after another.

    The stream has no state. A position is one integer, so resuming means continuing from it, and every rank can name
    the rows of any step without communication.

    Raises:
        ValueError: ``num_rows`` is below 1 or ``seed`` is below 0.

    Example:
        >>> stream = ShuffledStream(3, seed=0)
        >>> sorted(stream.indices(3, 3).tolist())
        [0, 1, 2]
    """

    num_rows: int
    """Rows of the data set, at least 1."""
    seed: int
    """Any integer of at least 0."""
    mixture: Mixture | None = None
    """Of the rows, if their sources have weights."""

    @classmethod
    def of(cls, dataset: Sized, seed: int) -> ShuffledStream:
        """Return the order of a data set's rows."""
        mixture = dataset.mixture if isinstance(dataset, EncodedInstructions) else None
        return cls(len(dataset), seed, mixture)

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, got {self.num_rows}: check that the data set is not empty")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def epoch(self, number: int) -> Tensor:
        """Return the order ``[num_rows]`` int64 of one epoch. Do not write to it: it is shared."""
        if self.mixture is not None:
            return mixed_epoch(self.mixture, self.seed, number)
        return epoch_permutation(self.num_rows, self.seed, number)

    def indices(self, start: int, count: int) -> Tensor:
        """Return the rows ``[count]`` int64 at positions ``start`` to ``start + count - 1``, which have no upper bound.

        Raises:
            ValueError: an argument is negative.
        """
        if start < 0 or count < 0:
            raise ValueError(f"start and count must be at least 0, got {start} and {count}")
        pieces = [torch.empty(0, dtype=torch.int64)]
        while count > 0:
            epoch, offset = divmod(start, self.num_rows)
            piece = self.epoch(epoch)[offset : offset + count]
            pieces.append(piece)
            start += len(piece)
            count -= len(piece)
        return torch.cat(pieces)


# --- training -------------------------------------------------------------------------------------------------------


class TokenDataset(Protocol):
    """Rows of tokens with known lengths and numbers of targets: ``EncodedInstructions`` or ``PackedCorpus``."""

    lengths: Tensor
    """``[rows]`` int64, tokens of each row."""
    target_counts: Tensor
    """``[rows]`` int64, targets of each row."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def token_batch(self, indices: Tensor, normalizer: float) -> TokenBatch:
        """Return rows as one padded batch."""


class Dealer:
    """Deals the rows of global batches over ranks and micro-batches.

    Args:
        dataset: rows of tokens, at least one.
        batch_size: rows of an optimiser step over all ranks.
        micro_batch_size: rows of a micro-batch on one rank; ``None`` for ``batch_size / world_size``.
        rank: this process, in ``[0, world_size)``.
        world_size: number of processes.
        seed: of the order.

    Raises:
        ValueError: the sizes do not divide, or rows of two epochs would have to share a batch and must not.
    """

    crosses_epochs: ClassVar[bool]
    """Whether a global batch may take rows of two epochs."""

    def __init__(
        self,
        dataset: TokenDataset,
        batch_size: int,
        micro_batch_size: int | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        self.sizes = BatchSizes.of(batch_size, micro_batch_size, world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        if len(dataset) < batch_size and not self.crosses_epochs:
            raise ValueError(
                f"batch_size={batch_size} is greater than the {len(dataset)} rows of the data set: use a batch_size of "
                f"{len(dataset)} or less"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.order = ShuffledStream.of(dataset, seed)

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimiser step on this rank, for ``accumulate_grad_batches``."""
        return self.sizes.accumulation

    def micro_batch(self, rows: Tensor, number: int) -> TokenBatch:
        """Return this rank's ``number``-th micro-batch of the global batch ``rows`` (``[batch_size]`` int64)."""
        # Sorted by length: a micro-batch needs little padding, and the ranks get similar numbers of tokens.
        ordered = rows[torch.argsort(self.dataset.lengths[rows], stable=True)]
        share = ordered[self.rank :: self.world_size].split(self.sizes.micro_batch_size)[number]
        normalizer = self.dataset.target_counts[rows].sum().item() / (self.world_size * self.accumulation)
        return self.dataset.token_batch(share, normalizer)


class TokenLoader(Dealer):
    """Sized iterable over the micro-batches of one rank, shuffled again in every epoch.

    The order is a function of (seed, epoch): a run that is stopped in the middle of an epoch and resumed from the state
    sees the same batches as one that is not stopped. The rows after the last full batch of an epoch are left out.
    """

    crosses_epochs = False
    epoch = 0
    """Number of the next pass."""
    _state = (0, 0)  # epoch, and micro-batches handed out in it
    _resumed = False

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return len(self.dataset) // self.batch_size

    @property
    def sampler(self) -> TokenLoader:
        """The loader itself: Lightning calls ``loader.sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, and with it the order, of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps_per_epoch * self.accumulation

    def __iter__(self) -> Iterator[TokenBatch]:
        # A generator, so that the epoch is read when the first batch is asked for: Lightning sets it after iter().
        epoch, position = self._state
        start = position if self._resumed and epoch == self.epoch else 0
        self._resumed = False
        order = self.order.epoch(self.epoch).split(self.batch_size)
        for number in range(start, len(self)):
            step, micro = divmod(number, self.accumulation)
            self._state = (self.epoch, number + 1)
            yield self.micro_batch(order[step], micro)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of micro-batches handed out in it."""
        epoch, position = self._state
        return {"epoch": epoch, "position": position, "accumulation": self.accumulation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state: the next pass over its epoch begins after the batches that were already handed out.

        Raises:
            ValueError: the state is inside an optimiser step, and the number of micro-batches per step has changed.
        """
        before = int(state.get("accumulation", self.accumulation))
        position = rescale_position(int(state["position"]), before, self.accumulation)
        self.epoch = int(state["epoch"])
        self._state, self._resumed = (self.epoch, position), True


class LMStream(Dealer):
    """Endless stream of micro-batches that crosses epochs; the number of the micro-batch is its only state."""

    crosses_epochs = True

    def batch(self, step: int) -> TokenBatch:
        """Return this rank's ``step``-th micro-batch since the beginning of training.

        Args:
            step: at least 0, without an upper bound; micro-batches ``k * accumulation`` to
                ``(k + 1) * accumulation - 1`` make the k-th optimiser step.
        """
        number, micro = divmod(step, self.accumulation)
        return self.micro_batch(self.order.indices(number * self.batch_size, self.batch_size), micro)


# --- evaluation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationLoader:
    """Sized iterable over this rank's share of the rows, in order; over all ranks, each row occurs once.

    All ranks get the same number of batches, as sharded models require; their sizes differ by at most one row.

    Raises:
        ValueError: there are too few rows to give every rank its batches.
    """

    dataset: EncodedInstructions
    """Rows to evaluate."""
    batch_size: int
    """Most rows of a batch on one rank, at least 1."""
    rank: int = field(default=0, kw_only=True)
    """This process, in ``[0, world_size)``."""
    world_size: int = field(default=1, kw_only=True)
    """Number of processes."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"eval_batch_size must be at least 1, got {self.batch_size}")
        if len(self.dataset) // self.world_size < len(self):
            raise ValueError(
                f"{len(self.dataset)} evaluation rows cannot be dealt to {self.world_size} ranks in equal numbers of "
                f"batches of {self.batch_size}: use an eval_batch_size of at least 2, and no more ranks than rows"
            )

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self.dataset) / self.world_size) / self.batch_size)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        rows = torch.arange(self.rank, len(self.dataset), self.world_size)
        return map(self.dataset.evaluation_batch, rows.tensor_split(len(self)))
