"""What evaluations share that compare a student with its teacher, token by token.

Legend: B rows, N target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_minillm.evaluation.prompted import PromptedEvaluation
from lightning_minillm.functional.logprobs import TokenStates, chunk_bounds
from lightning_minillm.losses.chunking import tokens_per_chunk
from lightning_minillm.rollout import sampler_for
from lightning_minillm.rollout.scoring import rollout_sequences

if TYPE_CHECKING:
    from lightning_minillm.data import PromptTemplate, RecordSource
    from lightning_minillm.models import ModelPair
    from lightning_minillm.rollout import SamplingConfig
    from lightning_minillm.types import PromptBatch, TokenBatch

LogitDivergence = Callable[[Tensor, Tensor], Tensor]
"""Maps student and teacher logits ``[n, V]`` to ``[n]``."""


class TeacherComparison(PromptedEvaluation):
    """Reads prompts, and lets student and teacher respond to each.

    Both are sampled with the same random numbers, so that a student that equals its teacher says the same, and chance
    blurs their difference less.

    Divergences are of the distributions at the sampling's temperature (1 where it is 0), before any of its filters.

    Args:
        sources: see :class:`~lightning_minillm.evaluation.prompted.PromptedEvaluation`.
        template: likewise.
        sampling: likewise, of either model.
        seed: of sampling.
        options: of :class:`~lightning_minillm.evaluation.prompted.PromptedEvaluation`, ``seeds`` aside.

    Raises:
        ValueError: no data set, or sampling that mixes in a teacher.
    """

    needs_teacher = True

    def __init__(
        self,
        sources: Mapping[str, RecordSource],
        template: PromptTemplate,
        sampling: SamplingConfig,
        *,
        seed: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(sources, template, sampling, seeds=[seed], **options)

    def student_text(self, pair: ModelPair, prompts: PromptBatch) -> TokenBatch:
        """Return the prompts with responses that the student wrote, which are the targets."""
        return rollout_sequences(sampler_for(pair, self.sampling).sample(prompts, seed=self.seeds[0]))

    def teacher_text(self, pair: ModelPair, prompts: PromptBatch) -> TokenBatch:
        """Return the prompts with responses that the teacher wrote, which are the targets."""
        sampler = sampler_for(pair, self.sampling, writer="teacher")
        return rollout_sequences(sampler.sample(prompts, seed=self.seeds[0]))

    def divergences(
        self, pair: ModelPair, batch: TokenBatch, functions: Mapping[str, LogitDivergence]
    ) -> dict[str, list[list[float]]]:
        """Compare the models on given text.

        Args:
            pair: student and teacher.
            batch: B rows, whose targets are compared.
            functions: by name.

        Returns:
            By name, B lists with a value a target token.
        """
        student, _ = pair.token_states(batch)
        values = token_divergences(
            student, pair.teacher_token_states(batch), functions, self.sampling.temperature or 1.0
        )
        counts = batch.target_mask.sum(-1).tolist()
        return {
            name: [row.tolist() for row in of_tokens.double().cpu().split(counts)] for name, of_tokens in values.items()
        }


def token_divergences(
    student: TokenStates, teacher: TokenStates, functions: Mapping[str, LogitDivergence], temperature: float = 1.0
) -> dict[str, Tensor]:
    """Return divergences of every token, exact over the ids that both models have, a chunk of tokens at a time.

    Args:
        student: N states.
        teacher: states of the same tokens.
        functions: by name.
        temperature: divides the logits of both; positive.

    Returns:
        By name, ``[N]`` float32.
    """
    pieces: dict[str, list[Tensor]] = {name: [] for name in functions}
    with torch.no_grad():
        for start, stop in chunk_bounds(len(student), tokens_per_chunk("auto", student)):
            logits = [states.logits(start, stop, temperature) for states in (student, teacher)]
            shared = min(value.shape[-1] for value in logits)
            for name, function in functions.items():
                pieces[name].append(function(*(value[:, :shared] for value in logits)))
    return {name: torch.cat(values) for name, values in pieces.items()}
