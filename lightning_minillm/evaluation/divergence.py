"""The distance of a student from its teacher, on text of the student, of the teacher, and of the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from lightning_minillm.evaluation.base import Evaluation, Findings, Measure, Record
from lightning_minillm.evaluation.prompt_sets import PromptItems
from lightning_minillm.evaluation.scoring import pair_divergences, row_sums, write_responses
from lightning_minillm.functional.divergences import forward_kl, reverse_kl
from lightning_minillm.models import ModelPair

FUNCTIONS = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}
TEXTS = ("student", "teacher", "reference")


class DivergenceEvaluation(PromptItems, Evaluation):
    """Forward and reverse KL to the teacher, exact over the vocabulary.

    ``forward_kl_on_teacher_text`` is KL(teacher || student) of whole responses, and ``reverse_kl_on_student_text``
    KL(student || teacher), each per token; the others show the same distance on text that neither distribution wrote.
    All values average over the tokens of all responses, eos included. The distributions are those at the sampling
    temperature (1 if it is 0), before top-k, top-p and other filters.

    Args:
        prompts: the data sets, and how both models respond to them. Responses of all seeds count together.
    """

    name = "divergence"
    needs_teacher = True
    measures_of_set: ClassVar = {
        f"{kl}_kl_on_{text}_text": Measure(f"{kl} KL, {text} text", 4, False)
        for text in TEXTS
        for kl in ("forward", "reverse")
    }

    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Let both models respond, and record the sum of nats and the number of tokens of each of three texts."""
        seed, name, rows = self.prompts.find(items)
        sampling = self.prompts.sampling
        batch = self.prompts.data[name].evaluation_batch(rows).to(pair.device)
        texts = {
            "student": write_responses(pair, batch.prompts, sampling, seed, "student"),
            "teacher": write_responses(pair, batch.prompts, sampling, seed, "teacher"),
            "reference": batch.tokens,
        }
        records: list[Record] = [{"item": item, "data_set": name} for item in items]
        for text, tokens in texts.items():
            divergences = pair_divergences(pair, tokens, FUNCTIONS, sampling)
            sums = {kl: row_sums(values, tokens.target_mask) for kl, values in divergences.items()}
            counts = tokens.target_mask.sum(-1).tolist()
            for row, record in enumerate(records):
                record[text] = {**{kl: values[row] for kl, values in sums.items()}, "tokens": counts[row]}
        return records

    def summarise(self, name: str, records: Sequence[Record]) -> Findings:
        """Average over tokens."""
        values = {}
        for text in TEXTS:
            tokens = sum(record[text]["tokens"] for record in records)
            for kl in FUNCTIONS:
                values[f"{kl}_on_{text}_text"] = [sum(record[text][kl] for record in records) / tokens]
        return Findings(values)
