"""Collecting the text of one phase.

Legend: B rows of a rank, N rows of a phase over all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import get_args

import torch

from lightning_minillm.checks import check_range
from lightning_minillm.data.batches import ShuffledStream
from lightning_minillm.models.pair import ModelPair
from lightning_minillm.rollout.batching import concatenate_rollouts, select_prompts, select_rollouts
from lightning_minillm.rollout.buffer import RolloutBuffer
from lightning_minillm.rollout.options import RolloutOptions, TeacherReading, check_own_prompts
from lightning_minillm.rollout.sampler import MixtureSampler
from lightning_minillm.rollout.scoring import add_teacher, given_responses, recompute_student
from lightning_minillm.rollout.sources import TextRequest
from lightning_minillm.rollout.writing import Writer, sampler_for
from lightning_minillm.types import PromptBatch, PromptSet, RolloutBatch

ProgressListener = Callable[[int, int], None]


def collect_rollouts(
    sampler: MixtureSampler,
    prompts: PromptBatch,
    *,
    seed: int,
    phase: int,
    batch_size: int,
    listeners: Sequence[ProgressListener] = (),
) -> RolloutBatch:
    """Sample a response to every prompt, ``batch_size`` at a time, prompts of like length together.

    Args:
        sampler: what samples.
        prompts: B left-padded prompts on the sampler's device.
        seed: of the run.
        phase: number of the rollout phase.
        batch_size: rows that advance together, at least 1; changes speed and memory, never the result beyond rounding.
        listeners: called with (rows done, rows to do) after every batch.

    Returns:
        B rollouts in the order of ``prompts``.

    """
    check_range(batch_size >= 1, "the rollout batch size", "at least 1", batch_size)
    order = prompts.attention_mask.sum(-1).argsort(stable=True, descending=True)
    batches, done = [], 0
    for rows in order.split(batch_size):
        batches.append(sampler.sample(select_prompts(prompts, rows), seed=seed, phase=phase))
        done += len(rows)
        for listener in listeners:
            listener(done, len(order))
    joined = concatenate_rollouts(batches, sampler.pad_token_id)
    return select_rollouts(joined, torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order)))


class PhaseShare:
    """Which prompts the phases of a run respond to, and this rank's share of them.

    Args:
        train_set: the prompts, with their references.
        buffer: of this rank; gives the sizes, the seed and the rank.
    """

    def __init__(self, train_set: PromptSet, buffer: RolloutBuffer) -> None:
        self.train_set = train_set
        self.buffer = buffer
        self._order = ShuffledStream.of(train_set, buffer.seed)

    def prompts(self, phase: int) -> PromptBatch:
        """Return this rank's prompts of a phase."""
        rows = self._order.indices(phase * self.buffer.num_rollouts, self.buffer.num_rollouts)
        return self.train_set.prompt_batch(rows[self.buffer.local_rows()])

    def references(self, prompts: PromptBatch) -> RolloutBatch:
        """Return the data set's responses to prompts."""
        tokens = self.train_set.response_batch(prompts.indices.cpu(), normalizer=1.0)
        return given_responses(prompts, tokens.to(prompts.input_ids.device))

    def gather(self, text: RolloutBatch) -> RolloutBatch:
        """Return the N rows of all ranks, of which each gives its B; all ranks take part."""
        parts = self.buffer.placement.gather_over_data((self.buffer.local_rows(), text))
        joined = concatenate_rollouts([part for _, part in parts], pad_token_id=0)
        return select_rollouts(joined, torch.cat([rows for rows, _ in parts]).argsort())


@dataclass(frozen=True)
class TextCollector:
    """Collects the text of a phase from its source, with what the loss and the advantages need of the teacher.

    Attributes:
        pair: student and teacher.
        options: whose text, and how it is sampled.
        reading: when the teacher reads the student's text; see ``TeacherOptions.reading``.
        needs_rewards: whether the text has to carry the teacher's log-probabilities.
        keeps_hidden: whether it has to carry the teacher's last hidden states.
        listeners: called with (rows sampled, rows to sample) after every batch of the sampler.
    """

    pair: ModelPair
    options: RolloutOptions
    reading: TeacherReading = "auto"
    _: KW_ONLY
    needs_rewards: bool
    keeps_hidden: bool
    listeners: Sequence[ProgressListener] = ()

    @property
    def reads_along(self) -> bool:
        """Whether the teacher advances with the student while it writes."""
        is_needed = self.needs_rewards or self.options.sampling.teacher_mix_alpha > 0
        return {"auto": is_needed, "lockstep": True, "after": False}[self.reading]

    def collect(
        self, prompts: PromptBatch, phase: int, share: PhaseShare | None = None, progress: float = 0.0
    ) -> RolloutBatch:
        """Return a response to every prompt.

        Args:
            prompts: B left-padded prompts on the pair's device.
            phase: number of the phase; with the seed and each prompt's row it decides the noise and whose turn it is.
            share: this rank's share of the phase; ``None`` for one rank and a source without references.
            progress: share of the training that is done, in [0, 1].
        """
        options = self.options
        references = _no_references if share is None else share.references
        student, teacher = (partial(self._sample, phase, writer) for writer in get_args(Writer))
        request = TextRequest(prompts, phase, progress, options.seed, references, student, teacher)
        if share is not None:
            rows, total = share.buffer.local_rows(), share.buffer.num_rollouts
            request = replace(request, rows=rows, num_rows=total, gather=share.gather)
        text = options.source.text(request)
        if not options.source.is_on_policy:  # text of an earlier phase comes with what was true then
            text = replace(text, teacher_logprobs=None, reward_logprobs=None, teacher_hidden=None)
        lacks_rewards = self.needs_rewards and text.reward_logprobs is None
        if lacks_rewards or (self.keeps_hidden and text.teacher_hidden is None):
            reader = self.pair.require_teacher()
            text = add_teacher(text, reader, options.sampling, options.batch_size, self.keeps_hidden)
        if options.recompute_logprobs:
            text = recompute_student(text, self.pair.student_split, options.sampling, options.batch_size)
        return text

    def _sample(self, phase: int, writer: Writer, prompts: PromptBatch) -> RolloutBatch:
        options, reads = self.options, self.reads_along
        if prompts.teacher is not None:
            check_own_prompts(options.sampling, self.reading)
            reads = False  # it reads afterwards
        keeps = reads and self.keeps_hidden
        sampler = sampler_for(self.pair, options.sampling, writer=writer, with_teacher=reads, keep_teacher_hidden=keeps)
        seed, size = options.seed, options.batch_size
        read = prompts.of_teacher if writer == "teacher" else prompts
        text = collect_rollouts(sampler, read, seed=seed, phase=phase, batch_size=size, listeners=self.listeners)
        return text if read is prompts else text.for_prompts(prompts)


def _no_references(prompts: PromptBatch) -> RolloutBatch:
    raise ValueError("the text source asks for references, and there is no data set here: pass share=PhaseShare(...)")
