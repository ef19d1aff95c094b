"""Training in phases: text is collected with the weights of the moment, and then trained on.

Legend: N rollouts of a phase over all ranks, n rows of a rank, T response tokens.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_minillm.data.batches import ShuffledStream
from lightning_minillm.distributed.ranks import data_group, data_rank, data_world_size
from lightning_minillm.distributed.sharding import is_sharded
from lightning_minillm.functional.logprobs import TokenStates
from lightning_minillm.functional.returns import Whitening
from lightning_minillm.losses import TokenLoss
from lightning_minillm.models import disable_dropout
from lightning_minillm.modules.base import CausalLMModule, ModelSource
from lightning_minillm.rollout import RolloutBuffer, SamplingConfig
from lightning_minillm.rollout.collect import ProgressListener
from lightning_minillm.rollout.scoring import response_states
from lightning_minillm.types import LossOutput, PolicyBatch, PromptBatch, RolloutBatch

TeacherCache = Literal["hidden", "none"]


class PhaseModule(CausalLMModule):
    """Collects the text of a phase with the current weights, and trains on it.

    One Lightning epoch is one phase: its text is collected at its start, and the buffer that holds it is the train
    loader. Subclasses say what is collected (:meth:`collect`), what is kept beside it (:meth:`advantages`) and what is
    minimised (:meth:`rollout_loss`).

    Args:
        student: see :class:`CausalLMModule`.
        tokenizer: see :class:`CausalLMModule`.
        teacher: see :class:`CausalLMModule`; required.
        loss: on the response tokens.
        lm_loss: on the batch of the data module's ``lm_stream``: pretraining text, or the training pairs.
        lm_coef: weight of that loss, at least 0; used when the data module has such a stream.
        sampling: how responses are sampled.
        num_rollouts: N; a multiple of the data module's batch size.
        ppo_epochs: passes over each phase, at least 1.
        rollout_batch_size: rows that are sampled together on a rank: speed and memory only.
        dropout: keep the student's dropout during updates.
        teacher_cache: ``"hidden"`` keeps the teacher's last hidden states of the text, so that updates need no teacher
            pass over it; ``"none"`` runs the teacher in every update.
        teacher_offload: keep the teacher in the CPU's memory but while text is collected; its head stays, for the
            kept hidden states. Sharded by FSDP, its shards lie there, and may be read in every step.
        seed: of sampling and shuffling.
        kwargs: of :class:`CausalLMModule`.

    Raises:
        ValueError: an option outside its range.
    """

    rollout_loss_name = "rollout_loss"
    """Under which ``train/...`` shows the loss on the text without that on the pretraining batch."""

    def __init__(
        self,
        student: ModelSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: ModelSource,
        loss: TokenLoss,
        lm_loss: TokenLoss,
        lm_coef: float,
        sampling: SamplingConfig,
        num_rollouts: int,
        ppo_epochs: int,
        rollout_batch_size: int = 64,
        dropout: bool = False,
        teacher_cache: TeacherCache = "hidden",
        teacher_offload: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, tokenizer, teacher=teacher, **kwargs)
        if lm_coef < 0:
            raise ValueError(f"lm_coef must be at least 0, got {lm_coef}")
        if teacher_cache not in ("hidden", "none"):
            raise ValueError(f"teacher_cache must be 'hidden' or 'none', got {teacher_cache!r}")
        if ppo_epochs < 1 or num_rollouts < 1 or rollout_batch_size < 1:
            raise ValueError("num_rollouts, ppo_epochs and rollout_batch_size must be at least 1")
        if sampling.temperature == 0:
            raise ValueError("rollouts need a positive sampling temperature, got 0")
        self.loss = loss
        self.lm_loss = lm_loss
        self.lm_coef = lm_coef
        self.sampling = sampling
        self.num_rollouts = num_rollouts
        self.ppo_epochs = ppo_epochs
        self.rollout_batch_size = rollout_batch_size
        self.dropout = dropout
        self.teacher_cache = teacher_cache
        self.teacher_offload = teacher_offload
        self.seed = seed
        self.rollout_listeners: list[ProgressListener] = []
        """Called with (rollouts done, rollouts to do) while a phase is collected."""
        self._buffer: RolloutBuffer | None = None
        self._train_set: Any = None
        self._update_seconds = self._batch_started = 0.0
        self._prompt_stream: ShuffledStream | None = None

    # --- what a method decides --------------------------------------------------------------------------------------

    @abstractmethod
    def collect(self, prompts: PromptBatch, phase: int) -> RolloutBatch:
        """Return a response to every prompt.

        Args:
            prompts: left-padded, on this module's device.
            phase: number of the phase; decides what is random together with ``seed`` and each prompt's row.
        """

    @abstractmethod
    def rollout_loss(self, batch: PolicyBatch) -> LossOutput:
        """Return the loss on one micro-batch of collected text."""

    def advantages(self, rollouts: RolloutBatch) -> tuple[Tensor, Tensor]:
        """Return advantages before whitening and importance weights, ``[n, T]`` each; 0 and 1 where none are read."""
        zeros = torch.zeros(rollouts.response_mask.shape, device=rollouts.response_mask.device)
        return zeros, rollouts.response_mask.float()

    @property
    def whiten(self) -> Whitening:
        """How advantages are whitened."""
        return "none"

    def rollout_columns(self, rollouts: RolloutBatch, weights: Tensor) -> Mapping[str, Tensor]:
        """Return what is logged of a phase as ``rollout/...``, averaged over its tokens: ``[n, T]`` each."""
        return {}

    # --- models -----------------------------------------------------------------------------------------------------

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

    # --- collecting -------------------------------------------------------------------------------------------------

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
            whiten=self.whiten,
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
        """Collect a phase of text with the current weights, unless the buffer came with it from a checkpoint."""
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
        returns, weights = self.advantages(rollouts)
        buffer.fill(rollouts, returns, weights, phase)
        seconds = time.perf_counter() - started
        self._log_rollouts(rollouts, weights)
        speed = {
            "rollout/seconds": seconds,
            "rollout/tokens_per_second": float(rollouts.response_mask.sum()) / seconds,
        }
        self.log_dict(speed, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def _phase_prompts(self, buffer: RolloutBuffer, phase: int) -> PromptBatch:
        assert self._prompt_stream is not None
        rows = self._prompt_stream.indices(phase * self.num_rollouts, self.num_rollouts)
        prompts: PromptBatch = self._train_set.prompt_batch(rows[buffer.local_rows()])
        return prompts.to(self.device)

    def _gather_objects(self, value: Any) -> list[Any]:
        if self._trainer is None or data_world_size(self.trainer) == 1:
            return [value]
        gathered: list[Any] = [None] * data_world_size(self.trainer)
        torch.distributed.all_gather_object(gathered, value, group=data_group(self.trainer))
        return gathered

    def _log_rollouts(self, rollouts: RolloutBatch, weights: Tensor) -> None:
        mask = rollouts.response_mask
        columns = self.rollout_columns(rollouts, weights)
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
        """Return the loss on one micro-batch of collected text, plus that on the pretraining batch."""
        output = self.rollout_loss(batch)
        loss, parts = output.loss, {**output.parts, self.rollout_loss_name: output.loss.detach()}
        if batch.lm is not None:
            pretraining = self.apply_loss(self.lm_loss, batch.lm)
            loss = loss + self.lm_coef * pretraining.loss
            parts |= {**pretraining.parts, "pt_loss": pretraining.loss.detach()}
        self.check_finite(loss, batch.rollouts.indices)
        self.log_training(LossOutput(loss, parts), len(batch.rollouts))
        return loss

    def teacher_states(self, rollouts: RolloutBatch) -> TokenStates:
        """Return the teacher's states of the response tokens: kept from collecting, or made again."""
        assert self.teacher_split is not None
        if rollouts.teacher_hidden is not None:
            return self.teacher_split.states(rollouts.teacher_hidden[rollouts.response_mask])
        return response_states(self.teacher_split, rollouts)

    def on_train_batch_start(self, batch: PolicyBatch, batch_idx: int) -> None:
        """Start the clock of the update."""
        self._batch_started = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: PolicyBatch, batch_idx: int) -> None:
        """Stop it: what happens between batches is no update."""
        self._update_seconds += time.perf_counter() - self._batch_started

    def on_train_epoch_end(self) -> None:
        """Log how long the phase's updates took."""
        self.log("rollout/update_seconds", self._update_seconds, sync_dist=True)
