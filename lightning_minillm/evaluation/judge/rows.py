"""A judge's answers about single rows, and their summary over all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from lightning_minillm.evaluation.base import Measure
from lightning_minillm.evaluation.judge.prompts import read_scores, read_verdict

Mode = Literal["score", "pairwise"]
Outcome = Literal["win", "tie", "loss"]

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
"""By mode, how each value is shown."""


class JudgedRow(NamedTuple):
    """The judgement of one row, from all answers about it."""

    state: Literal["judged", "not_judged", "unreadable"]
    """``not_judged``: not every question was asked; ``unreadable``: one was refused, or its answer has no judgement."""
    scores: tuple[float, float] | None = None
    """Of the response and of the reference, each averaged over the orders that were asked."""
    outcome: Outcome | None = None
    """Of the response against the baseline's response."""


def judge_row(mode: Mode, answers: Sequence[str | None]) -> JudgedRow:
    """Combine the answers about one row.

    Args:
        mode: ``score`` or ``pairwise``.
        answers: with the response shown as A, then, if orders are swapped, as B; ``None`` for a question that was not
            asked, ``""`` for one that was refused.
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
    """Return mean scores or rates of the rows that were judged, and the number of rows in each state.

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
        values = {f"{outcome}_rate": 100 * outcomes.count(outcome) / len(outcomes) for outcome in get_args(Outcome)}
    return values | {key: sum(row.state == key for row in rows) for key in _COUNTS}
