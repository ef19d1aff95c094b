"""MiniLLM: the clipped policy gradient of the reverse KL, on the student's own text (arXiv 2306.08543, Algorithm 1)."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_minillm.data.ranks import data_group, data_rank, data_world_size
from lightning_minillm.data.stream import ShuffledStream
from lightning_minillm.functional.kl_estimators import k1
from lightning_minillm.functional.logprobs import TokenStates
from lightning_minillm.functional.policy_gradient import importance_weights
from lightning_minillm.losses import KDLoss, MiniLLMLoss, TokenLoss
from lightning_minillm.models import disable_dropout
from lightning_minillm.models.sharding import is_sharded
from lightning_minillm.modules.base import CausalLMModule, ModelSource
from lightning_minillm.rollout import RolloutBuffer, SamplingConfig, collect_rollouts
from lightning_minillm.rollout.batching import select_rollouts
from lightning_minillm.rollout.collector import ProgressListener
from lightning_minillm.rollout.scoring import add_teacher, response_logprobs, response_states, rollout_sequences
from lightning_minillm.types import LossOutput, PolicyBatch, PromptBatch, RolloutBatch

TeacherCache = Literal["hidden", "none"]
TeacherPass = Literal["lockstep", "after"]


class MiniLLMModule(CausalLMModule):
    """Distils the teacher into the student by minimising the reverse KL on rollouts.

    One Lightning epoch is one phase: rollouts are collected with the current weights at its start, and the buffer that
    holds them is the train loader.

    Args:
        student: see :class:`CausalLMModule`; an already fine-tuned one in the paper.
        tokenizer: see :class:`CausalLMModule`.
        teacher: see :class:`CausalLMModule`; required.
        loss: the policy-gradient loss; ``MiniLLMLoss()``, the official preset, by default.
        lm_loss: loss on the pretraining batch; ``KDLoss(0.5)``, the official one, by default.
        lm_coef: weight of that loss, at least 0; used when the data module has a pretraining corpus.
        sampling: how rollouts are sampled.
        num_rollouts: rollouts of a phase over all ranks; a multiple of the data module's batch size (official 256).
        ppo_epochs: passes over each phase (official 4).
        rollout_batch_size: rows that are sampled together on a rank: speed and memory only.
        dropout: keep the student's dropout during updates. Off by default: the official code trains in eval mode, and
            with dropout the update's log-probabilities are not those that the rollouts were sampled with.
        teacher_cache: ``"hidden"`` keeps the teacher's last hidden states of the rollouts, so that updates need no
            teacher pass over them; ``"none"`` runs the teacher again, for tight memory.
        teacher_pass: ``"lockstep"``: the teacher advances with the student while sampling; ``"after"``: it reads the
            finished rollouts, ``rollout_batch_size`` at a time, without a key-value cache, for tight memory
            (``teacher_mix_alpha`` must be 0).
        teacher_offload: keep the teacher in the CPU's memory but while rollouts are sampled; its head stays, for the
            kept hidden states. Sharded by FSDP, its shards lie there, and may be read in every step.
        recompute_logprobs: replace the sampler's student log-probabilities by those of one full pass, for half
            precision, where cached decoding and a full pass differ.
        seed: of sampling and shuffling.
        kwargs: of :class:`CausalLMModule`.

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(
        self,
        student: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: ModelSource,
        loss: MiniLLMLoss | None = None,
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
        super().__init__(student, tokenizer, teacher=teacher, **kwargs)
        if lm_coef < 0:
            raise ValueError(f"lm_coef must be at least 0, got {lm_coef}")
        if teacher_cache not in ("hidden", "none"):
            raise ValueError(f"teacher_cache must be 'hidden' or 'none', got {teacher_cache!r}")
        if teacher_pass not in ("lockstep", "after"):
            raise ValueError(f"teacher_pass must be 'lockstep' or 'after', got {teacher_pass!r}")
        if ppo_epochs < 1 or num_rollouts < 1 or rollout_batch_size < 1:
            raise ValueError("num_rollouts, ppo_epochs and rollout_batch_size must be at least 1")
        self.loss = loss or MiniLLMLoss()
        self.lm_loss = lm_loss or KDLoss(0.5)
        self.lm_coef = lm_coef
        self.sampling = sampling or SamplingConfig()
        if self.sampling.temperature == 0:
            raise ValueError("rollouts need a positive sampling temperature, got 0")
        if teacher_pass == "after" and self.sampling.teacher_mix_alpha > 0:
            raise ValueError(
                f"teacher_mix_alpha={self.sampling.teacher_mix_alpha} samples from the teacher too, which then cannot"
                " come after: set teacher_pass=lockstep or teacher_mix_alpha=0"
            )
        self.num_rollouts = num_rollouts
        self.ppo_epochs = ppo_epochs
        self.rollout_batch_size = rollout_batch_size
        self.dropout = dropout
        self.teacher_cache = teacher_cache
        self.teacher_pass = teacher_pass
        self.teacher_offload = teacher_offload
        self.recompute_logprobs = recompute_logprobs
        self.seed = seed
        self.rollout_listeners: list[ProgressListener] = []
        """Called with (rollouts done, rollouts to do) while a phase is collected."""
        self._buffer: RolloutBuffer | None = None
        self._train_set: Any = None
        self._update_seconds = self._batch_started = 0.0
        self._prompt_stream: ShuffledStream | None = None

    def configure_model(self) -> None:
        """Make the models; without ``dropout``, switch the student's off."""
        if self.student is None:
            super().configure_model()
            if not self.dropout and self.student is not None:
                disable_dropout(self.student)

    def _rest_teacher(self) -> None:
        """Where it is offloaded, move the teacher to the CPU until it is needed, but for its head."""
        if self.teacher_offload and self.teacher is not None and not is_sharded(self.teacher):
            self._place_teacher(torch.device("cpu"))
            self.teacher.get_output_embeddings().to(self.device)

    def on_validation_end(self) -> None:
        """Move an offloaded teacher back."""
        self._rest_teacher()

    def _check_offload(self, reads_lm: bool) -> None:
        """Make sure that an offloaded teacher is not read in every step, unless it lies in shards.

        Raises:
            ValueError: it is.
        """
        if not self.teacher_offload or (self._teacher and is_sharded(self._teacher[0])):
            return
        if self.teacher_cache == "none" or (reads_lm and self.lm_loss.reads_teacher):
            raise ValueError(
                "teacher_offload keeps the teacher on the CPU during updates, which read it here: use"
                " teacher_cache=hidden, and lm_loss.kd_ratio=0 or lm_coef=0; or strategy=fsdp, which reads its shards"
            )

    # --- rollouts ---------------------------------------------------------------------------------------------------

    def build_train_loader(self, datamodule: Any) -> RolloutBuffer:
        """Return the (still empty) buffer as train loader; the data module calls this.

        Args:
            datamodule: gives ``train_set`` (sized, with ``prompt_batch(rows)``), ``lm_stream`` (with ``batch(step)``,
                or ``None``), ``batch_size`` and ``micro_batch_size``.

        Raises:
            ValueError: sizes that do not divide.
        """
        self._train_set = datamodule.train_set
        self._prompt_stream = ShuffledStream(len(datamodule.train_set), self.seed)
        lm_stream = datamodule.lm_stream if self.lm_coef > 0 else None
        self._check_offload(reads_lm=lm_stream is not None)
        self._buffer = RolloutBuffer(
            num_rollouts=self.num_rollouts,
            batch_size=datamodule.batch_size,
            micro_batch_size=datamodule.micro_batch_size,
            ppo_epochs=self.ppo_epochs,
            max_response_length=self.sampling.max_new_tokens,
            whiten=self.loss.whiten,
            seed=self.seed,
            rank=data_rank(self.trainer),
            world_size=data_world_size(self.trainer),
            lm_batch=None if lm_stream is None else lm_stream.batch,
            reduce=lambda tensor: self.trainer.strategy.reduce(tensor, data_group(self.trainer), reduce_op="sum"),
            gather=self._gather_objects,
        )
        return self._buffer

    def on_train_start(self) -> None:
        """Do what is due where Lightning announces no epoch.

        After a checkpoint of the last step of a phase, the next is collected; after one from the middle, what was
        logged of the phase is logged again, since it is written at its end.
        """
        super().on_train_start()
        assert self._buffer is not None
        if self._buffer.phase not in (-1, self.trainer.current_epoch):
            self._collect_phase(self._buffer)
        elif self._buffer.content is not None:
            self._rest_teacher()
            self._log_rollouts(*self._buffer.content)

    def on_train_epoch_start(self) -> None:
        """Collect a phase of rollouts with the current weights, unless the buffer came with it from a checkpoint."""
        assert self._buffer is not None
        if self._buffer.phase != self.trainer.current_epoch:
            self._collect_phase(self._buffer)

    def _collect_phase(self, buffer: RolloutBuffer) -> None:
        started = time.perf_counter()
        self._update_seconds = 0.0
        phase = self.trainer.current_epoch
        self._place_teacher()
        with self.trainer.precision_plugin.forward_context():
            rollouts = self.run_sampling(lambda: self.collect(self._phase_prompts(buffer, phase), phase))
        self._rest_teacher()
        weights = importance_weights(rollouts.student_logprobs, rollouts.mixture_logprobs, rollouts.response_mask)
        buffer.fill(rollouts, self.loss.returns(rollouts), weights, phase)
        seconds = time.perf_counter() - started
        self._log_rollouts(rollouts, weights)
        speed = {
            "rollout/seconds": seconds,
            "rollout/tokens_per_second": float(rollouts.response_mask.sum()) / seconds,
        }
        self.log_dict(speed, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

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

    def _phase_prompts(self, buffer: RolloutBuffer, phase: int) -> PromptBatch:
        assert self._prompt_stream is not None
        rows = self._prompt_stream.indices(phase * self.num_rollouts, self.num_rollouts)
        prompts: PromptBatch = self._train_set.prompt_batch(rows[buffer.local_rows()])
        return prompts.to(self.device)

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

    def _gather_objects(self, value: Any) -> list[Any]:
        if data_world_size(self.trainer) == 1:
            return [value]
        gathered: list[Any] = [None] * data_world_size(self.trainer)
        torch.distributed.all_gather_object(gathered, value, group=data_group(self.trainer))
        return gathered

    def _log_rollouts(self, rollouts: RolloutBatch, weights: Tensor) -> None:
        mask = rollouts.response_mask
        assert rollouts.teacher_logprobs is not None
        kl = k1(rollouts.student_logprobs, rollouts.teacher_logprobs) * weights
        columns = {"reward": self.loss.rewards(rollouts), "reverse_kl": kl, "importance_weight": weights}
        sums = [column.masked_fill(~mask, 0).sum(dtype=torch.float64) for column in columns.values()]
        totals = torch.stack([*sums, mask.sum(dtype=torch.float64)])
        totals = self.trainer.strategy.reduce(totals, data_group(self.trainer), reduce_op="sum")
        values = {
            **{f"rollout/{name}": total / totals[-1] for name, total in zip(columns, totals, strict=False)},
            "rollout/response_length": totals[-1] / self.num_rollouts,
        }
        values = {name: value.float() for name, value in values.items()}
        if rollouts.teacher_hidden is not None:
            values["rollout/teacher_cache_mib"] = totals.new_tensor(rollouts.teacher_hidden.nbytes / 2**20).float()
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    # --- update -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: PolicyBatch, batch_idx: int) -> Tensor:
        """Return the policy-gradient loss of one micro-batch, plus the pretraining loss."""
        output = self.policy_loss(batch)
        loss, parts = output.loss, {**output.parts, "rl_loss": output.loss.detach()}
        if batch.lm is not None:
            pretraining = self.apply_loss(self.lm_loss, batch.lm)
            loss = loss + self.lm_coef * pretraining.loss
            parts |= {**pretraining.parts, "pt_loss": pretraining.loss.detach()}
        self.check_finite(loss, batch.rollouts.indices)
        self.log_training(LossOutput(loss, parts), len(batch.rollouts))
        return loss

    def on_train_batch_start(self, batch: PolicyBatch, batch_idx: int) -> None:
        """Start the clock of the update."""
        self._batch_started = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: PolicyBatch, batch_idx: int) -> None:
        """Stop it: what happens between batches is no update."""
        self._update_seconds += time.perf_counter() - self._batch_started

    def on_train_epoch_end(self) -> None:
        """Log how long the phase's updates took."""
        self.log("rollout/update_seconds", self._update_seconds, sync_dist=True)

    def policy_loss(self, batch: PolicyBatch) -> LossOutput:
        """Apply the policy-gradient loss to one micro-batch of rollouts."""
        mask = batch.rollouts.response_mask
        states, target_ids = self.token_states(rollout_sequences(batch.rollouts, batch.normalizer))
        inputs = {
            "old_logprobs": batch.rollouts.student_logprobs[mask],
            "advantages": batch.advantages[mask],
            "importance_weights": batch.importance_weights[mask],
        }
        teacher = self._teacher_states(batch.rollouts) if self.loss.reads_teacher else None
        output: LossOutput = self.loss(states, target_ids, teacher, inputs, batch.normalizer, self.sampling.temperature)
        return output

    def _teacher_states(self, rollouts: RolloutBatch) -> TokenStates:
        """Return the teacher's states of the response tokens: kept from sampling, or made again."""
        assert self.teacher_split is not None
        if rollouts.teacher_hidden is not None:
            return self.teacher_split.states(rollouts.teacher_hidden[rollouts.response_mask])
        return response_states(self.teacher_split, rollouts)
