"""How varied responses are: distinct n-grams over all of them, and repetition within each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_minillm.metrics.words import Words, choose_words, split_words


def word_ngrams(text: str, size: int, words: Words = "auto") -> list[tuple[str, ...]]:
    """Return the n-grams of a text's words, in order.

    Args:
        text: any text.
        size: n, in words; at least 1.
        words: see :data:`~lightning_minillm.metrics.Words`; ``"auto"`` goes by the text itself.

    Example:
        >>> word_ngrams("a b  c", 2), word_ngrams("今天 好", 2)
        ([('a', 'b'), ('b', 'c')], [('今', '天'), ('天', '好')])
    """
    chosen = choose_words([text], words)
    found = text.split() if chosen == "latin" else split_words(text, chosen)
    return [tuple(found[start : start + size]) for start in range(len(found) - size + 1)]


def distinct_ngrams(responses: Sequence[str], size: int = 4, words: Words | Sequence[Words] = "auto") -> float:
    """Return the number of distinct n-grams in percent of all n-grams of all responses (Dist-n, Li et al. 2016).

    The paper reports n = 4.

    Args:
        responses: any number of texts.
        size: n, in words; at least 1.
        words: as for :func:`word_ngrams`, one for all responses or one for each.

    Returns:
        A value in (0, 100]; NaN if no response has ``size`` words.

    Raises:
        ValueError: ``size`` is below 1.

    Example:
        >>> distinct_ngrams(["a b c", "a b", "one", "b c d"], size=2)
        60.0
    """
    ngrams = [ngram for row in _rows(responses, size, words) for ngram in row]
    return 100 * float(len(set(ngrams))) / len(ngrams) if ngrams else math.nan


def repeated_ngrams(responses: Sequence[str], size: int = 4, words: Words | Sequence[Words] = "auto") -> float:
    """Return the percentage of a response's n-grams that occurred in it before (seq-rep-n, Welleck et al. 2020).

    Args:
        responses: any number of texts; those of fewer than ``size`` words are left out.
        size: n, in words; at least 1.
        words: as for :func:`distinct_ngrams`.

    Returns:
        The mean over responses, in [0, 100); NaN if all responses are left out.

    Raises:
        ValueError: ``size`` is below 1.

    Example:
        >>> round(repeated_ngrams(["a a a a", "a b c", "one"], size=2), 2)
        33.33
    """
    rows = [ngrams for ngrams in _rows(responses, size, words) if ngrams]
    return sum(100 * (1 - len(set(row)) / len(row)) for row in rows) / len(rows) if rows else math.nan


def _rows(responses: Sequence[str], size: int, words: Words | Sequence[Words]) -> list[list[tuple[str, ...]]]:
    """Return the n-grams of each response."""
    if size < 1:
        raise ValueError(f"the size of n-grams must be at least 1, got {size}")
    each = [words] * len(responses) if isinstance(words, str) else words
    return [word_ngrams(text, size, own) for text, own in zip(responses, each, strict=True)]
