"""The Lightning module that runs evaluations: one test step per batch of items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm._reach import trainer_of
from lightning_minillm.distributed.placement import placement_of
from lightning_minillm.evaluation.base import Evaluation
from lightning_minillm.evaluation.records import RecordFiles
from lightning_minillm.models import ModelFactory, ModelPair


class Job(NamedTuple):
    """The work of a rank in one step."""

    items: tuple[int, ...]
    is_kept: bool
    """``False`` for a filler job: sharded models need every rank in every step."""


class Jobs:
    """One rank's share of the batches; every rank gets the same number, some of them fillers.

    Args:
        batches: those without records; the same on every rank.
        rank: of this process, in ``[0, world_size)``.
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


class EvaluationModule(LightningModule):
    """A model that is evaluated: a student, and a teacher to compare it with.

    Args:
        student: a transformers causal LM, or a function that loads one (called once, in ``configure_model``).
        tokenizer: of student and teacher.
        teacher: a model, or a function that loads one; ``None`` for none.
        about: everything besides the evaluation that determines the records, such as digests of the models; plain
            JSON. Its ``"name"``, if there is one, is shown beside the progress bar.
    """

    def __init__(
        self,
        student: ModelFactory,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: ModelFactory | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.about = dict(about or {})
        self.evaluation: Evaluation | None = None
        self.student: PreTrainedModel | None = None
        """The student as a submodule; ``None`` until ``configure_model``."""
        self._factories = (student, teacher)  # in a tuple, so that a teacher given as a model is not a submodule
        self._pair: ModelPair | None = None
        self._files: RecordFiles | None = None

    @property
    def pair(self) -> ModelPair:
        """Student and teacher; loaded on first use."""
        if self._pair is None:
            self.configure_model()
        assert self._pair is not None
        return self._pair

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher, loaded already or not."""
        return self._factories[1] is not None

    def loaded_models(self) -> list[nn.Module]:
        """Return the student and the teacher; empty until ``configure_model``."""
        return [] if self._pair is None else self._pair.models

    def configure_model(self) -> None:
        """Load the models, once, and place them as the trainer's strategy does, in every run."""
        placement = placement_of(trainer_of(self))
        if self._pair is None:
            student, teacher = self._factories
            self._pair = ModelPair(student, self.tokenizer, teacher, placement=placement)
            self.student = self._pair.student
        else:
            self._pair.place(placement)

    def on_test_start(self) -> None:
        """Move the teacher, which Lightning does not know, to this rank's device."""
        self.pair.place_teacher(self.device)

    def begin(self, evaluation: Evaluation, files: RecordFiles) -> None:
        """Choose the measurement of the next test, and the files of its records."""
        self.evaluation, self._files = evaluation, files

    def identity(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return the settings that determine the records of this model in an evaluation."""
        found = {**self.about, **{f"evaluation.{key}": value for key, value in evaluation.identity().items()}}
        return found if evaluation.add_bos == "auto" else {**found, "add_bos": evaluation.add_bos}

    def test_dataloader(self) -> Jobs:
        """Return this rank's share of the batches without records.

        The first rank finds these batches, before any rank writes.

        Raises:
            ValueError: existing records were made with different settings.
        """
        assert self.evaluation is not None
        assert self._files is not None
        todo, error = None, None
        if self.trainer.is_global_zero:
            try:
                done = self._files.open(self.identity(self.evaluation))
                todo = [items for items in self.evaluation.batches() if not done.issuperset(items)]
            except ValueError as raised:
                error = str(raised)
        todo, error = self.trainer.strategy.broadcast((todo, error))
        if error is not None:
            raise ValueError(error)
        assert todo is not None
        return Jobs(todo, placement_of(self.trainer).data_rank, placement_of(self.trainer).data_world_size)

    @torch.no_grad()
    def test_step(self, batch: Job, batch_idx: int) -> None:
        """Measure one batch and write its records."""
        assert self.evaluation is not None
        assert self._files is not None
        records = self.evaluation.step(self.pair, batch.items)
        # ranks that hold pieces of the same matrices have the same rows: the first of them writes
        pieces = self.trainer.world_size // placement_of(self.trainer).data_world_size
        if batch.is_kept and self.trainer.global_rank % pieces == 0:
            self._files.append(placement_of(self.trainer).data_rank, records)


def label_of(module: LightningModule) -> str:
    """Return the names of a module's model and evaluation, for displays of progress."""
    names: list[str | None] = []
    if isinstance(module, EvaluationModule):
        names = [module.about.get("name"), module.evaluation.name if module.evaluation else None]
    return " ".join(filter(None, names)) or "Evaluating"


class EvaluationProgressBar(RichProgressBar):
    """Lightning's rich progress bar, labelled with the model and the evaluation."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the names of model and evaluation."""
        super().setup(trainer, pl_module, stage)
        self._label = label_of(pl_module)

    @property
    def test_description(self) -> str:
        """Text before the bar."""
        return self._label
