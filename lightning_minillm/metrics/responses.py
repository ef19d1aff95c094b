"""Rouge-L and exact match of responses against references.

Rouge-L is torchmetrics' own (best over references, Porter stemmer, as in the paper's evaluation); exact match
normalises as the official code does.
"""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text.rouge import rouge_score


def rouge_l(response: str, references: Sequence[str]) -> float:
    """Return the F-measure of Rouge-L in percent, the best over the references.

    Example:
        >>> round(rouge_l("a b", ["a c", "x"]), 6)
        50.0
    """
    scores = rouge_score([response], [list(references)], rouge_keys="rougeL", use_stemmer=True, accumulate="best")
    return 100 * float(scores["rougeL_fmeasure"])


def exact_match(response: str, references: Sequence[str]) -> bool:
    """Return whether a response equals one of the references after :func:`normalize`.

    Example:
        >>> exact_match("Paris.", ["London", "paris"])
        True
    """
    return normalize(response) in {normalize(reference) for reference in references}


def normalize(text: str) -> str:
    """Lower the case, remove punctuation and collapse white space (official ``rouge_metric.normalize_answer``).

    Example:
        >>> normalize("The  Cat, sat. ")
        'the cat sat'
    """
    kept = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", kept).strip()


class _RowMean(Metric):
    """Mean over rows and ranks of a score in percent; NaN if there were no rows."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, response: str, references: Sequence[str]) -> float:
        """Return the score of one row, in percent."""

    def update(self, responses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add rows.

        Args:
            responses: B texts.
            references: B lists of at least one acceptable text.

        Raises:
            ValueError: the lengths differ, or a row has no reference.
        """
        if len(responses) != len(references):
            raise ValueError(
                f"{len(responses)} responses and {len(references)} rows of references: they must have the same length"
            )
        if any(len(row) == 0 for row in references):
            raise ValueError("a row has no reference: give at least one acceptable response for each")
        self.total += sum(self.score(response, row) for response, row in zip(responses, references, strict=True))
        self.count += len(responses)

    def compute(self) -> Tensor:
        """Return the mean, a scalar in [0, 100]."""
        return self.total / self.count


class RougeL(_RowMean):
    """Mean of :func:`rouge_l` over rows and ranks, in percent; NaN if there were no rows."""

    def score(self, response: str, references: Sequence[str]) -> float:
        """Return Rouge-L of one row."""
        return rouge_l(response, references)


class ExactMatch(_RowMean):
    """Percentage of rows with an :func:`exact_match`, over all ranks; NaN if there were no rows."""

    def score(self, response: str, references: Sequence[str]) -> float:
        """Return 100 for a match, else 0."""
        return 100.0 * exact_match(response, references)
