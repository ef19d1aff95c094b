"""Rouge-L and exact match of responses against references.

Rouge-L is torchmetrics' own (best over references; for words in Latin script with the Porter stemmer, as in the paper's
evaluation); exact match normalises as the official code does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text.rouge import rouge_score

from lightning_minillm._reach import keep_float64
from lightning_minillm.metrics.words import Words, check_words, choose_words, normalize, split_words


def rouge_l(response: str, references: Sequence[str], words: Words = "auto") -> float:
    """Return the F-measure of Rouge-L in percent, the best over the references.

    Args:
        response: any text; without words, it scores 0.
        references: at least one text; one without words scores 0.
        words: see :data:`~lightning_minillm.metrics.Words`.

    Raises:
        ValueError: there is no reference.

    Example:
        >>> round(rouge_l("a b", ["a c", "x"]), 4), round(rouge_l("今天天气很好", ["今天下雨"]), 4)
        (50.0, 40.0)
    """
    _check_references([references])
    chosen = choose_words(references, words)
    how: dict[str, Any] = {"use_stemmer": True}
    if chosen != "latin":
        how = {"normalizer": str, "tokenizer": partial(split_words, words=chosen)}
    scores = rouge_score([response], [list(references)], rouge_keys="rougeL", accumulate="best", **how)
    return 100 * float(scores["rougeL_fmeasure"])


def exact_match(response: str, references: Sequence[str], words: Words = "auto") -> bool:
    """Return whether a response equals one of the references after :func:`normalize`.

    Args:
        response: any text.
        references: texts; without any, nothing matches.
        words: see :data:`~lightning_minillm.metrics.Words`.

    Example:
        >>> exact_match("Paris.", ["London", "paris"]), exact_match("“你好”，世界。", ["你好世界"])
        (True, True)
    """
    chosen = choose_words(references, words)
    return normalize(response, chosen) in {normalize(reference, chosen) for reference in references}


@keep_float64
class _RowMean(Metric):
    """Mean over rows and ranks of a score in percent; NaN if there were no rows.

    Args:
        words: see :data:`~lightning_minillm.metrics.Words`.
        options: of :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, words: Words = "auto", **options: Any) -> None:
        super().__init__(**options)
        check_words(words)
        self.words = words
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
        _check_references(references)
        self.total += sum(self.score(response, row) for response, row in zip(responses, references, strict=True))
        self.count += len(responses)

    def compute(self) -> Tensor:
        """Return the mean, a scalar in [0, 100]."""
        return self.total / self.count


class RougeL(_RowMean):
    """Mean of :func:`rouge_l` over rows and ranks, in percent; NaN if there were no rows."""

    def score(self, response: str, references: Sequence[str]) -> float:
        """Return Rouge-L of one row."""
        return rouge_l(response, references, self.words)


class ExactMatch(_RowMean):
    """Percentage of rows with an :func:`exact_match`, over all ranks; NaN if there were no rows."""

    def score(self, response: str, references: Sequence[str]) -> float:
        """Return 100 for a match, else 0."""
        return 100.0 * exact_match(response, references, self.words)


def _check_references(rows: Sequence[Sequence[str]]) -> None:
    if not all(rows):
        raise ValueError("a row has no reference: give at least one acceptable response for each")
