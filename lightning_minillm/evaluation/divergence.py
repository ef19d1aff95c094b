"""How far a student is from its teacher, on text of the student, of the teacher, and of the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_minillm.evaluation.base import Findings, Measure, Record
from lightning_minillm.evaluation.items import metric_name
from lightning_minillm.evaluation.teacher_comparison import TeacherComparison
from lightning_minillm.functional.divergences import forward_kl, reverse_kl

if TYPE_CHECKING:
    from lightning_minillm.models import ModelPair

FUNCTIONS = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}
TEXTS = ("student", "teacher", "reference")
MEASURES = {
    f"{kl}_kl_on_{text}_text": Measure(f"{kl} KL, {text} text", 4, False)
    for text in TEXTS
    for kl in ("forward", "reverse")
}


class DivergenceEvaluation(TeacherComparison):
    """Forward and reverse KL to the teacher, exact over the vocabulary.

    ``forward_kl_on_teacher_text`` is KL(teacher || student) of whole responses, and ``reverse_kl_on_student_text``
    KL(student || teacher), each a token; the others show the same distance where the text is somebody else's. All
    average over the tokens of all responses, ends included.

    The arguments are those of :class:`~lightning_minillm.evaluation.teacher_comparison.TeacherComparison`.
    """

    name = "divergence"
    measures_of_a_set = MEASURES

    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Let both models respond, and compare them on three texts: nats summed over its tokens, and their number."""
        _, name, rows = self.find(items)
        batch = self.data[name].evaluation_batch(rows).to(pair.device)
        texts = (
            self.student_text(pair, batch.prompts),
            self.teacher_text(pair, batch.prompts),
            batch.tokens,
        )
        records: list[Record] = [{"item": item, "data_set": name} for item in items]
        for text, tokens in zip(TEXTS, texts, strict=True):
            found = self.divergences(pair, tokens, FUNCTIONS)
            for row, record in enumerate(records):
                sums = {kl: sum(values[row]) for kl, values in found.items()}
                record[text] = {**sums, "tokens": len(found["forward_kl"][row])}
        return records

    def findings(self, records: Sequence[Record]) -> Findings:
        """Average over the tokens of each data set."""
        values = {}
        for name in self.sources:
            own = [record for record in records if record["data_set"] == name]
            for text in TEXTS:
                tokens = sum(record[text]["tokens"] for record in own)
                for kl in FUNCTIONS:
                    key = metric_name(f"{kl}_on_{text}_text", name, self.sources)
                    values[key] = [sum(record[text][kl] for record in own) / tokens]
        return Findings(values)
