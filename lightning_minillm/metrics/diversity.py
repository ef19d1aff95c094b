"""How varied responses are: distinct n-grams over all of them, and repetition within each."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_minillm.metrics.responses import RowMean


def word_ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    """Return the n-grams of a text's words, as they follow each other.

    Example:
        >>> word_ngrams("a b  c", 2)
        [('a', 'b'), ('b', 'c')]
    """
    words = text.split()
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


class DistinctNGrams(Metric):
    """Distinct n-grams in percent of all n-grams, over all responses and ranks together (Dist-n, Li et al. 2016).

    The paper reports n = 4. NaN when no response has ``size`` words.

    Args:
        size: n, at least 1; in words.

    Raises:
        ValueError: size below 1.
    """

    full_state_update = False
    higher_is_better = True
    digests: list[Tensor]

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        _check_size(size)
        self.size = size
        self.add_state("digests", [], dist_reduce_fx="cat")

    def update(self, responses: Sequence[str]) -> None:
        """Add texts."""
        numbers = [_digest(ngram) for text in responses for ngram in word_ngrams(text, self.size)]
        self.digests.append(torch.tensor(numbers, dtype=torch.int64, device=self.device))

    def compute(self) -> Tensor:
        """Return a scalar in [0, 100]."""
        digests = dim_zero_cat(self.digests) if self.digests else torch.zeros(0, dtype=torch.int64)
        return 100 * torch.tensor(float(len(digests.unique())), dtype=torch.float64) / len(digests)


class RepeatedNGrams(RowMean):
    """Percent of a response's n-grams that it has already used, averaged over rows (seq-rep-n, Welleck et al. 2020).

    Responses of fewer than ``size`` words have none and are left out; NaN when all are.

    Args:
        size: n, at least 1; in words.

    Raises:
        ValueError: size below 1.
    """

    higher_is_better = False

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        _check_size(size)
        self.size = size

    def update(self, responses: Sequence[str]) -> None:
        """Add texts."""
        for text in responses:
            ngrams = word_ngrams(text, self.size)
            if ngrams:
                self.total += 100 * (1 - len(set(ngrams)) / len(ngrams))
                self.count += 1


def _digest(ngram: tuple[str, ...]) -> int:
    """A number of 63 bits: the same in every process, unlike ``hash``."""
    return int.from_bytes(blake2b("\0".join(ngram).encode(), digest_size=8).digest(), "big") >> 1


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"the size of n-grams must be at least 1, got {size}")
