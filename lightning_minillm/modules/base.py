"""What every module shares: student, frozen teacher, optimiser, and evaluation by generating.

Legend: B rows, N valid target tokens.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm.checkpoints.micro_batches import ACCUMULATION_KEY, rescale_progress
from lightning_minillm.checkpoints.weights import check_architecture
from lightning_minillm.distributed.sharding import is_sharded
from lightning_minillm.functional.logprobs import TokenStates
from lightning_minillm.losses import LanguageModelingLoss, ReverseKL, TokenLoss
from lightning_minillm.models import SplitCausalLM, freeze, fuse_activations, is_quantized, shared_vocabulary
from lightning_minillm.models.export import save_pretrained
from lightning_minillm.modules.evaluation import EvaluationMetrics
from lightning_minillm.rollout import MixtureSampler, SamplingConfig
from lightning_minillm.rollout.scoring import rollout_sequences
from lightning_minillm.types import EvaluationBatch, LossOutput, RolloutBatch, TokenBatch

_Result = TypeVar("_Result")
ModelSource = PreTrainedModel | Callable[[], PreTrainedModel]
OptimizerFactory = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[..., torch.optim.lr_scheduler.LRScheduler]


class CausalLMModule(LightningModule):
    """A student that can be evaluated, exported and, in subclasses, trained.

    Args:
        student: a transformers causal LM, or a callable that makes one (called once, in ``configure_model``).
        tokenizer: of student and teacher.
        teacher: likewise; frozen and kept out of the optimiser and of checkpoints. ``None`` for none.
        optimizer: called with the student's trainable parameters.
        scheduler: called with the optimiser, and with ``num_training_steps`` if it takes that; stepped once an
            optimiser step. ``None`` for a constant rate.
        evaluation_sampling: how validation and test sample the student (``teacher_mix_alpha`` must be 0).
        evaluation_seed: of that sampling.
        gradient_checkpointing: compute the student's layers again in the backward pass instead of keeping what they
            computed: less memory, about a third more time.
        activation_offload: keep what the student's layers computed for the backward pass in the CPU's memory.
        compile_backend: backend of ``torch.compile`` for the student's passes in training, e.g. ``"inductor"``;
            ``None`` to run them as they are.

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(
        self,
        student: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: ModelSource | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        evaluation_sampling: SamplingConfig | None = None,
        evaluation_seed: int = 10,
        gradient_checkpointing: bool = False,
        activation_offload: bool = False,
        compile_backend: str | None = None,
    ) -> None:
        super().__init__()
        self.evaluation_sampling = evaluation_sampling or SamplingConfig(teacher_mix_alpha=0.0)
        if self.evaluation_sampling.teacher_mix_alpha != 0:
            raise ValueError("evaluation samples the student alone: set evaluation_sampling.teacher_mix_alpha=0")
        self.tokenizer = tokenizer
        self.evaluation_seed = evaluation_seed
        self.gradient_checkpointing = gradient_checkpointing
        self.activation_offload = activation_offload
        self.compile_backend = compile_backend
        self.teacher_offload = False  # only where the teacher rests between phases
        self.student: PreTrainedModel | None = None
        # in a tuple: models that were given as such are no submodules, or checkpoints would hold the teacher
        self._sources = (student, teacher)
        self._teacher: tuple[PreTrainedModel, ...] = ()
        self._splits: dict[str, SplitCausalLM] = {}
        self._optimizer_factory = optimizer
        self._scheduler_factory = scheduler
        self.evaluation_metrics = EvaluationMetrics()
        self.samples: list[dict[str, Any]] = []
        """Prompt, references, response and task of every row of the last evaluation on this rank."""
        self.shows_teacher = False
        """Whether samples of an evaluation's first batch hold the teacher's response, too; a callback asks for it."""
        self._teacher_texts: dict[tuple[str, ...], tuple[str, ...]] = {}

    # --- models -----------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Make the models, once."""
        if self.student is not None:
            return
        student, teacher = self._sources
        self.student = _make(student)
        if self.gradient_checkpointing:
            _checkpoint_layers(self.student)
        if teacher is not None:
            self._teacher = (freeze(_make(teacher)),)
            self._warn_about_vocabulary()
        if self.compile_backend is not None:
            self.student_split.compile(self.compile_backend)
        self._shard_models()

    def _shard_models(self) -> None:
        """Spread the models over the ranks, where the trainer's strategy does that."""
        shard = self._strategy_method("shard_model")
        if shard is None or self.student is None:
            return
        splits = (self.student_split, self.teacher_split)  # head and body are told apart first
        shard(splits[0].model)
        if splits[1] is not None and not is_quantized(splits[1].model):  # a quantised teacher is whole everywhere
            shard(splits[1].model, **({"cpu_offload": True} if self.teacher_offload else {}))

    def run_sampling(self, function: Callable[[], _Result]) -> _Result:
        """Call a function that samples from the models, the way the trainer's strategy wants it."""
        run = self._strategy_method("run_sampling")
        return function() if run is None else run(function)  # type: ignore[no-any-return]

    def _strategy_method(self, name: str) -> Callable[..., Any] | None:
        """A method that only a strategy that shards models has."""
        return getattr(self._trainer.strategy, name, None) if self._trainer is not None else None

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The frozen teacher; no submodule."""
        return self._teacher[0] if self._teacher else None

    @property
    def student_split(self) -> SplitCausalLM:
        """The student as body and head."""
        if self.student is None:
            self.configure_model()
        assert self.student is not None
        return self._split("student", self.student)

    @property
    def teacher_split(self) -> SplitCausalLM | None:
        """The teacher as body and head, or ``None``."""
        return self._split("teacher", self._teacher[0]) if self._teacher else None

    def _split(self, name: str, model: PreTrainedModel) -> SplitCausalLM:
        if name not in self._splits:
            self._splits[name] = SplitCausalLM(model, vocabulary=self._vocabulary)
        return self._splits[name]

    @property
    def _vocabulary(self) -> int | None:
        """Leading ids that student and teacher share; ``None`` without a teacher.

        Both are cut to them everywhere: when sampling, in losses and when measuring, so that the numbers fit together.
        """
        return shared_vocabulary(self.student, self._teacher[0]) if self.student is not None and self._teacher else None

    def _warn_about_vocabulary(self) -> None:
        assert self.student is not None
        rows = [model.get_output_embeddings().weight.shape[0] for model in (self.student, self._teacher[0])]
        if rows[0] != rows[1]:
            rank_zero_warn(
                f"the student has logits for {rows[0]} ids and the teacher for {rows[1]}; they are compared on the"
                f" {shared_vocabulary(self.student, self._teacher[0])} that both have (the rest pads the embedding)"
            )

    def _place_teacher(self, device: torch.device | None = None) -> None:
        """Move the teacher, unless its strategy or its quantisation has put it where it belongs."""
        if self._teacher and not is_sharded(self._teacher[0]) and not is_quantized(self._teacher[0]):
            self._teacher[0].to(device or self.device)

    def on_fit_start(self) -> None:
        """Move the teacher, which Lightning does not know of, to this rank's device; the student starts to train.

        Models come in eval mode, and Lightning leaves modes as they are: without this, dropout would be off.
        """
        self._place_teacher()
        if self.student is not None:
            self.student.train()

    def on_train_start(self) -> None:
        """Make sure that an optimiser step is the batch that the loader's normalisers are made for.

        Raises:
            ValueError: ``accumulate_grad_batches`` is another number than the micro-batches of a batch.
        """
        accumulation = getattr(self.trainer.train_dataloader, "accumulation", None)
        if accumulation not in (None, self.trainer.accumulate_grad_batches):
            raise ValueError(
                f"a batch comes in {accumulation} micro-batches and the trainer steps after"
                f" {self.trainer.accumulate_grad_batches}: set Trainer(accumulate_grad_batches={accumulation})"
            )

    def on_validation_start(self) -> None:
        """Move the teacher to this rank's device."""
        self._place_teacher()

    def on_test_start(self) -> None:
        """Likewise."""
        self._place_teacher()

    # --- optimisation -----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Make optimiser and schedule from their factories."""
        if self._optimizer_factory is None:
            raise ValueError(f"{type(self).__name__} has no optimizer to train with: pass optimizer=...")
        assert self.student is not None
        optimizer = self._optimizer_factory(p for p in self.student.parameters() if p.requires_grad)
        if self._scheduler_factory is None:
            return optimizer
        function = getattr(self._scheduler_factory, "func", self._scheduler_factory)
        kwargs = {}
        if "num_training_steps" in inspect.signature(function).parameters:
            kwargs["num_training_steps"] = int(self.trainer.estimated_stepping_batches)
        scheduler = self._scheduler_factory(optimizer, **kwargs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer is told to; by the norm over all ranks where gradients are sharded."""
        clip = self._strategy_method("clip_by_norm")
        if clip is None or not gradient_clip_val or (gradient_clip_algorithm or "norm") != "norm":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip([parameter for group in optimizer.param_groups for parameter in group["params"]], gradient_clip_val)

    def token_states(self, batch: TokenBatch) -> tuple[TokenStates, Tensor]:
        """Return the student's states of the target tokens, and their ids ``[N]``."""
        offload = save_on_cpu(pin_memory=batch.input_ids.is_cuda) if self.activation_offload else nullcontext()
        with offload:
            return self.student_split.token_states(batch.input_ids, batch.attention_mask, batch.target_mask)

    def teacher_token_states(self, batch: TokenBatch) -> TokenStates:
        """Return the teacher's states of the target tokens, without graph."""
        if self.teacher_split is None:
            raise ValueError(f"{type(self).__name__} needs a teacher: pass teacher=...")
        with torch.no_grad():
            states, _ = self.teacher_split.token_states(batch.input_ids, batch.attention_mask, batch.target_mask)
        return states

    def apply_loss(self, loss: TokenLoss, batch: TokenBatch) -> LossOutput:
        """Apply a loss that needs no inputs of its own to a batch of sequences."""
        states, target_ids = self.token_states(batch)
        teacher = self.teacher_token_states(batch) if loss.reads_teacher else None
        return loss(states, target_ids, teacher, normalizer=batch.normalizer)  # type: ignore[no-any-return]

    def log_training(self, output: LossOutput, batch_size: int) -> None:
        """Log ``train/loss`` and the parts of one micro-batch, averaged over ranks."""
        values = {"train/loss": output.loss.detach(), **{f"train/{name}": part for name, part in output.parts.items()}}
        self.log("train/loss", values.pop("train/loss"), prog_bar=True, batch_size=batch_size, sync_dist=True)
        self.log_dict(values, batch_size=batch_size, sync_dist=True)

    def check_finite(self, loss: Tensor, indices: Tensor) -> None:
        """Stop the run at a loss that is not finite.

        Raises:
            FloatingPointError: with the rows of the batch; the last checkpoint stays as it is.
        """
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.global_step}, on the rows {indices.tolist()} of the training"
                " data. The last checkpoint is from before; try a smaller learning rate, gradient clipping or float32"
            )

    # --- evaluation -------------------------------------------------------------------------------------------------

    def sampler(self, config: SamplingConfig, **kwargs: Any) -> MixtureSampler:
        """Return a sampler of the student, mixed with the teacher if ``config`` says so."""
        teacher = self.teacher_split if config.teacher_mix_alpha > 0 or kwargs.get("keep_teacher_hidden") else None
        assert self.tokenizer.eos_token_id is not None
        assert self.tokenizer.pad_token_id is not None
        return MixtureSampler(
            kwargs.pop("student", self.student_split),
            kwargs.pop("teacher", teacher),
            eos_token_ids=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            config=config,
            finish_together=self._strategy_method("finish_together"),
            **kwargs,
        )

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Measure one batch; see :meth:`evaluate_batch`."""
        self.evaluate_batch(batch, with_teacher=self.shows_teacher and batch_idx == 0)

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Measure one batch; see :meth:`evaluate_batch`."""
        self.evaluate_batch(batch, with_teacher=self.shows_teacher and batch_idx == 0)

    @torch.no_grad()
    def evaluate_batch(self, batch: EvaluationBatch, with_teacher: bool = False) -> None:
        """Score the references, sample responses, and compare both with references and teacher.

        Args:
            batch: B rows.
            with_teacher: keep the teacher's responses beside the student's; they are sampled once.
        """
        metrics = self.evaluation_metrics
        states, target_ids = self.token_states(batch.tokens)
        metrics.loss.update(LanguageModelingLoss()(states, target_ids).loss, weight=len(states))
        rollouts = self.sampler(self.evaluation_sampling).sample(batch.prompts, seed=self.evaluation_seed)
        if self._teacher:
            sequences = rollout_sequences(rollouts)
            student, ids = self.token_states(sequences)
            teacher = self.teacher_token_states(sequences)
            temperature = self.evaluation_sampling.temperature or 1.0
            reverse_kl = ReverseKL()(student, ids, teacher, temperature=temperature).loss
            metrics.reverse_kl.update(reverse_kl, weight=len(student))
        metrics.response_length.update(rollouts.lengths.float())
        responses = self.decode(rollouts)
        metrics.rouge_l.update(responses, batch.references)
        exact = [row for row, flag in enumerate(batch.exact) if flag]
        # also without such rows: every rank has to take part when the metric is summed over ranks
        metrics.exact_match.update([responses[row] for row in exact], [batch.references[row] for row in exact])
        by_teacher = self._teacher_responses(batch) if with_teacher and self._teacher else ()
        for row, response in enumerate(responses):
            self.samples.append(
                {
                    "index": int(batch.prompts.indices[row]),
                    "task": batch.tasks[row],
                    "prompt": batch.prompt_texts[row],
                    "references": list(batch.references[row]),
                    "response": response,
                    "exact": batch.exact[row],
                    **({"teacher": by_teacher[row]} if by_teacher else {}),
                }
            )

    def _teacher_responses(self, batch: EvaluationBatch) -> tuple[str, ...]:
        """Return what the frozen teacher says, under the same noise as the student; kept until other prompts come."""
        if batch.prompt_texts not in self._teacher_texts:
            sampler = self.sampler(self.evaluation_sampling, student=self.teacher_split)
            texts = self.decode(sampler.sample(batch.prompts, seed=self.evaluation_seed))
            self._teacher_texts = {batch.prompt_texts: tuple(texts)}
        return self._teacher_texts[batch.prompt_texts]

    def decode(self, rollouts: RolloutBatch) -> list[str]:
        """Return the responses as text, without eos and padding."""
        ids = [row[mask] for row, mask in zip(rollouts.response_ids, rollouts.response_mask, strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def on_validation_epoch_start(self) -> None:
        """Start a new evaluation."""
        self.evaluation_metrics.reset()
        self.samples = []

    def on_test_epoch_start(self) -> None:
        """Start a new evaluation."""
        self.evaluation_metrics.reset()
        self.samples = []

    def on_validation_epoch_end(self) -> None:
        """Log ``val/...``."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/...``."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        values = {f"{stage}/{name}": value.float() for name, value in self.evaluation_metrics.compute().items()}
        shown = {f"{stage}/rougeL", f"{stage}/loss"}
        for name, value in values.items():
            self.log(name, value, prog_bar=name in shown, sync_dist=True)
        self.evaluation_metrics.reset()

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the micro-batches of an optimiser step, which another number of devices may change."""
        checkpoint[ACCUMULATION_KEY] = self.trainer.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture before anything is overwritten.

        Raises:
            ValueError: names or shapes of the weights differ.
        """
        if self._trainer is not None:
            rescale_progress(checkpoint, self.trainer.accumulate_grad_batches)
        if "state_dict" in checkpoint:  # a sharding strategy has checked and loaded the weights by itself
            own, theirs = self.state_dict(), checkpoint["state_dict"]
            check_architecture(
                *({name: tuple(value.shape) for name, value in state.items()} for state in (own, theirs))
            )

    def export(self, folder: str) -> None:
        """Write the student and the tokenizer as a Hugging Face folder; all ranks of a sharded student take part."""
        if self.student is None:
            self.configure_model()
        assert self.student is not None
        save_pretrained(self.student, folder, self.tokenizer)


def _checkpoint_layers(model: PreTrainedModel) -> None:
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:  # its older name
        model.gradient_checkpointing_enable({"use_reentrant": False})


def _make(source: ModelSource) -> PreTrainedModel:
    model = source if isinstance(source, PreTrainedModel) else source()
    fuse_activations(model)
    return model
