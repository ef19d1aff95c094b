"""MiniLLM: the clipped policy gradient of the reverse KL, on the student's own text (arXiv 2306.08543, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_minillm.functional.kl_estimators import k1
from lightning_minillm.functional.policy_gradient import importance_weights
from lightning_minillm.functional.returns import Whitening
from lightning_minillm.losses import KDLoss, MiniLLMLoss, TokenLoss
from lightning_minillm.modules.base import ModelSource
from lightning_minillm.modules.phases import PhaseModule, TeacherCache
from lightning_minillm.rollout import SamplingConfig, collect_rollouts
from lightning_minillm.rollout.batching import select_rollouts
from lightning_minillm.rollout.scoring import add_teacher, response_logprobs, rollout_sequences
from lightning_minillm.types import LossOutput, PolicyBatch, PromptBatch, RolloutBatch

TeacherPass = Literal["lockstep", "after"]


class MiniLLMModule(PhaseModule):
    """Distils the teacher into the student by minimising the reverse KL on rollouts.

    Rollouts come from the mixture of student and teacher, with the log-probabilities they were sampled with.

    Args:
        student: see :class:`CausalLMModule`; an already fine-tuned one in the paper.
        tokenizer: see :class:`CausalLMModule`.
        teacher: see :class:`CausalLMModule`; required.
        loss: the policy-gradient loss; ``MiniLLMLoss()``, the official preset, by default. A loss that reads no
            advantages, such as any divergence, is minimised on the same rollouts, without the policy gradient.
        lm_loss: loss on the pretraining batch; ``KDLoss(0.5)``, the official one, by default.
        lm_coef: weight of that loss, at least 0; used when the data module has a pretraining corpus.
        sampling: how rollouts are sampled.
        num_rollouts: rollouts of a phase over all ranks; a multiple of the data module's batch size (official 256).
        ppo_epochs: passes over each phase (official 4).
        rollout_batch_size: rows that are sampled together on a rank: speed and memory only.
        dropout: keep the student's dropout during updates. Off by default: the official code trains in eval mode, and
            with dropout the update's log-probabilities are not those that the rollouts were sampled with.
        teacher_cache: see :class:`PhaseModule`; the hidden states are those of sampling.
        teacher_pass: ``"lockstep"``: the teacher advances with the student while sampling; ``"after"``: it reads the
            finished rollouts, ``rollout_batch_size`` at a time, without a key-value cache, for tight memory
            (``teacher_mix_alpha`` must be 0).
        teacher_offload: see :class:`PhaseModule`.
        recompute_logprobs: replace the sampler's student log-probabilities by those of one full pass, for half
            precision, where cached decoding and a full pass differ.
        seed: of sampling and shuffling.
        kwargs: of :class:`CausalLMModule`.

    Raises:
        ValueError: an option outside its range.
    """

    rollout_loss_name = "rl_loss"

    def __init__(
        self,
        student: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: ModelSource,
        loss: TokenLoss | None = None,
        lm_loss: TokenLoss | None = None,
        lm_coef: float = 1.0,
        sampling: SamplingConfig | None = None,
        num_rollouts: int = 256,
        ppo_epochs: int = 4,
        rollout_batch_size: int = 64,
        dropout: bool = False,
        teacher_cache: TeacherCache = "hidden",
        teacher_pass: TeacherPass = "lockstep",
        teacher_offload: bool = False,
        recompute_logprobs: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            student,
            tokenizer,
            teacher=teacher,
            loss=loss or MiniLLMLoss(),
            lm_loss=lm_loss or KDLoss(0.5),
            lm_coef=lm_coef,
            sampling=sampling or SamplingConfig(),
            num_rollouts=num_rollouts,
            ppo_epochs=ppo_epochs,
            rollout_batch_size=rollout_batch_size,
            dropout=dropout,
            teacher_cache=teacher_cache,
            teacher_offload=teacher_offload,
            seed=seed,
            **kwargs,
        )
        if teacher_pass not in ("lockstep", "after"):
            raise ValueError(f"teacher_pass must be 'lockstep' or 'after', got {teacher_pass!r}")
        if teacher_pass == "after" and self.sampling.teacher_mix_alpha > 0:
            raise ValueError(
                f"teacher_mix_alpha={self.sampling.teacher_mix_alpha} samples from the teacher too, which then cannot"
                " come after: set teacher_pass=lockstep or teacher_mix_alpha=0"
            )
        if "advantages" in self.loss.token_inputs and not isinstance(self.loss, MiniLLMLoss):
            raise ValueError(
                f"{type(self.loss).__name__} reads advantages, and only a MiniLLMLoss says how they are made: derive it"
                " from MiniLLMLoss, or read none"
            )
        self.teacher_pass = teacher_pass
        self.recompute_logprobs = recompute_logprobs

    # --- rollouts ---------------------------------------------------------------------------------------------------

    def collect(self, prompts: PromptBatch, phase: int) -> RolloutBatch:
        """Sample a response to every prompt with the current weights.

        Args:
            prompts: left-padded, on this module's device.
            phase: number of the phase; decides the noise together with ``seed`` and each prompt's row.
        """
        keep_hidden, after = self.teacher_cache == "hidden", self.teacher_pass == "after"
        sampler = self.sampler(
            self.sampling,
            teacher=None if after else self.teacher_split,
            keep_teacher_hidden=keep_hidden and not after,
        )
        rollouts = collect_rollouts(
            sampler,
            prompts,
            seed=self.seed,
            phase=phase,
            batch_size=self.rollout_batch_size,
            listeners=self.rollout_listeners,
        )
        if after:
            assert self.teacher_split is not None
            rollouts = add_teacher(rollouts, self.teacher_split, self.sampling, self.rollout_batch_size, keep_hidden)
        return self._recomputed(rollouts) if self.recompute_logprobs else rollouts

    @torch.no_grad()
    def _recomputed(self, rollouts: RolloutBatch) -> RolloutBatch:
        """Replace log q by that of a full pass without cache, ``rollout_batch_size`` rows at a time.

        The mixture's log mu stays: it is what the tokens were drawn from.
        """
        logprobs = torch.zeros_like(rollouts.student_logprobs)
        for rows in torch.arange(len(rollouts), device=logprobs.device).split(self.rollout_batch_size):
            chosen = select_rollouts(rollouts, rows)
            block = response_logprobs(self.student_split, chosen, self.sampling.temperature)
            logprobs[rows, : block.shape[1]] = block
        return replace(rollouts, student_logprobs=logprobs)

    @property
    def whiten(self) -> Whitening:
        """As the policy-gradient loss has it."""
        return self.loss.whiten if isinstance(self.loss, MiniLLMLoss) else "none"

    def advantages(self, rollouts: RolloutBatch) -> tuple[Tensor, Tensor]:
        """Return the loss's advantages before whitening, and w_t = q(y_t) / mu(y_t)."""
        none, _ = super().advantages(rollouts)
        returns = self.loss.returns(rollouts) if isinstance(self.loss, MiniLLMLoss) else none
        return returns, importance_weights(rollouts.student_logprobs, rollouts.mixture_logprobs, rollouts.response_mask)

    def rollout_columns(self, rollouts: RolloutBatch, weights: Tensor) -> Mapping[str, Tensor]:
        """Return reward, weighted estimate of the reverse KL, and importance weight."""
        assert rollouts.teacher_logprobs is not None
        kl = k1(rollouts.student_logprobs, rollouts.teacher_logprobs) * weights
        rewards = {"reward": self.loss.rewards(rollouts)} if isinstance(self.loss, MiniLLMLoss) else {}
        return {**rewards, "reverse_kl": kl, "importance_weight": weights}

    # --- update -----------------------------------------------------------------------------------------------------

    def rollout_loss(self, batch: PolicyBatch) -> LossOutput:
        """Apply the policy-gradient loss to one micro-batch of rollouts."""
        mask = batch.rollouts.response_mask
        states, target_ids = self.token_states(rollout_sequences(batch.rollouts, batch.normalizer))
        inputs = {
            "old_logprobs": batch.rollouts.student_logprobs[mask],
            "advantages": batch.advantages[mask],
            "importance_weights": batch.importance_weights[mask],
        }
        teacher = self.teacher_states(batch.rollouts) if self.loss.reads_teacher else None
        output: LossOutput = self.loss(states, target_ids, teacher, inputs, batch.normalizer, self.sampling.temperature)
        return output
