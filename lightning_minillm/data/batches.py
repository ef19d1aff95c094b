"""Micro-batches of a global batch: how rows are ordered and dealt over ranks and accumulation steps.

Batch sizes are global. Every rank computes the whole global batch from integers, takes its share, and knows the number
of target tokens of all shares. Nothing is communicated, and the sum over ranks and micro-batches is the mean over the
tokens of the global batch, whatever the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_minillm.batch_sizes import BatchSizes, rescale_position
from lightning_minillm.data.encoding import EncodedInstructions
from lightning_minillm.types import EvaluationBatch, TokenBatch

# --- order ----------------------------------------------------------------------------------------------------------


def shuffle_seed(seed: int, number: int) -> int:
    """Return the random seed of the ``number``-th shuffle (epoch or phase) of a run with ``seed``."""
    return (seed * 1_000_003 + number) % (2**63 - 1)


@lru_cache(maxsize=4)  # two streams, each of which may cross from one epoch to the next
def epoch_permutation(num_rows: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the rows in one epoch.

    Args:
        num_rows: rows of the data set, at least 1.
        seed: any integer of at least 0.
        epoch: number of the pass over the data, from 0.

    Returns:
        ``[num_rows]`` int64, each row once; a function of the arguments alone. Do not write to it: it is shared.
    """
    generator = torch.Generator().manual_seed(shuffle_seed(seed, epoch))
    return torch.randperm(num_rows, generator=generator)


@dataclass(frozen=True)
class ShuffledStream:
    """Endless sequence of row numbers: one permutation of the rows after another.

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

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, got {self.num_rows}: check that the data set is not empty")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def indices(self, start: int, count: int) -> Tensor:
        """Return the rows at positions ``start`` to ``start + count - 1`` of the stream.

        Args:
            start: first position, at least 0, without an upper bound.
            count: number of rows, at least 0.

        Returns:
            ``[count]`` int64 row numbers in ``[0, num_rows)``.

        Raises:
            ValueError: an argument is negative.
        """
        if start < 0 or count < 0:
            raise ValueError(f"start and count must be at least 0, got {start} and {count}")
        pieces = [torch.empty(0, dtype=torch.int64)]
        while count > 0:
            epoch, offset = divmod(start, self.num_rows)
            piece = epoch_permutation(self.num_rows, self.seed, epoch)[offset : offset + count]
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


class _Dealer:
    """Deals the rows of a global batch over ranks and micro-batches."""

    def __init__(
        self, dataset: TokenDataset, batch_size: int, micro_batch_size: int | None, rank: int, world_size: int
    ) -> None:
        sizes = BatchSizes.of(batch_size, micro_batch_size, world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        self.dataset = dataset
        self.micro_batch_size = sizes.micro_batch_size
        self.accumulation = sizes.accumulation
        self.rank = rank
        self.world_size = world_size

    def micro_batch(self, rows: Tensor, number: int) -> TokenBatch:
        """Return this rank's ``number``-th micro-batch of the global batch ``rows`` (``[batch_size]`` int64)."""
        # Sorted by length: a micro-batch needs little padding, and the ranks get similar numbers of tokens.
        ordered = rows[torch.argsort(self.dataset.lengths[rows], stable=True)]
        mine = ordered[self.rank :: self.world_size]
        share = mine[number * self.micro_batch_size : (number + 1) * self.micro_batch_size]
        normalizer = self.dataset.target_counts[rows].sum().item() / (self.world_size * self.accumulation)
        return self.dataset.token_batch(share, normalizer)


class EpochSampler:
    """Stores the number of the epoch, which Lightning sets with :meth:`set_epoch`."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, and with it the order, of the next pass."""
        self.epoch = epoch


class TokenLoader:
    """Sized iterable over the micro-batches of one rank, shuffled again in every epoch.

    The order is a function of (seed, epoch): a run that is stopped in the middle of an epoch and resumed from the state
    sees the same batches as one that is not stopped. The rows after the last full batch of an epoch are left out.

    Args:
        dataset: rows of tokens, at least ``batch_size``.
        batch_size: rows of an optimiser step over all ranks.
        micro_batch_size: rows of a micro-batch on one rank; ``None`` for ``batch_size / world_size``.
        rank: this process, in ``[0, world_size)``.
        world_size: number of processes.
        seed: of the order.

    Attributes:
        accumulation: micro-batches of an optimiser step on this rank, for ``accumulate_grad_batches``.
        steps_per_epoch: optimiser steps of an epoch.
        sampler: receives the number of the epoch from Lightning.

    Raises:
        ValueError: the sizes do not divide, or the data set has fewer than ``batch_size`` rows.
    """

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
        self._dealer = _Dealer(dataset, batch_size, micro_batch_size, rank, world_size)
        if len(dataset) < batch_size:
            raise ValueError(
                f"batch_size={batch_size} is greater than the {len(dataset)} rows of the data set: use a batch_size of "
                f"{len(dataset)} or less"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.accumulation = self._dealer.accumulation
        self.steps_per_epoch = len(dataset) // batch_size
        self.sampler = EpochSampler()
        self._epoch = 0
        self._position = 0
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.steps_per_epoch * self.accumulation

    def __iter__(self) -> Iterator[TokenBatch]:
        # A generator, so that the epoch is read when the first batch is asked for: Lightning sets it after iter().
        self._epoch, start = self.sampler.epoch, 0
        if self._resume is not None:
            epoch, position = self._resume
            start = position if epoch == self._epoch else 0
            self._resume = None
        order = epoch_permutation(len(self.dataset), self.seed, self._epoch)
        for number in range(start, len(self)):
            step, micro = divmod(number, self.accumulation)
            self._position = number + 1
            yield self._dealer.micro_batch(order[step * self.batch_size : (step + 1) * self.batch_size], micro)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of micro-batches handed out in it."""
        epoch, position = self._resume or (self._epoch, self._position)
        return {"epoch": epoch, "position": position, "accumulation": self.accumulation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state: the next pass over its epoch begins after the batches that were already handed out.

        Raises:
            ValueError: the state is inside an optimiser step, and the number of micro-batches per step has changed.
        """
        before = int(state.get("accumulation", self.accumulation))
        position = rescale_position(int(state["position"]), before, self.accumulation)
        self._resume = (int(state["epoch"]), position)
        self.sampler.set_epoch(self._resume[0])


class LMStream:
    """Endless stream of micro-batches that crosses epochs; the number of the micro-batch is its only state.

    Args:
        corpus: rows of tokens, at least one (packed blocks, or instruction pairs).
        batch_size: rows of an optimiser step over all ranks.
        micro_batch_size: rows of a micro-batch on one rank; ``None`` for ``batch_size / world_size``.
        rank: this process, in ``[0, world_size)``.
        world_size: number of processes.
        seed: of the order.

    Raises:
        ValueError: the sizes do not divide.
    """

    def __init__(
        self,
        corpus: TokenDataset,
        batch_size: int,
        micro_batch_size: int | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        self._dealer = _Dealer(corpus, batch_size, micro_batch_size, rank, world_size)
        self._stream = ShuffledStream(len(corpus), seed)
        self.corpus = corpus
        self.batch_size = batch_size
        self.accumulation = self._dealer.accumulation

    def batch(self, step: int) -> TokenBatch:
        """Return this rank's ``step``-th micro-batch since the beginning of training.

        Args:
            step: at least 0, without an upper bound; micro-batches ``k * accumulation`` to
                ``(k + 1) * accumulation - 1`` make the k-th optimiser step.
        """
        number, micro = divmod(step, self.accumulation)
        return self._dealer.micro_batch(self._stream.indices(number * self.batch_size, self.batch_size), micro)


# --- evaluation -----------------------------------------------------------------------------------------------------


class EvaluationLoader:
    """Sized iterable over this rank's share of the rows, in order; over all ranks, each row occurs once.

    All ranks get the same number of batches, as sharded models require; their sizes differ by at most one row.

    Args:
        dataset: rows to evaluate.
        batch_size: rows of a batch on one rank, at most; at least 1.
        rank: this process, in ``[0, world_size)``.
        world_size: number of processes.

    Raises:
        ValueError: there are too few rows to give every rank its batches.
    """

    def __init__(self, dataset: EncodedInstructions, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"eval_batch_size must be at least 1, got {batch_size}")
        self.dataset = dataset
        self.num_batches = math.ceil(math.ceil(len(dataset) / world_size) / batch_size)
        if len(dataset) // world_size < self.num_batches:
            raise ValueError(
                f"{len(dataset)} evaluation rows cannot be dealt to {world_size} ranks in equal numbers of batches of "
                f"{batch_size}: use an eval_batch_size of at least 2, and no more ranks than rows"
            )
        self._rows = torch.arange(rank, len(dataset), world_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for rows in torch.tensor_split(self._rows, self.num_batches):
            yield self.dataset.evaluation_batch(rows)
