"""How varied responses are: distinct n-grams over all of them, and repetition within each."""

from __future__ import annotations

import math
from collections.abc import Sequence


def word_ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    """Return the n-grams of a text's words, in order.

    Example:
        >>> word_ngrams("a b  c", 2)
        [('a', 'b'), ('b', 'c')]
    """
    words = text.split()
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def distinct_ngrams(responses: Sequence[str], size: int = 4) -> float:
    """Return the number of distinct n-grams in percent of all n-grams of all responses (Dist-n, Li et al. 2016).

    The paper reports n = 4.

    Args:
        responses: any number of texts.
        size: n, in words; at least 1.

    Returns:
        A value in (0, 100]; NaN if no response has ``size`` words.

    Raises:
        ValueError: ``size`` is below 1.

    Example:
        >>> distinct_ngrams(["a b c", "a b", "one", "b c d"], size=2)
        60.0
    """
    _check_size(size)
    ngrams = [ngram for text in responses for ngram in word_ngrams(text, size)]
    return 100 * float(len(set(ngrams))) / len(ngrams) if ngrams else math.nan


def repeated_ngrams(responses: Sequence[str], size: int = 4) -> float:
    """Return the percentage of a response's n-grams that occurred in it before (seq-rep-n, Welleck et al. 2020).

    Args:
        responses: any number of texts; those of fewer than ``size`` words are left out.
        size: n, in words; at least 1.

    Returns:
        The mean over responses, in [0, 100); NaN if all responses are left out.

    Raises:
        ValueError: ``size`` is below 1.

    Example:
        >>> round(repeated_ngrams(["a a a a", "a b c", "one"], size=2), 2)
        33.33
    """
    _check_size(size)
    rows = [ngrams for ngrams in (word_ngrams(text, size) for text in responses) if ngrams]
    return sum(100 * (1 - len(set(row)) / len(row)) for row in rows) / len(rows) if rows else math.nan


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"the size of n-grams must be at least 1, got {size}")
