"""Exposure bias: how much more a student errs on its own text than on its teacher's (MiniLLM, section 3.3).

Legend: B rows, L lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_minillm.evaluation.base import Curve, Evaluation, Findings, Measure, Picture, Record
from lightning_minillm.evaluation.prompt_sets import PromptItems
from lightning_minillm.evaluation.scoring import pair_divergences, write_responses
from lightning_minillm.functional.divergences import forward_kl
from lightning_minillm.metrics import ExposureBias
from lightning_minillm.models import ModelPair
from lightning_minillm.types import TokenBatch


class ExposureBiasEvaluation(PromptItems, Evaluation):
    """KL(teacher || student) after every prefix of text written by the student, and of text written by the teacher.

    With L = ``sampling.max_new_tokens``, which must be the same for all models that are compared, the findings are:

    - ``excess_error``: ExAccErr(L) in percent, accumulated over the whole response;
    - ``excess_error_mean``: the mean of ExAccErr(l) over the lengths 1 to L, which is more informative than the end
      alone if curves cross;
    - ``regret``: R(L) in nats, ``epsilon``: eps(L) in nats per step;

    each also as a curve over the lengths. The quotient is taken of the means over all prompts. A slip in the official
    script, which divides a deviation by itself, is not copied.

    Args:
        prompts: the data sets, and how both models respond to them. Filters of sampling (top-k, top-p,
            ``no_repeat_ngram_size``) would draw prefixes from other distributions than those that are compared.
            Responses of all seeds count together.

    Source: MiniLLM (arXiv 2306.08543), section 3.3, after Arora et al. (arXiv 2204.01171).
    """

    name = "exposure_bias"
    needs_teacher = True
    measures_of_set: ClassVar = {
        "excess_error": Measure("excess error %, at the end", 1, False),
        "excess_error_mean": Measure("excess error %, mean", 1, False),
        "regret": Measure("accumulated regret", 3, False),
        "epsilon": Measure("error / step on teacher text", 4, False),
    }
    pictures_of_set: ClassVar = {
        "excess_error": Picture("Excess accumulated error", "response tokens", "percent"),
        "regret": Picture("Accumulated regret on the student's own text", "response tokens", "nats"),
        "epsilon": Picture("Error per step on the teacher's text", "response tokens", "nats"),
    }

    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Let both models respond, and compare them on either text; each record lists the nats of every token."""
        seed, name, rows = self.prompts.find(items)
        prompts = self.prompts.data[name].prompt_batch(rows).to(pair.device)
        sampling = self.prompts.sampling
        student = self._errors(pair, write_responses(pair, prompts, sampling, seed, "student"))
        teacher = self._errors(pair, write_responses(pair, prompts, sampling, seed, "teacher"))
        return [
            {"item": item, "data_set": name, "on_student_text": own, "on_teacher_text": oracle}
            for item, own, oracle in zip(items, student, teacher, strict=True)
        ]

    def _errors(self, pair: ModelPair, text: TokenBatch) -> list[list[float]]:
        """Return KL(teacher || student) of each target token, row by row."""
        values = pair_divergences(pair, text, {"kl": forward_kl}, self.prompts.sampling)["kl"]
        return [row.tolist() for row in torch.split(values.cpu().double(), text.target_mask.sum(-1).tolist())]

    def summarise(self, name: str, records: Sequence[Record]) -> Findings:
        """Compute metrics and curves."""
        length = self.prompts.sampling.max_new_tokens
        metric = ExposureBias(length, sync_on_compute=False)
        for record in records:
            metric.update(*_one_row(record["on_student_text"]), *_one_row(record["on_teacher_text"]))
        by_length = metric.compute()
        values = {key: [float(curve[-1])] for key, curve in by_length.items()}
        values["excess_error_mean"] = [float(by_length["excess_error"].mean())]
        lengths = [float(place) for place in range(1, length + 1)]
        return Findings(values, {key: Curve(lengths, by_length[key].tolist()) for key in self.pictures_of_set})


def _one_row(row: Sequence[float]) -> tuple[Tensor, Tensor]:
    errors = torch.tensor([row], dtype=torch.float64)
    return errors, torch.ones_like(errors, dtype=torch.bool)
