"""Exposure bias: whether a student errs more on its own text than on its teacher's (MiniLLM, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_minillm.evaluation.base import Curve, Findings, Measure, Picture, Record
from lightning_minillm.evaluation.items import metric_name
from lightning_minillm.evaluation.teacher_comparison import TeacherComparison
from lightning_minillm.functional.divergences import forward_kl
from lightning_minillm.metrics import ExposureBias

if TYPE_CHECKING:
    from lightning_minillm.models import ModelPair

MEASURES = {
    "excess_error": Measure("excess error %, at the end", 1, False),
    "excess_error_mean": Measure("excess error %, mean", 1, False),
    "regret": Measure("accumulated regret", 3, False),
    "epsilon": Measure("error / step on teacher text", 4, False),
}
PICTURES = {
    "excess_error": Picture("Excess accumulated error", "response tokens", "percent"),
    "regret": Picture("Accumulated regret on the student's own text", "response tokens", "nats"),
    "epsilon": Picture("Error a step on the teacher's text", "response tokens", "nats"),
}


class ExposureBiasEvaluation(TeacherComparison):
    """KL(teacher || student) after every prefix of text that the student, and that the teacher wrote.

    With L = ``sampling.max_new_tokens``, the same for all models that are compared, the findings are:

    - ``excess_error``: ExAccErr(L) in percent, what the whole response has piled up;
    - ``excess_error_mean``: the mean of ExAccErr(l) over the lengths 1 to L, which says more than the end alone where
      curves cross;
    - ``regret``: R(L) in nats, ``epsilon``: eps(L) in nats a step;

    each also as a curve over the lengths. The quotient is taken of the means over all prompts. The official script's
    slip, a deviation divided by itself, is not copied.

    The arguments are those of :class:`~lightning_minillm.evaluation.teacher_comparison.TeacherComparison`. Filters
    of its sampling (top-k, top-p, no_repeat_ngram_size) would take prefixes from other distributions than those that
    are compared.

    Source: MiniLLM (arXiv 2306.08543), section 3.3, after Arora et al. (arXiv 2204.01171).
    """

    name = "exposure_bias"
    measures_of_a_set = MEASURES
    pictures_of_a_set = PICTURES

    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Let both models respond, and compare them on either text; a list of nats a token of each."""
        _, name, rows = self.find(items)
        prompts = self.data[name].prompt_batch(rows).to(pair.device)
        function = {"kl": forward_kl}
        student = self.divergences(pair, self.student_text(pair, prompts), function)["kl"]
        teacher = self.divergences(pair, self.teacher_text(pair, prompts), function)["kl"]
        return [
            {"item": item, "data_set": name, "on_student_text": own, "on_teacher_text": oracle}
            for item, own, oracle in zip(items, student, teacher, strict=True)
        ]

    def findings(self, records: Sequence[Record]) -> Findings:
        """Compute the metrics and curves of each data set."""
        values: dict[str, list[float]] = {}
        curves = {}
        for name in self.sources:
            metric = ExposureBias(self.sampling.max_new_tokens)
            for record in records:
                if record["data_set"] == name:
                    metric.update(*_as_row(record["on_student_text"]), *_as_row(record["on_teacher_text"]))
            by_length = metric.compute()
            summary = {key: float(by_length[key][-1]) for key in ("excess_error", "regret", "epsilon")}
            summary["excess_error_mean"] = float(by_length["excess_error"].mean())
            values |= {metric_name(key, name, self.sources): [summary[key]] for key in MEASURES}
            lengths = [float(length) for length in range(1, metric.num_lengths + 1)]
            curves |= {
                metric_name(key, name, self.sources): Curve(lengths, by_length[key].tolist()) for key in PICTURES
            }
        return Findings(values, curves)


def _as_row(values: Sequence[float]) -> tuple[Tensor, Tensor]:
    row = torch.tensor([values], dtype=torch.float64)
    return row, torch.ones_like(row, dtype=torch.bool)
