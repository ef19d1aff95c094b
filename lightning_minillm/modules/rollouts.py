"""Training on rollouts: MiniLLM (arXiv 2306.08543, Algorithm 1), GKD, DistiLLM, on-policy reverse KL.

One Lightning epoch is one phase: its text is collected with the current weights when the epoch starts, and the buffer
that holds it is the train loader. What sets methods apart are the objects that a module is given:

=====================  =======================  ====================  ==============================
method                 loss                     advantages            text source
=====================  =======================  ====================  ==============================
MiniLLM                ``MiniLLMLoss``          AdvantageEstimator    ``StudentText()``, teacher-mixed
GKD                    ``GeneralizedJSD``       none                  ``StudentText(0.5)``
DistiLLM               ``SkewedReverseKL``      none                  ``AdaptiveReplay()``
on-policy reverse KL   ``ReverseKL``            none                  ``StudentText()``
=====================  =======================  ====================  ==============================

Departures from the paper (docs/method.md has all): log-probabilities come from the sampler's own passes, not from
a second generation; dropout is off in updates; rewards, returns and whitening have options.

Legend: N rollouts of a phase over all ranks, n rows of a rank, T response tokens.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_minillm.batch_sizes import BatchSizes
from lightning_minillm.functional.kl_estimators import k1
from lightning_minillm.functional.policy_gradient import importance_weights
from lightning_minillm.functional.precision import near_float64
from lightning_minillm.losses import TokenLoss
from lightning_minillm.models import ModelFactory
from lightning_minillm.modules.base import CausalLMModule
from lightning_minillm.modules.options import PretrainingOptions, TrainingOptions, ValidationOptions
from lightning_minillm.rollout import (
    AdvantageEstimator,
    PhaseShare,
    RolloutBuffer,
    RolloutOptions,
    SamplingConfig,
    TeacherOptions,
    TextCollector,
)
from lightning_minillm.rollout.collect import ProgressListener
from lightning_minillm.rollout.scoring import POLICY_INPUTS, policy_inputs, rollout_sequences, teacher_states
from lightning_minillm.types import LossOutput, PolicyBatch, RolloutBatch, TokenBatches, TrainingData

SOURCE_KEY = "text_source"


class RolloutModule(CausalLMModule):
    """Collects the text of a phase with the current weights, and trains on it.

    loss = mean over response tokens of ``loss`` + ``pretraining.coef`` x pretraining loss; the text gets no gradient.

    Args:
        student: as in :class:`CausalLMModule`, as are the arguments not listed here; already fine-tuned in the paper.
        loss: on the response tokens; it may read ``old_logprobs``, ``advantages`` and ``importance_weights``.
        advantages: makes the advantages that the loss reads; ``None`` for a loss that reads none.
        rollouts: how much text a phase has, whose, and how it is sampled.
        pretraining: the loss on the data module's ``lm_stream``; ``None`` for none.
        teacher_use: when the teacher reads the text, what is kept of it, and where it is in between.
        training: how the student is trained; without ``training.dropout``, its dropout is off.

    Raises:
        ValueError: options that contradict each other.
    """

    uses_dropout = False

    def __init__(
        self,
        student: ModelFactory,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: ModelFactory,
        loss: TokenLoss,
        advantages: AdvantageEstimator | None = None,
        rollouts: RolloutOptions | None = None,
        pretraining: PretrainingOptions | None = None,
        teacher_use: TeacherOptions | None = None,
        training: TrainingOptions | None = None,
        validation: ValidationOptions | None = None,
    ) -> None:
        super().__init__(student, tokenizer, teacher=teacher, training=training, validation=validation)
        self.loss = loss
        self.advantages = advantages
        self.rollouts = rollouts or RolloutOptions()
        self.teacher_use = teacher_use or TeacherOptions()
        self.teacher_offload = self.teacher_use.offload
        self.pretraining_loss = None if pretraining is None or pretraining.coef == 0 else pretraining.loss
        self.pretraining_coef = 0.0 if pretraining is None else pretraining.coef
        _check_method(loss, advantages, self.rollouts, self.teacher_use)
        self.rollout_listeners: list[ProgressListener] = []
        """Called with (rollouts done, rollouts to do) while a phase is collected."""
        self._phases: PhaseShare | None = None
        self._update_seconds = self._batch_started = 0.0

    # --- models -----------------------------------------------------------------------------------------------------

    def _rest_teacher(self) -> None:
        """Offload the teacher, unless updates run it: the phase may be from a checkpoint of a run with cache=none."""
        content = None if self._phases is None else self._phases.buffer.content
        is_run = content is not None and self.loss.reads_teacher and content[0].teacher_hidden is None
        if self.teacher_offload and not is_run:
            self.pair.rest_teacher(self.device)

    def samplings(self) -> dict[str, SamplingConfig]:
        """Return how responses to the prompts of each split are sampled."""
        return {"train": self.rollouts.sampling, **super().samplings()}

    def on_validation_end(self) -> None:
        """Move an offloaded teacher back to the CPU."""
        self._rest_teacher()

    def _check_offload(self, lm_stream: TokenBatches | None) -> None:
        """Check that an offloaded teacher is not read in every step, unless it is sharded."""
        if not self.teacher_offload or self.pair.teacher_is_sharded:
            return
        loss = None if lm_stream is None else self.pretraining_loss
        if self.teacher_use.cache == "none" or (loss is not None and loss.reads_teacher):
            raise ValueError(
                "teacher_use.offload keeps the teacher on the CPU during updates, which read it here: set"
                " teacher_use.cache=hidden, and pretraining.loss.kd_ratio=0 or pretraining.coef=0; or use"
                " strategy=fsdp, which reads its shards"
            )

    # --- phases -----------------------------------------------------------------------------------------------------

    def build_train_loader(self, data: TrainingData) -> RolloutBuffer:
        """Return the (still empty) buffer as train loader.

        Raises:
            ValueError: sizes that do not divide, or an offloaded teacher that updates read.
        """
        lm_stream = None if self.pretraining_loss is None else data.lm_stream
        self._check_offload(lm_stream)
        if self.rollouts.num_rollouts > (prompts := len(data.train_set)):
            repeated = "so that every phase has some of them more than once"
            rank_zero_warn(f"num_rollouts={self.rollouts.num_rollouts}: more than the {prompts} prompts, {repeated}")
        buffer = RolloutBuffer(
            self.rollouts.num_rollouts,
            BatchSizes(data.batch_size, data.micro_batch_size, self.placement.data_world_size),
            ppo_epochs=self.rollouts.ppo_epochs,
            max_response_length=self.rollouts.sampling.max_new_tokens,
            whiten="none" if self.advantages is None else self.advantages.whiten,
            seed=self.rollouts.seed,
            placement=self.placement,
            lm_batch=None if lm_stream is None else lm_stream.batch,
        )
        self._phases = PhaseShare(data.train_set, buffer)
        return buffer

    def on_train_start(self) -> None:
        """Do what is due if Lightning starts no epoch.

        After a checkpoint of the last step of a phase, the next one is collected; after one from the middle, what was
        logged of the phase is logged again, since it is written at its end.
        """
        super().on_train_start()
        buffer = self.phases.buffer
        if buffer.phase not in (-1, self.trainer.current_epoch):
            self._collect_phase()
        elif buffer.content is not None:
            self._rest_teacher()
            self._log_rollouts(*buffer.content)

    def on_train_epoch_start(self) -> None:
        """Collect a phase with the current weights, unless the buffer was restored with it from a checkpoint."""
        if self.phases.buffer.phase != self.trainer.current_epoch:
            self._collect_phase()

    @property
    def phases(self) -> PhaseShare:
        """The prompts of this run's phases, and the buffer of the current one."""
        if self._phases is None:
            raise RuntimeError("there is no rollout buffer yet: it is made when the trainer asks for a train loader")
        return self._phases

    def _collect_phase(self) -> None:
        started = time.perf_counter()
        self._update_seconds = 0.0
        phase, collector, progress = self.trainer.current_epoch, self.collector, self._progress()
        self.pair.place_teacher(self.device)
        prompts = self.phases.prompts(phase).to(self.device)
        with self.trainer.precision_plugin.forward_context():
            rollouts = self.placement.run_sampling(lambda: collector.collect(prompts, phase, self.phases, progress))
        weights = importance_weights(rollouts.student_logprobs, rollouts.mixture_logprobs, rollouts.response_mask)
        returns = torch.zeros_like(weights) if self.advantages is None else self.advantages.returns(rollouts)
        self.phases.buffer.fill(rollouts, returns, weights, phase)
        self._rest_teacher()
        seconds = time.perf_counter() - started
        self._log_rollouts(rollouts, weights)
        tokens_per_second = float(rollouts.response_mask.sum()) / seconds
        speed = {"rollout/seconds": seconds, "rollout/tokens_per_second": tokens_per_second}
        self.log_dict(speed, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    @property
    def collector(self) -> TextCollector:
        """What collects the text of a phase, with the current models."""
        return TextCollector(
            self.pair,
            self.rollouts,
            self.teacher_use.reading,
            needs_rewards=self.advantages is not None,
            keeps_hidden=self.teacher_use.cache == "hidden" and self.loss.reads_teacher,
            listeners=self.rollout_listeners,
        )

    def _progress(self) -> float:
        """Return the share of the optimiser steps that are done; 0 where their number is unknown."""
        steps = float(self.trainer.estimated_stepping_batches)
        return min(1.0, self.global_step / steps) if 0 < steps < math.inf else 0.0

    def _log_rollouts(self, rollouts: RolloutBatch, weights: Tensor) -> None:
        """Log means over the response tokens of all ranks; of the log-probabilities only where they are of now."""
        mask = rollouts.response_mask
        columns = {} if self.advantages is None else {"reward": self.advantages.rewards(rollouts)}
        if self.rollouts.source.is_on_policy and rollouts.teacher_logprobs is not None:
            columns["reverse_kl"] = k1(rollouts.student_logprobs, rollouts.teacher_logprobs) * weights
            columns["importance_weight"] = weights
        summands = [*(column.masked_fill(~mask, 0) for column in columns.values()), mask]
        sums = [near_float64(values).sum(dtype=torch.float64) for values in summands]
        totals = self.placement.sum_over_data(torch.stack(sums))
        values = {name: total / totals[-1] for name, total in zip(columns, totals, strict=False)}
        values["response_length"] = totals[-1] / self.rollouts.num_rollouts
        logged: dict[str, Any] = {name: value.float() for name, value in values.items()}
        logged |= self.rollouts.source.metrics()
        if rollouts.teacher_hidden is not None:
            logged["teacher_cache_mib"] = rollouts.teacher_hidden.nbytes / 2**20
        logged = {f"rollout/{name}": value for name, value in logged.items()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    # --- update -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: PolicyBatch, batch_idx: int) -> Tensor:
        """Return the loss on one micro-batch of collected text, plus the pretraining loss."""
        output = self.rollout_loss(batch)
        name = "kd_loss" if self.advantages is None else "rl_loss"  # without the pretraining loss
        loss, parts = output.loss, {**output.parts, name: output.loss.detach()}
        if batch.lm is not None and self.pretraining_loss is not None:
            pretraining = self.apply_loss(self.pretraining_loss, batch.lm)
            loss = loss + self.pretraining_coef * pretraining.loss
            parts |= {**pretraining.parts, "pt_loss": pretraining.loss.detach()}
        return self.finish_step(LossOutput(loss, parts), batch.rollouts.indices)

    def rollout_loss(self, batch: PolicyBatch) -> LossOutput:
        """Return the loss on one micro-batch of collected text."""
        states, target_ids = self.pair.token_states(rollout_sequences(batch.rollouts, batch.normalizer))
        teacher = teacher_states(self.pair.require_teacher(), batch.rollouts) if self.loss.reads_teacher else None
        inputs = policy_inputs(batch, self.loss.token_inputs)
        temperature = self.rollouts.loss_temperature or self.rollouts.sampling.temperature
        output: LossOutput = self.loss(states, target_ids, teacher, inputs, batch.normalizer, temperature)
        return output

    def on_train_batch_start(self, batch: PolicyBatch, batch_idx: int) -> None:
        """Start the clock of the update."""
        self._batch_started = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: PolicyBatch, batch_idx: int) -> None:
        """Stop the clock: the time between batches is not part of the update."""
        self._update_seconds += time.perf_counter() - self._batch_started

    def on_train_epoch_end(self) -> None:
        """Log how long the updates of the phase took."""
        self.log("rollout/update_seconds", self._update_seconds, sync_dist=True)

    # --- the text source --------------------------------------------------------------------------------------------

    def on_validation_epoch_end(self) -> None:
        """Log ``val/...``, and tell the text source the validation loss."""
        measured = self._log_measurements("val")
        if "loss" in measured and not self.trainer.sanity_checking:
            self.rollouts.source.on_validation(measured["loss"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the text source."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[SOURCE_KEY] = self.rollouts.source.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the text source, after the checks of the base class."""
        super().on_load_checkpoint(checkpoint)
        if SOURCE_KEY in checkpoint:
            self.rollouts.source.load_state_dict(checkpoint[SOURCE_KEY])


def _check_method(
    loss: TokenLoss, advantages: AdvantageEstimator | None, rollouts: RolloutOptions, teacher: TeacherOptions
) -> None:
    """Check that the objects of a method fit together.

    Raises:
        ValueError: they do not; the message says which option to change.
    """
    name = type(loss).__name__
    unknown = [key for key in loss.token_inputs if key not in POLICY_INPUTS]
    if unknown:
        raise ValueError(f"{name} reads {', '.join(unknown)}; rollouts have {', '.join(POLICY_INPUTS)}")
    if ("advantages" in loss.token_inputs) != (advantages is not None):
        raise ValueError(
            f"{name} reads advantages, and there are none: pass advantages=AdvantageEstimator()"
            if advantages is None
            else f"{name} reads no advantages: pass advantages=None, or a loss that reads them, such as MiniLLMLoss"
        )
    if loss.token_inputs and not rollouts.source.is_on_policy:
        raise ValueError(
            f"{name} reads {', '.join(loss.token_inputs)}, which only text of the student has: use the source"
            " StudentText() (rollout=student), or a divergence as loss"
        )
    if teacher.reading == "after" and rollouts.sampling.teacher_mix_alpha > 0:
        raise ValueError(
            f"teacher_mix_alpha={rollouts.sampling.teacher_mix_alpha} also samples from the teacher, which then cannot"
            " read afterwards: set teacher_use.reading=lockstep or teacher_mix_alpha=0"
        )
