"""Metrics of generated responses against references, as torchmetrics.

Rouge-L is torchmetrics' own (best over references, Porter stemmer, as the paper's evaluation has it); exact match
follows the official code's normalisation. All values are sums over rows divided by the number of rows, over all ranks.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.text.rouge import ROUGEScore


class _RowMean(Metric):
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


class RougeL(_RowMean):
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
        score = ROUGEScore(rouge_keys="rougeL", use_stemmer=True, accumulate="best")
        values = score(list(responses), [list(row) for row in references])
        self.total += 100 * values["rougeL_fmeasure"].double().to(self.total.device) * len(responses)
        self.count += len(responses)


class ExactMatch(_RowMean):
    """Percentage of rows whose response equals one of the references after normalisation.

    Normalisation lowers case, drops punctuation and joins white space (official rouge_metric.normalize_answer).
    """

    def update(self, responses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add rows, as in :meth:`RougeL.update`."""
        _check_rows(responses, references)
        for response, row in zip(responses, references, strict=True):
            self.total += 100 * float(normalize(response) in {normalize(reference) for reference in row})
        self.count += len(responses)


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
