"""Distillation on text of any source, the student's own above all: GKD, DistiLLM, on-policy reverse KL.

Legend: N rollouts of a phase over all ranks, n rows of a rank.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_minillm.losses import LanguageModelingLoss, ReverseKL, TokenLoss
from lightning_minillm.modules.base import ModelSource
from lightning_minillm.modules.phases import PhaseModule, TeacherCache
from lightning_minillm.rollout import SamplingConfig, StudentText, TextRequest, TextSource, collect_rollouts
from lightning_minillm.rollout.batching import concatenate_rollouts, select_rollouts
from lightning_minillm.rollout.scoring import add_teacher, given_responses, rollout_sequences
from lightning_minillm.types import LossOutput, PolicyBatch, PromptBatch, RolloutBatch

SOURCE_KEY = "text_source"


class OnPolicyKDModule(PhaseModule):
    """Minimises a divergence between student and teacher on the text of a source.

    mean over response tokens of d(p(. | x, y_<t), q(. | x, y_<t)), y from the source; no gradient goes through y.

    Args:
        student: see :class:`CausalLMModule`.
        tokenizer: see :class:`CausalLMModule`.
        teacher: see :class:`CausalLMModule`; required.
        loss: any loss that reads no inputs of its own; ``ReverseKL()`` by default.
        source: whose text a phase is on; ``StudentText()``, purely on-policy, by default.
        temperature: of student and teacher in the loss, positive; apart from that of sampling. The loss is not
            multiplied by its square.
        lm_loss: loss on the data module's ``lm_stream``; ``LanguageModelingLoss()`` by default.
        lm_coef: weight of that loss, at least 0; used when the data module has such a stream.
        sampling: how student and teacher write. With ``teacher_mix_alpha`` above 0 the teacher has a share in the
            student's text.
        num_rollouts: prompts of a phase over all ranks; a multiple of the data module's batch size. Equal to it, with
            one pass, every step is on text of the student that it updates.
        ppo_epochs: passes over each phase.
        rollout_batch_size: rows that are sampled together on a rank: speed and memory only.
        dropout: keep the student's dropout during updates.
        teacher_cache: see :class:`PhaseModule`; ``"hidden"`` saves time where a phase is read more than once.
        teacher_offload: see :class:`PhaseModule`.
        seed: of sampling, shuffling and the source.
        kwargs: of :class:`CausalLMModule`.

    Raises:
        ValueError: an option outside its range, or a loss that reads inputs of its own.
    """

    rollout_loss_name = "kd_loss"

    def __init__(
        self,
        student: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: ModelSource,
        loss: TokenLoss | None = None,
        source: TextSource | None = None,
        temperature: float = 1.0,
        lm_loss: TokenLoss | None = None,
        lm_coef: float = 1.0,
        sampling: SamplingConfig | None = None,
        num_rollouts: int = 64,
        ppo_epochs: int = 1,
        rollout_batch_size: int = 64,
        dropout: bool = False,
        teacher_cache: TeacherCache = "none",
        teacher_offload: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        loss = loss or ReverseKL()
        if loss.token_inputs:
            raise ValueError(
                f"{type(loss).__name__} reads {', '.join(loss.token_inputs)}, which text alone does not give: choose a"
                " divergence, or train with MiniLLMModule (module=minillm)"
            )
        if temperature <= 0:
            raise ValueError(f"the loss's temperature must be positive, got {temperature}")
        super().__init__(
            student,
            tokenizer,
            teacher=teacher,
            loss=loss,
            lm_loss=lm_loss or LanguageModelingLoss(),
            lm_coef=lm_coef,
            sampling=sampling or SamplingConfig(teacher_mix_alpha=0.0),
            num_rollouts=num_rollouts,
            ppo_epochs=ppo_epochs,
            rollout_batch_size=rollout_batch_size,
            dropout=dropout,
            teacher_cache=teacher_cache,
            teacher_offload=teacher_offload,
            seed=seed,
            **kwargs,
        )
        self.source = StudentText() if source is None else source  # an empty replay buffer is false
        self.temperature = temperature

    # --- text -------------------------------------------------------------------------------------------------------

    def collect(self, prompts: PromptBatch, phase: int) -> RolloutBatch:
        """Return the source's text for every prompt, written with the current weights.

        Args:
            prompts: left-padded, on this module's device.
            phase: number of the phase; decides whose turn it is, and the noise, together with ``seed``.
        """
        request = TextRequest(
            prompts=prompts,
            phase=phase,
            progress=self._progress(),
            seed=self.seed,
            reference=self._references,
            student=partial(self._sampled, phase, by_teacher=False),
            teacher=partial(self._sampled, phase, by_teacher=True),
            rows=None if self._buffer is None else self._buffer.local_rows(),
            num_rows=None if self._buffer is None else self.num_rollouts,
            gather=self._all_rows,
        )
        text = replace(self.source.text(request), teacher_logprobs=None, reward_logprobs=None, teacher_hidden=None)
        if self.teacher_cache == "hidden" and self.loss.reads_teacher:
            assert self.teacher_split is not None
            read = add_teacher(text, self.teacher_split, self.sampling, self.rollout_batch_size, keep_hidden=True)
            text = replace(text, teacher_hidden=read.teacher_hidden)
        return text

    def _sampled(self, phase: int, prompts: PromptBatch, *, by_teacher: bool) -> RolloutBatch:
        config, models = self.sampling, {}
        if by_teacher:
            config = replace(self.sampling, teacher_mix_alpha=0.0)
            models = {"student": self.teacher_split, "teacher": None}
        return collect_rollouts(
            self.sampler(config, **models),
            prompts,
            seed=self.seed,
            phase=phase,
            batch_size=self.rollout_batch_size,
            listeners=self.rollout_listeners,
        )

    def _references(self, prompts: PromptBatch) -> RolloutBatch:
        tokens = self._train_set.token_batch(prompts.indices.cpu(), normalizer=1.0)
        return given_responses(prompts, tokens.to(prompts.input_ids.device))

    def _progress(self) -> float:
        """Share of the optimiser steps that are done; 0 where their number is unknown."""
        steps = float(self.trainer.estimated_stepping_batches) if self._trainer is not None else math.inf
        return min(1.0, self.global_step / steps) if 0 < steps < math.inf else 0.0

    def _all_rows(self, text: RolloutBatch) -> RolloutBatch:
        """Return the N rows of all ranks, each of which gives its n."""
        if self._buffer is None:
            return text
        parts = self._gather_objects((self._buffer.local_rows(), text))
        joined = concatenate_rollouts([part for _, part in parts], pad_token_id=0)
        return select_rollouts(joined, torch.cat([rows for rows, _ in parts]).argsort())

    def on_validation_epoch_end(self) -> None:
        """Tell the source of the validation loss, and log."""
        loss = self.evaluation_metrics.loss
        if loss.update_called and not self.trainer.sanity_checking:
            self.source.on_validation(float(loss.compute()))
        super().on_validation_epoch_end()

    def _log_rollouts(self, rollouts: RolloutBatch, weights: Tensor) -> None:
        super()._log_rollouts(rollouts, weights)
        values = {f"rollout/{name}": value for name, value in self.source.metrics().items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    # --- update -----------------------------------------------------------------------------------------------------

    def rollout_loss(self, batch: PolicyBatch) -> LossOutput:
        """Apply the loss to one micro-batch of the phase's text."""
        states, target_ids = self.token_states(rollout_sequences(batch.rollouts, batch.normalizer))
        teacher = self.teacher_states(batch.rollouts) if self.loss.reads_teacher else None
        output: LossOutput = self.loss(
            states, target_ids, teacher, normalizer=batch.normalizer, temperature=self.temperature
        )
        return output

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the source remembers."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[SOURCE_KEY] = self.source.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it, after the checks of the base class."""
        super().on_load_checkpoint(checkpoint)
        if SOURCE_KEY in checkpoint:
            self.source.load_state_dict(checkpoint[SOURCE_KEY])
