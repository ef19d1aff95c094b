"""What a judge said of single rows, and of all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from lightning_minillm.evaluation.base import Measure
from lightning_minillm.evaluation.judge.prompts import read_scores, read_verdict

Mode = Literal["score", "pairwise"]

_SCORES = {
    "score_ratio": Measure("score / reference's %", 1, True),
    "score": Measure("score (1-10)", 2, True),
    "reference_score": Measure("reference's score", 2),
}
_RATES = {
    "win_rate": Measure("wins %", 1, True),
    "tie_rate": Measure("ties %", 1),
    "loss_rate": Measure("losses %", 1, False),
}
_COUNTS = {
    "judged": Measure("rows judged", 0),
    "not_judged": Measure("rows not asked", 0, False),
    "unreadable": Measure("rows without a readable answer", 0, False),
}
MEASURES = {"score": _SCORES | _COUNTS, "pairwise": _RATES | _COUNTS}
"""By mode, how the values of its rows are shown."""


class JudgedRow(NamedTuple):
    """What a judge said of one row, by all its answers."""

    state: Literal["judged", "not_judged", "unreadable"]
    """``not_judged``: not all was asked; ``unreadable``: an answer was refused or says nothing."""
    scores: tuple[float, float] | None = None
    """Of the response and of the reference, each the mean over the orders that were asked."""
    outcome: Literal["win", "tie", "loss"] | None = None
    """Of the response against the baseline's."""


def judge_row(mode: Mode, answers: Sequence[str | None]) -> JudgedRow:
    """Put the answers of one row together.

    Args:
        mode: what was asked.
        answers: with the response as A, then, if orders are swapped, as B; ``None`` where nothing was asked.
    """
    if any(answer is None for answer in answers):
        return JudgedRow("not_judged")
    if mode == "score":
        pairs = [read_scores(answer or "") for answer in answers]
        pairs = [pair[::-1] if pair and place else pair for place, pair in enumerate(pairs)]
        read = [pair for pair in pairs if pair is not None]
        if len(read) < len(pairs):
            return JudgedRow("unreadable")
        own, others = (sum(scores) / len(read) for scores in zip(*read, strict=True))
        return JudgedRow("judged", scores=(own, others))
    verdicts = [read_verdict(answer or "") for answer in answers]
    if None in verdicts:
        return JudgedRow("unreadable")
    if verdicts in (["A"], ["A", "B"]):
        return JudgedRow("judged", outcome="win")
    return JudgedRow("judged", outcome="loss" if verdicts in (["B"], ["B", "A"]) else "tie")


def summarise_rows(rows: Sequence[JudgedRow]) -> dict[str, float]:
    """Return scores or rates of the rows that were judged, and how many were and were not.

    Example:
        >>> rows = [JudgedRow("judged", scores=scores) for scores in [(4.0, 8.0), (5.0, 10.0)]]
        >>> found = summarise_rows([*rows, JudgedRow("unreadable")])
        >>> found["score_ratio"], found["score"], found["judged"], found["unreadable"]
        (50.0, 4.5, 2, 1)
    """
    values: dict[str, float] = {}
    scores = [row.scores for row in rows if row.scores is not None]
    outcomes = [row.outcome for row in rows if row.outcome is not None]
    if scores:
        own, others = (sum(column) for column in zip(*scores, strict=True))
        values = {
            "score_ratio": 100 * own / others,
            "score": own / len(scores),
            "reference_score": others / len(scores),
        }
    if outcomes:
        names = {"win_rate": "win", "tie_rate": "tie", "loss_rate": "loss"}
        values = {key: 100 * outcomes.count(outcome) / len(outcomes) for key, outcome in names.items()}
    return values | {key: sum(row.state == key for row in rows) for key in _COUNTS}
