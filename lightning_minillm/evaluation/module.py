"""The Lightning module behind every evaluation: one test step a batch of items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from lightning_minillm.distributed.ranks import data_rank, data_world_size
from lightning_minillm.evaluation.base import Evaluation
from lightning_minillm.evaluation.records import RecordFiles
from lightning_minillm.modules import CausalLMModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lightning_minillm.modules.base import ModelSource
    from lightning_minillm.rollout import SamplingConfig


class Job(NamedTuple):
    """What a rank does in one step."""

    items: tuple[int, ...]
    is_kept: bool
    """``False`` on a rank that only keeps the others company, since sharded models need all in every step."""


class Jobs:
    """One rank's share of the batches: every rank gets as many, in rounds of as many batches as there are ranks.

    Args:
        batches: those that are to be done; the same on every rank.
        rank: this one, in ``[0, world_size)``.
        world_size: number of ranks.
    """

    def __init__(self, batches: Sequence[Sequence[int]], rank: int, world_size: int) -> None:
        self._jobs = []
        for start in range(0, len(batches), world_size):
            place = start + rank
            self._jobs.append(Job(tuple(batches[min(place, len(batches) - 1)]), place < len(batches)))

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)


class EvaluationModule(CausalLMModule):
    """A model that is evaluated: a student, and a teacher to compare it with.

    Args:
        student: as in :class:`~lightning_minillm.modules.CausalLMModule`.
        tokenizer: of both.
        teacher: likewise; ``None`` for none.
        evaluation_sampling: how the student is sampled, where an evaluation does not say so itself.
        about: what decides the records besides the evaluation, such as the models' names; plain JSON.
    """

    def __init__(
        self,
        student: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: ModelSource | None = None,
        evaluation_sampling: SamplingConfig | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(student, tokenizer, teacher=teacher, evaluation_sampling=evaluation_sampling)
        self.about = dict(about or {})
        self.evaluation: Evaluation | None = None
        self._files: RecordFiles | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher, loaded already or not."""
        return self._sources[1] is not None

    def begin(self, evaluation: Evaluation, files: RecordFiles) -> None:
        """Choose what the next test measures, and where its records go."""
        self.evaluation, self._files = evaluation, files

    def identity(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return what decides the records of this model in an evaluation."""
        return {**self.about, "evaluation": dict(evaluation.identity())}

    def test_dataloader(self) -> Jobs:
        """Return this rank's share of the batches that have no records yet.

        The first rank decides, before any rank writes.

        Raises:
            ValueError: there are records of another set-up.
        """
        assert self.evaluation is not None
        todo, error = None, None
        if self.trainer.is_global_zero:
            try:
                todo = self._batches_to_do()
            except ValueError as raised:
                error = str(raised)
        todo, error = self.trainer.strategy.broadcast((todo, error))
        if error is not None:
            raise ValueError(error)
        return Jobs(todo, data_rank(self.trainer), data_world_size(self.trainer))

    def _batches_to_do(self) -> list[list[int]]:
        assert self.evaluation is not None
        assert self._files is not None
        done = self._files.open(self.identity(self.evaluation))
        return [items for items in self.evaluation.batches() if not done.issuperset(items)]

    @torch.no_grad()
    def test_step(self, batch: Job, batch_idx: int) -> None:
        """Measure one batch and write its records."""
        assert self.evaluation is not None
        assert self._files is not None
        records = self.evaluation.step(self, batch.items)
        # ranks that hold pieces of the same matrices have the same rows: the first of them writes
        pieces = self.trainer.world_size // data_world_size(self.trainer)
        if batch.is_kept and self.trainer.global_rank % pieces == 0:
            self._files.append(data_rank(self.trainer), records)

    def on_test_epoch_end(self) -> None:
        """Leave everything to the records."""


class EvaluationProgressBar(RichProgressBar):
    """Lightning's rich progress bar, which names what is measured."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the names of model and evaluation."""
        super().setup(trainer, pl_module, stage)
        evaluation = getattr(pl_module, "evaluation", None)
        model = getattr(pl_module, "about", {}).get("name")
        self._what = " ".join(filter(None, [model, evaluation.name if evaluation is not None else None]))

    @property
    def test_description(self) -> str:
        """Model and evaluation, before the bar."""
        return self._what or "Evaluating"
