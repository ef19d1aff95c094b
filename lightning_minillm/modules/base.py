"""What every module shares: the pair of models, the optimiser, validation by sampling, checkpoints and export."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning import LightningModule
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm.distributed.placement import ModelPlacement, placement_of
from lightning_minillm.evaluation.responses import ResponseRecord
from lightning_minillm.models import ModelFactory, ModelPair, disable_dropout
from lightning_minillm.modules.options import TrainingOptions, ValidationOptions
from lightning_minillm.types import TrainingData


class CausalLMModule(LightningModule):
    """A student that can be validated and exported and, in subclasses, trained.

    Args:
        student: a transformers causal LM, or a function that loads one (called once, in ``configure_model``).
        tokenizer: of student and teacher.
        teacher: a model or a function, as for ``student``; frozen, and kept out of the optimiser and of checkpoints.
            ``None`` for none.
        training: how the student is trained.
        validation: how the student is sampled in validation and test.
    """

    uses_dropout = True
    """Whether the student's dropout is kept in training where ``training.dropout`` does not say so."""

    def __init__(
        self,
        student: ModelFactory,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: ModelFactory | None = None,
        training: TrainingOptions | None = None,
        validation: ValidationOptions | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.training_options = training or TrainingOptions()
        self.validation_options = validation or ValidationOptions()
        self.student: PreTrainedModel | None = None
        """The student as a submodule; ``None`` until ``configure_model``."""
        # in a tuple: a model that was given as such must not become a submodule
        self._factories = (student, teacher)
        self._pair: ModelPair | None = None
        self.samples: list[ResponseRecord] = []
        """Records of the last validation or test on this rank, one per row; see ``evaluation.responses``."""
        self.shows_teacher = False
        """Whether the samples of the first batch also hold the teacher's response; a callback asks for it."""
        self._teacher_responses: dict[tuple[str, ...], list[str]] = {}

    # --- models -----------------------------------------------------------------------------------------------------

    @property
    def placement(self) -> ModelPlacement:
        """How the trainer's strategy places models."""
        return placement_of(self._trainer)

    @property
    def pair(self) -> ModelPair:
        """Student and teacher; loaded on first use."""
        self.configure_model()
        assert self._pair is not None
        return self._pair

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The frozen teacher, which is no submodule; ``None`` without one, and until ``configure_model``."""
        return None if self._pair is None else self._pair.teacher

    @property
    def teacher_offload(self) -> bool:
        """Whether the teacher is kept in CPU memory while it is not needed."""
        return False

    def loaded_models(self) -> list[nn.Module]:
        """Return the student and the teacher; empty until ``configure_model``."""
        return [] if self._pair is None else self._pair.models

    def configure_model(self) -> None:
        """Load the models, once, and place them as the trainer's strategy does."""
        if self._pair is not None:
            return
        options = self.training_options
        self._pair = ModelPair(
            self._factories[0],
            self.tokenizer,
            self._factories[1],
            placement=self.placement,
            gradient_checkpointing=options.gradient_checkpointing,
            activation_offload=options.activation_offload,
            compile_backend=options.compile_backend,
            teacher_offload=self.teacher_offload,
        )
        self.student = self._pair.student
        if not (self.uses_dropout if options.dropout is None else options.dropout):
            disable_dropout(self.student)

    def on_fit_start(self) -> None:
        """Move the teacher, which Lightning does not know, to this rank's device, and put the student in train mode.

        Models come in eval mode, and Lightning leaves modes as they are: without this, dropout would be off.
        """
        self.pair.place_teacher(self.device)
        self.pair.student.train()

    def on_validation_start(self) -> None:
        """Move the teacher to this rank's device."""
        self.pair.place_teacher(self.device)

    def on_test_start(self) -> None:
        """Move the teacher to this rank's device."""
        self.pair.place_teacher(self.device)

    # --- training ---------------------------------------------------------------------------------------------------

    def build_train_loader(self, data: TrainingData) -> Iterable[Any]:
        """Return what the module trains on, from what the data module has: its pairs.

        Args:
            data: calls this when the trainer asks it for a train loader.
        """
        return data.pair_loader()

    def on_train_start(self) -> None:
        """Check that an optimiser step of the trainer is the batch that the loader's normalisers are computed for.

        Raises:
            ValueError: ``accumulate_grad_batches`` is not the number of micro-batches per batch.
        """
        loader = self.trainer.train_dataloader
        if isinstance(loader, AccumulatingLoader) and loader.accumulation != self.trainer.accumulate_grad_batches:
            raise ValueError(
                f"a batch comes in {loader.accumulation} micro-batches and the trainer steps after"
                f" {self.trainer.accumulate_grad_batches}: set Trainer(accumulate_grad_batches={loader.accumulation})"
            )
