"""What every module shares: the pair of models, the optimiser, validation by sampling, checkpoints and export."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from lightning import LightningModule
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm._reach import trainer_of
from lightning_minillm.checkpoints.micro_batches import ACCUMULATION_KEY, rescale_progress
from lightning_minillm.checkpoints.weights import ENDS_KEY, completed, leave_out_frozen
from lightning_minillm.distributed.placement import ModelPlacement, placement_of
from lightning_minillm.evaluation.base import Record
from lightning_minillm.evaluation.responses import measure_responses, summarise_responses, warn_of_unseen
from lightning_minillm.losses import TokenLoss
from lightning_minillm.models import ModelFactory, ModelPair, disable_dropout
from lightning_minillm.models.export import save_pretrained
from lightning_minillm.modules.options import TrainingOptions, ValidationOptions
from lightning_minillm.modules.precision import warn_of_lost_updates
from lightning_minillm.rollout import SamplingConfig, check_lengths, decode_responses, sampler_for
from lightning_minillm.tokens import name_ends
from lightning_minillm.types import DeviceMovable, EvaluationBatch, LossOutput, MeasuredData, TokenBatch, TrainingData

MEASURED = ("loss", "rougeL", "exact_match", "response_length", "reverse_kl")


@runtime_checkable
class AccumulatingLoader(Protocol):
    """A train loader that knows how many of its micro-batches make an optimiser step."""

    accumulation: int


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
    teacher_offload = False
    """Whether the teacher is kept in CPU memory while it is not needed."""

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
        self._factories = (student, teacher)  # in a tuple: a model given as such must not become a submodule
        self._pair: ModelPair | None = None
        self.samples: list[Record] = []
        """Records of the last validation or test on this rank, one per row; see ``evaluation.responses``."""
        self.shows_teacher = False
        """Whether the samples of the first batch also hold the teacher's response; a callback asks for it."""
        self._teacher_responses: dict[tuple[str, ...], list[str]] = {}
        self._checked_references: set[str] = set()

    # --- models -----------------------------------------------------------------------------------------------------

    @property
    def placement(self) -> ModelPlacement:
        """How the trainer's strategy places models."""
        return placement_of(trainer_of(self))

    @property
    def pair(self) -> ModelPair:
        """Student and teacher; loaded on first use."""
        if self._pair is None:
            self.configure_model()
        assert self._pair is not None
        return self._pair

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The frozen teacher, which is no submodule; ``None`` without one, and until ``configure_model``."""
        return None if self._pair is None else self._pair.teacher

    def loaded_models(self) -> list[nn.Module]:
        """Return the student and the teacher; empty until ``configure_model``."""
        return [] if self._pair is None else self._pair.models

    def configure_model(self) -> None:
        """Load the models, once, and place them as the trainer's strategy does, in every run."""
        if self._pair is not None:
            self._pair.place(self.placement)
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
        self.on_validation_start()
        self.pair.student.train()

    def on_validation_start(self) -> None:
        """Check the lengths and the ids of the data, and move the teacher to this rank's device."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        if isinstance(data, MeasuredData):
            check_lengths(self.pair, data.longest_rows(), self.samplings())
            self.pair.student_split.check_rows(data.rows_with)
        self.pair.place_teacher(self.device)

    on_test_start = on_validation_start

    def samplings(self) -> dict[str, SamplingConfig]:
        """Return how responses to prompts are sampled, by the splits for which they are."""
        return dict.fromkeys(("validation", "test"), self.validation_options.sampling)

    # --- training ---------------------------------------------------------------------------------------------------

    def build_train_loader(self, data: TrainingData) -> Iterable[DeviceMovable]:
        """Return what the module trains on, from what the data module has: its pairs."""
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

    def configure_optimizers(self) -> Any:
        """Make the optimiser and its schedule.

        Raises:
            ValueError: there is no optimizer in the training options.
        """
        options = self.training_options
        if options.optimizer is None:
            raise ValueError(
                f"{type(self).__name__} has no optimizer to train with: pass training=TrainingOptions(optimizer=...)"
            )
        optimizer = options.optimizer(p for p in self.pair.student.parameters() if p.requires_grad)
        if self.placement.data_rank == 0:
            warn_of_lost_updates(optimizer)
        if options.scheduler is None:
            return optimizer
        takes_steps = "num_training_steps" in inspect.signature(options.scheduler).parameters
        steps = {"num_training_steps": int(self.trainer.estimated_stepping_batches)} if takes_steps else {}
        scheduler = options.scheduler(optimizer, **steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer is told to; by the norm over all processes where gradients are sharded."""
        largest, by_norm = float(gradient_clip_val or 0), gradient_clip_algorithm in (None, "norm")
        if largest > 0 and by_norm and self.placement.shards_models:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            self.placement.clip_gradients(parameters, largest)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def apply_loss(self, loss: TokenLoss, batch: TokenBatch) -> LossOutput:
        """Return a loss that needs no inputs of its own on a batch of sequences."""
        states, target_ids = self.pair.token_states(batch)
        teacher = self.pair.teacher_token_states(batch) if loss.reads_teacher else None
        output: LossOutput = loss(states, target_ids, teacher, normalizer=batch.normalizer)
        return output

    def finish_step(self, output: LossOutput, indices: Tensor) -> Tensor:
        """Check and log the loss of one micro-batch, and return it.

        Args:
            output: the loss, logged as ``train/loss``, and its parts, logged as ``train/...``, averaged over ranks.
            indices: ``[B]``, the batch's rows in the training data.

        Raises:
            FloatingPointError: the loss is not finite; the message names the rows.
        """
        if not math.isfinite(output.loss.item()):
            raise FloatingPointError(
                f"the loss is {output.loss.item()} at step {self.global_step}, on the rows {indices.tolist()} of the"
                " training data. The last checkpoint is from before; try a smaller learning rate, gradient clipping or"
                " float32"
            )
        self.log("train/loss", output.loss.detach(), prog_bar=True, batch_size=len(indices), sync_dist=True)
        parts = {f"train/{name}": part for name, part in output.parts.items()}
        self.log_dict(parts, batch_size=len(indices), sync_dist=True)
        return output.loss

    # --- validation and test ----------------------------------------------------------------------------------------

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Measure one batch; see :meth:`measure`."""
        self.measure(batch, with_teacher=self.shows_teacher and batch_idx == 0)

    test_step = validation_step

    @torch.no_grad()
    def measure(self, batch: EvaluationBatch, with_teacher: bool = False) -> None:
        """Sample a response to every prompt and append a record of each row to :attr:`samples`.

        Args:
            batch: B rows; the measurements are those of ``evaluation.responses.measure_responses``.
            with_teacher: also keep the teacher's responses, which are sampled once.
        """
        options = self.validation_options
        records = measure_responses(self.pair, batch, options.sampling, options.seed, words=options.words)
        if with_teacher and self.teacher is not None:
            for record, text in zip(records, self._responses_of_teacher(batch), strict=True):
                record["teacher"] = text
        self.samples += records

    def _responses_of_teacher(self, batch: EvaluationBatch) -> list[str]:
        """Return the teacher's responses, under the same noise as the student's; kept until other prompts come."""
        if batch.prompt_texts not in self._teacher_responses:
            options = self.validation_options
            sampler = sampler_for(self.pair, options.sampling, writer="teacher")
            rollouts = sampler.sample(batch.prompts.of_teacher, seed=options.seed)
            self._teacher_responses = {batch.prompt_texts: decode_responses(self.tokenizer, rollouts)}
        return self._teacher_responses[batch.prompt_texts]

    def on_validation_epoch_start(self) -> None:
        """Start a new validation or test."""
        self.samples = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log ``val/...``."""
        self._log_measurements("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/...``."""
        self._log_measurements("test")

    def _log_measurements(self, stage: str) -> dict[str, float]:
        """Log and return what was measured on all ranks; a metric that no row has is left out."""
        records = [record for rank in self.placement.gather_over_data(self.samples) for record in rank]
        if not records:
            return {}
        words = self.validation_options.words
        if stage not in self._checked_references:
            self._checked_references.add(stage)
            warn_of_unseen(stage, [record["references"] for record in records], words)
        summary = summarise_responses(records, words)
        if not any(record["exact"] for record in records):
            del summary["exact_match"]
        values = {name: summary[name] for name in MEASURED if name in summary}
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in ("rougeL", "loss"), sync_dist=True)
        return values

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the micro-batches of an optimiser step, which differ with the number of devices, and ends of responses.

        Weights that are not trained are left out, unless they are sharded.
        """
        checkpoint[ACCUMULATION_KEY] = self.trainer.accumulate_grad_batches
        checkpoint[ENDS_KEY] = list(self.pair.end_ids(self.validation_options.sampling.eos_token_ids))
        if not self.placement.shards_models:
            leave_out_frozen(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of a different architecture before anything is overwritten.

        Raises:
            ValueError: names or shapes of the weights differ, or adapters were trained on other weights.
        """
        if trainer_of(self) is not None:
            rescale_progress(checkpoint, self.trainer.accumulate_grad_batches)
        if "state_dict" in checkpoint:  # a sharding strategy has checked and loaded the weights by itself
            checkpoint["state_dict"] = completed(self, checkpoint["state_dict"], checkpoint)

    def export(self, folder: str, dtype: str | None = None) -> None:
        """Write the student and the tokenizer as :func:`~lightning_minillm.models.export.save_pretrained` does."""
        name_ends(self.pair.student, self.pair.end_ids(self.validation_options.sampling.eos_token_ids))
        save_pretrained(self.pair.student, folder, self.tokenizer, dtype=dtype)
