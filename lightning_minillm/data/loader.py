"""Micro-batches of a global batch: how rows are dealt over ranks and accumulation steps.

Batch sizes are global. Every rank works out the whole global batch from integers alone, takes its share, and knows
the number of target tokens of all shares; so nothing is communicated, and the sum over ranks and micro-batches is the
mean over the tokens of the global batch, whatever the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_minillm.data.encoding import EncodedInstructions
from lightning_minillm.data.stream import ShuffledStream, epoch_permutation
from lightning_minillm.types import EvaluationBatch, TokenBatch


class TokenDataset(Protocol):
    """Rows of tokens with a known number of targets: ``EncodedInstructions`` or ``PackedCorpus``."""

    lengths: Tensor
    """``[rows]`` int64, tokens of each row."""
    target_counts: Tensor
    """``[rows]`` int64, targets of each row."""

    def __len__(self) -> int: ...

    def token_batch(self, indices: Tensor, normalizer: float) -> TokenBatch:
        """Return rows as one padded batch."""
        ...


def accumulation_steps(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Return the number of micro-batches that a rank sees in one optimiser step.

    Args:
        batch_size: rows of an optimiser step over all ranks, at least 1.
        micro_batch_size: rows of a micro-batch on one rank, at least 1.
        world_size: number of ranks, at least 1.

    Raises:
        ValueError: when ``batch_size`` is no multiple of ``micro_batch_size * world_size``; the message names the
            nearest sizes that are.

    Example:
        >>> accumulation_steps(64, 8, 2)
        4
    """
    for name, value in (("batch_size", batch_size), ("micro_batch_size", micro_batch_size), ("world_size", world_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    slots = micro_batch_size * world_size
    steps, rest = divmod(batch_size, slots)
    if rest:
        nearest = " or ".join(str(size) for size in (steps * slots, (steps + 1) * slots) if size)
        raise ValueError(
            f"batch_size={batch_size} (over all ranks) does not divide into {world_size} rank(s) x micro-batches of "
            f"{micro_batch_size}: use batch_size {nearest}, or another micro_batch_size."
        )
    return steps


class _Dealer:
    """Deals the rows of a global batch over ranks and micro-batches."""

    def __init__(
        self, dataset: TokenDataset, batch_size: int, micro_batch_size: int, rank: int, world_size: int
    ) -> None:
        self.accumulation = accumulation_steps(batch_size, micro_batch_size, world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, {world_size}), got {rank}.")
        self.dataset = dataset
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size

    def micro_batch(self, rows: Tensor, number: int) -> TokenBatch:
        """Return this rank's ``number``-th micro-batch of the global batch ``rows`` (``[batch_size]`` int64)."""
        # By length first: a micro-batch then holds rows of like length (little padding), the ranks like amounts.
        ordered = rows[torch.argsort(self.dataset.lengths[rows], stable=True)]
        mine = ordered[self.rank :: self.world_size]
        share = mine[number * self.micro_batch_size : (number + 1) * self.micro_batch_size]
        normalizer = self.dataset.target_counts[rows].sum().item() / (self.world_size * self.accumulation)
        return self.dataset.token_batch(share, normalizer)


class EpochSampler:
    """Holds the number of the epoch, which Lightning sets through :meth:`set_epoch`."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch


class TokenLoader:
    """Sized iterable over the micro-batches of one rank, shuffled anew in every epoch.

    The order is a function of (seed, epoch): to stop in the middle of an epoch and to go on from the state gives the
    same batches as not to stop.

    Args:
        dataset: rows of tokens, at least one.
        batch_size: rows of an optimiser step over all ranks.
        micro_batch_size: rows of a micro-batch on one rank; ``None`` for ``batch_size / world_size``.
        rank: this process, in ``[0, world_size)``.
        world_size: number of processes.
        seed: of the order.
        shuffle: ``False`` keeps the order of the data.
        drop_last: leave out the rows after the last full batch; ``False`` fills the last batch with rows from the
            beginning of the epoch instead.

    Attributes:
        accumulation: micro-batches of an optimiser step on this rank, for ``accumulate_grad_batches``.
        steps_per_epoch: optimiser steps of an epoch.
        sampler: what Lightning tells the epoch.

    Raises:
        ValueError: when the sizes do not divide, or no batch is full and ``drop_last`` is set.
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
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        self._dealer = _Dealer(dataset, batch_size, _micro(micro_batch_size, batch_size, world_size), rank, world_size)
        if drop_last and len(dataset) < batch_size:
            raise ValueError(
                f"batch_size={batch_size} is more than the {len(dataset)} rows of the data set: use a batch_size of "
                f"{len(dataset)} or less, or drop_last=False."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.accumulation = self._dealer.accumulation
        full, rest = divmod(len(dataset), batch_size)
        self.steps_per_epoch = full + (1 if rest and not drop_last else 0)
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
        order = epoch_permutation(len(self.dataset), self.seed, self._epoch, self.shuffle)
        missing = max(0, self.steps_per_epoch * self.batch_size - len(order))
        order = order.repeat(1 + math.ceil(missing / len(order)))
        for number in range(start, len(self)):
            step, micro = divmod(number, self.accumulation)
            self._position = number + 1
            yield self._dealer.micro_batch(order[step * self.batch_size : (step + 1) * self.batch_size], micro)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of micro-batches handed out in it."""
        epoch, position = self._resume or (self._epoch, self._position)
        return {"epoch": epoch, "position": position, "accumulation": self.accumulation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state: the next pass over the state's epoch begins after the batches handed out before it.

        Raises:
            ValueError: the state stands inside an optimiser step, and a step has other micro-batches here.
        """
        position, before = int(state["position"]), int(state.get("accumulation", self.accumulation))
        if before != self.accumulation:
            step, micro = divmod(position, before)
            if micro:
                raise ValueError(
                    f"the checkpoint stands after {micro} of {before} micro-batches of a step, and here a step has "
                    f"{self.accumulation}: resume on the same number of ranks with the same micro_batch_size."
                )
            position = step * self.accumulation
        self._resume = (int(state["epoch"]), position)
        self.sampler.set_epoch(self._resume[0])


class LMStream:
    """Endless stream of micro-batches that lives across epochs; a step's number is all of its state.

    Args:
        corpus: rows of tokens, at least one (packed blocks, or instruction pairs).
        batch_size: rows of an optimiser step over all ranks.
        micro_batch_size: rows of a micro-batch on one rank; ``None`` for ``batch_size / world_size``.
        rank: this process, in ``[0, world_size)``.
        world_size: number of processes.
        seed: of the order.

    Raises:
        ValueError: when the sizes do not divide.
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
        self._dealer = _Dealer(corpus, batch_size, _micro(micro_batch_size, batch_size, world_size), rank, world_size)
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


class EvaluationLoader:
    """Sized iterable over this rank's share of the rows, in order, each row once over all ranks.

    All ranks get the same number of batches (sharded models need that), of sizes that differ by one at most.

    Args:
        dataset: rows to evaluate.
        batch_size: rows of a batch on one rank, at most; at least 1.
        rank: this process, in ``[0, world_size)``.
        world_size: number of processes.

    Raises:
        ValueError: when there are too few rows to give every rank its batches.
    """

    def __init__(self, dataset: EncodedInstructions, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"eval_batch_size must be at least 1, got {batch_size}.")
        self.dataset = dataset
        self.num_batches = math.ceil(math.ceil(len(dataset) / world_size) / batch_size)
        if len(dataset) // world_size < self.num_batches:
            raise ValueError(
                f"{len(dataset)} evaluation rows cannot be dealt to {world_size} ranks in equal numbers of batches of "
                f"{batch_size}: use an eval_batch_size of 2 or more, and at least as many rows as ranks."
            )
        self._rows = torch.arange(rank, len(dataset), world_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for rows in torch.tensor_split(self._rows, self.num_batches):
            yield self.dataset.evaluation_batch(rows)


def per_rank(batch_size: int, world_size: int) -> int:
    """Return the rows that each rank takes when a global batch is one micro-batch a rank.

    Raises:
        ValueError: when ``batch_size`` is no multiple of ``world_size``.
    """
    accumulation_steps(batch_size, 1, world_size)
    return batch_size // world_size


def _micro(micro_batch_size: int | None, batch_size: int, world_size: int) -> int:
    return per_rank(batch_size, world_size) if micro_batch_size is None else micro_batch_size
