"""Metrics of generated responses against references, as torchmetrics.

Rouge-L is torchmetrics' own (best over references, Porter stemmer, as the paper's evaluation has it); exact match
follows the official code's normalisation. All values are sums over rows divided by the number of rows, over all ranks.
"""

from __future__ import annotations

import bisect
import re
import string
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text.rouge import rouge_score


class RowMean(Metric):
    """Mean over rows of a score in percent, over all ranks; NaN when nothing was seen."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Return the mean, a scalar in [0, 100]."""
        return self.total / self.count


class RougeL(RowMean):
    """F-measure of Rouge-L in percent, best over the references of a row, averaged over rows.

    Returns NaN when nothing was seen.
    """

    def update(self, responses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add rows.

        Args:
            responses: B texts.
            references: B lists of at least one acceptable text.

        Raises:
            ValueError: different numbers of rows, or a row without reference.
        """
        _check_rows(responses, references)
        if not responses:
            return
        self.total += sum(rouge_l(response, row) for response, row in zip(responses, references, strict=True))
        self.count += len(responses)


class ExactMatch(RowMean):
    """Percentage of rows whose response equals one of the references after normalisation.

    Normalisation lowers case, drops punctuation and joins white space (official rouge_metric.normalize_answer).
    """

    def update(self, responses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add rows, as in :meth:`RougeL.update`."""
        _check_rows(responses, references)
        for response, row in zip(responses, references, strict=True):
            self.total += 100 * float(normalize(response) in {normalize(reference) for reference in row})
        self.count += len(responses)


class RougeLByLength(Metric):
    """Rouge-L in percent by the length of the reference, in the paper's buckets [0, 5], [6, 10] and [11, inf).

    The paper counts tokens of the reference.

    Args:
        bounds: the longest reference of each bucket but the last, rising.

    Raises:
        ValueError: bounds that do not rise.
    """

    full_state_update = False
    higher_is_better = True
    totals: Tensor
    counts: Tensor

    def __init__(self, bounds: Sequence[int] = (5, 10)) -> None:
        super().__init__()
        if list(bounds) != sorted(set(bounds)) or not bounds:
            raise ValueError(f"bounds of length buckets must rise, got {list(bounds)}")
        self.bounds = tuple(bounds)
        for name in ("totals", "counts"):
            zeros = torch.zeros(len(bounds) + 1, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the buckets: ``0-5``, ``6-10``, ``11+``."""
        starts = [0, *(bound + 1 for bound in self.bounds)]
        return (*(f"{a}-{b}" for a, b in zip(starts, self.bounds, strict=False)), f"{starts[-1]}+")

    def update(self, responses: Sequence[str], references: Sequence[Sequence[str]], lengths: Sequence[int]) -> None:
        """Add rows.

        Args:
            responses: B texts.
            references: B lists of at least one acceptable text.
            lengths: B tokens of the first reference, its eos left out.

        Raises:
            ValueError: different numbers of rows, or a row without reference.
        """
        _check_rows(responses, references)
        for response, row, length in zip(responses, references, lengths, strict=True):
            self.add(rouge_l(response, row), length)

    def add(self, score: float, length: int) -> None:
        """Add a row whose score is known already.

        Args:
            score: Rouge-L in percent.
            length: tokens of the first reference.
        """
        self._update_count += 1  # else torchmetrics, which counts calls of update, warns that there was none
        bucket = bisect.bisect_left(self.bounds, length)
        self.totals[bucket] += score
        self.counts[bucket] += 1

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each bucket by its name; NaN for a bucket without rows."""
        return dict(zip(self.names, self.totals / self.counts, strict=True))


def rouge_l(response: str, references: Sequence[str]) -> float:
    """Return the F-measure of Rouge-L in percent, the best over the references.

    Example:
        >>> round(rouge_l("a b", ["a c", "x"]), 6)
        50.0
    """
    scores = rouge_score([response], [list(references)], rouge_keys="rougeL", use_stemmer=True, accumulate="best")
    return 100 * float(scores["rougeL_fmeasure"])


def normalize(text: str) -> str:
    """Lower the case, drop punctuation, join white space.

    Example:
        >>> normalize("The  Cat, sat. ")
        'the cat sat'
    """
    kept = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", kept).strip()


def _check_rows(responses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(responses) != len(references):
        raise ValueError(f"{len(responses)} responses and {len(references)} rows of references: they must be as many")
    if any(len(row) == 0 for row in references):
        raise ValueError("a row has no reference: give at least one acceptable response for each")
