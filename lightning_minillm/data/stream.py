"""An endless, stateless stream of shuffled row numbers."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_SEED_STRIDE = 1_000_003
_SEED_MODULUS = 2**63 - 1


def epoch_permutation(num_rows: int, seed: int, epoch: int, shuffle: bool = True) -> Tensor:
    """Order in which the rows of one epoch are visited.

    Args:
        num_rows: rows of the data set, at least 1.
        seed: any integer of at least 0.
        epoch: number of the pass over the data, from 0.
        shuffle: ``False`` keeps the rows in order in every epoch.

    Returns:
        ``[num_rows]`` int64, each row once; a function of the arguments alone.
    """
    if not shuffle:
        return torch.arange(num_rows)
    generator = torch.Generator().manual_seed((seed * _SEED_STRIDE + epoch) % _SEED_MODULUS)
    return torch.randperm(num_rows, generator=generator)


class ShuffledStream:
    """Endless concatenation of one permutation of the rows an epoch.

    The stream has no state: a position is one integer, so that to resume is to go on from it, and every rank can
    name the rows of any step without a word to the others.

    Args:
        num_rows: rows of the data set, at least 1.
        seed: any integer of at least 0.
        shuffle: ``False`` repeats the rows in order.

    Raises:
        ValueError: when ``num_rows`` is below 1 or ``seed`` below 0.

    Example:
        >>> stream = ShuffledStream(3, seed=0, shuffle=False)
        >>> stream.indices(2, 5).tolist()
        [2, 0, 1, 2, 0]
    """

    def __init__(self, num_rows: int, seed: int, shuffle: bool = True) -> None:
        if num_rows < 1:
            raise ValueError(f"A stream needs at least 1 row, got {num_rows}: check that the data set is not empty.")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}.")
        self.num_rows = num_rows
        self.seed = seed
        self.shuffle = shuffle
        # One entry a stream: batches come in order, and a rollout phase seldom spans more than two epochs.
        self._permutation = lru_cache(maxsize=2)(self._compute_permutation)

    def _compute_permutation(self, epoch: int) -> Tensor:
        return epoch_permutation(self.num_rows, self.seed, epoch, self.shuffle)

    def __getstate__(self) -> dict[str, object]:
        return {"num_rows": self.num_rows, "seed": self.seed, "shuffle": self.shuffle}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def indices(self, start: int, count: int) -> Tensor:
        """Rows at positions ``start`` to ``start + count - 1`` of the stream.

        Args:
            start: first position, at least 0, without an upper bound.
            count: number of rows, at least 0.

        Returns:
            ``[count]`` int64 row numbers in ``[0, num_rows)``.

        Raises:
            ValueError: when an argument is negative.
        """
        if start < 0 or count < 0:
            raise ValueError(f"start and count must be at least 0, got {start} and {count}.")
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, self.num_rows)
            piece = self._permutation(epoch)[offset : offset + count]
            pieces.append(piece)
            start += len(piece)
            count -= len(piece)
        return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)
