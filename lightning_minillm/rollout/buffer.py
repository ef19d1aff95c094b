"""The rollouts of one phase, served as shuffled micro-batches ``ppo_epochs`` times.

The buffer is the train loader of a phase, that is of one Lightning epoch: sized, so that Lightning fetches nothing
early, and stateful, so that a run can resume in the middle of a phase.

Which rows share an optimiser step does not depend on the number of ranks. Think of the phase as ``batch_size`` lanes:
rollout g is in lane ``g % batch_size``. Every optimiser step takes one rollout of each lane, a pass over the buffer
shuffles each lane by itself, and rank r owns the lanes ``r, r + ranks, ...``.

Legend: N rollouts of a phase, n rows of a rank, T response tokens, S optimiser steps of a phase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_minillm.batch_sizes import BatchSizes, divide, rescale_position
from lightning_minillm.checks import check_range
from lightning_minillm.data.batches import shuffle_seed
from lightning_minillm.distributed.placement import ModelPlacement, OneCopy
from lightning_minillm.functional.precision import near_float64
from lightning_minillm.functional.returns import Whitening, whiten, whitening_sums
from lightning_minillm.rollout.batching import concatenate_rollouts, select_rollouts
from lightning_minillm.types import PolicyBatch, RolloutBatch, TokenBatch


def lane_schedule(num_rollouts: int, batch_size: int, ppo_epochs: int, seed: int, phase: int) -> Tensor:
    """Return which rollouts each optimiser step uses.

    Args:
        num_rollouts: N, a multiple of ``batch_size``.
        batch_size: rollouts of an optimiser step over all ranks.
        ppo_epochs: passes over the phase.
        seed: of the run.
        phase: number of the phase.

    Returns:
        ``[S, batch_size]`` int64, S = ppo_epochs N / batch_size; each pass uses every rollout once.
    """
    generator = torch.Generator().manual_seed(shuffle_seed(seed, phase))
    steps = num_rollouts // batch_size
    lanes = torch.arange(batch_size)
    passes = [
        torch.rand(steps, batch_size, generator=generator).argsort(0) * batch_size + lanes for _ in range(ppo_epochs)
    ]
    return torch.cat(passes)


class RolloutBuffer:
    """Holds one phase of rollouts of one rank and serves :class:`PolicyBatch` micro-batches.

    Args:
        num_rollouts: N, rollouts of a phase over all ranks; a multiple of the batch size.
        sizes: rollouts of an optimiser step, of a forward pass on one rank, and the number of ranks.
        ppo_epochs: passes over each phase, at least 1.
        max_response_length: columns that ``whiten="all"`` counts per row.
        whiten: how advantages are whitened; see :class:`~lightning_minillm.rollout.AdvantageEstimator`.
        seed: of the shuffling.
        placement: gives the rank, and sums and gathers over ranks; one process by default.
        lm_batch: returns the i-th micro-batch of the pretraining stream; ``None`` for none.

    Raises:
        ValueError: sizes that do not divide, with the nearest that do.
    """

    def __init__(
        self,
        num_rollouts: int,
        sizes: BatchSizes,
        *,
        ppo_epochs: int,
        max_response_length: int,
        whiten: Whitening,
        seed: int,
        placement: ModelPlacement | None = None,
        lm_batch: Callable[[int], TokenBatch] | None = None,
    ) -> None:
        divide(num_rollouts, sizes.batch_size, "num_rollouts", "batch_size")
        check_range(ppo_epochs >= 1, "ppo_epochs", "at least 1", ppo_epochs)
        self.num_rollouts = num_rollouts
        self.sizes = sizes
        self.batch_size = sizes.batch_size
        self.micro_batch_size = sizes.micro_batch_size
        self.world_size = sizes.world_size
        self.accumulation = sizes.accumulation
        self.ppo_epochs = ppo_epochs
        self.max_response_length = max_response_length
        self.whiten: Whitening = whiten
        self.seed = seed
        self.placement = placement or OneCopy()
        self.rank = self.placement.data_rank
        self.lm_batch = lm_batch
        self.phase = -1
        """Number of the phase that the buffer holds, -1 when it is empty."""
        self._position = 0
        self._rollouts: RolloutBatch | None = None
        self._returns = self._weights = torch.zeros(0)
        self._schedule = torch.zeros(0, 0, dtype=torch.int64)
        self._sums = self._counts = torch.zeros(0)

    @property
    def num_steps(self) -> int:
        """S, optimiser steps of a phase."""
        return self.ppo_epochs * self.num_rollouts // self.batch_size

    @property
    def content(self) -> tuple[RolloutBatch, Tensor] | None:
        """This rank's rollouts with their importance weights ``[n, T]``; ``None`` when it is empty."""
        return None if self._rollouts is None else (self._rollouts, self._weights)

    def __len__(self) -> int:
        return self.num_steps * self.accumulation

    def local_rows(self) -> Tensor:
        """Return the numbers ``[n]`` in ``[0, N)`` of the rollouts that this rank samples, in storage order."""
        rows = torch.arange(self.num_rollouts)
        return rows[rows % self.batch_size % self.world_size == self.rank]

    def fill(self, rollouts: RolloutBatch, returns: Tensor, importance_weights: Tensor, phase: int) -> None:
        """Replace the content by a new phase.

        Args:
            rollouts: n rows, in the order of :meth:`local_rows`.
            returns: ``[n, T]``, advantages before whitening.
            importance_weights: ``[n, T]``.
            phase: number of the phase; together with ``seed`` it decides the order.

        Raises:
            ValueError: the number of rows is not this rank's share.
        """
        expected = self.num_rollouts // self.world_size
        if len(rollouts) != expected:
            raise ValueError(f"the buffer of this rank holds {expected} rollouts, got {len(rollouts)}")
        self._rollouts, self._returns, self._weights = rollouts, returns, importance_weights
        self.phase, self._position = phase, 0
        schedule = lane_schedule(self.num_rollouts, self.batch_size, self.ppo_epochs, self.seed, phase)
        lanes = schedule[:, self.rank :: self.world_size]
        turn, lane = lanes // self.batch_size, lanes % self.batch_size
        self._schedule = turn * (self.batch_size // self.world_size) + lane // self.world_size
        self._measure_steps(rollouts)

    def __iter__(self) -> Iterator[PolicyBatch]:
        """Yield the rest of the phase; a restored buffer continues where it was."""
        if self._rollouts is None:
            raise RuntimeError("the rollout buffer is empty: rollouts are collected in on_train_epoch_start")
        while self._position < len(self):
            position = self._position
            self._position += 1
            yield self._batch(position)

    def _measure_steps(self, rollouts: RolloutBatch) -> None:
        """Count the tokens and sum the returns of every optimiser step, over all ranks."""
        mask = rollouts.response_mask
        sums, counts = [], []
        for rows in self._schedule.to(mask.device):
            counts.append(mask[rows].sum())
            sums.append(whitening_sums(self._returns[rows], mask[rows], self.whiten, self.max_response_length))
        self._sums = self.placement.sum_over_data(torch.stack(sums))
        self._counts = self.placement.sum_over_data(near_float64(torch.stack(counts)).double())

    def _batch(self, position: int) -> PolicyBatch:
        assert self._rollouts is not None
        step, micro = divmod(position, self.accumulation)
        rows = self._schedule[step, micro * self.micro_batch_size :][: self.micro_batch_size]
        rows = rows.to(self._returns.device)
        rollouts = select_rollouts(self._rollouts, rows)
        width = rollouts.response_ids.shape[1]
        advantages = self._returns[rows][:, :width]
        if self.whiten != "none":
            advantages = whiten(advantages, self._sums[step])
        return PolicyBatch(
            rollouts=rollouts,
            advantages=advantages,
            importance_weights=self._weights[rows][:, :width],
            normalizer=float(self._counts[step]) / (self.world_size * self.accumulation),
            lm=None if self.lm_batch is None else self.lm_batch(self.phase * len(self) + position),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the phase of all ranks with the position in it, as plain tensors and numbers."""
        state: dict[str, Any] = {"position": self._position, "phase": self.phase, "accumulation": self.accumulation}
        if self._rollouts is None:
            return state
        local = {name: value.cpu() for name, value in self._rollouts.columns().items()}
        local |= {"returns": self._returns.cpu(), "importance_weights": self._weights.cpu()}
        state["ranks"] = self.placement.gather_over_data(local)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, on any number of ranks: the rollouts are dealt again.

        Raises:
            ValueError: phases or batches have a different size, or the position is inside an optimiser step that has
                other micro-batches here.
        """
        self.phase, self._position = state["phase"], 0
        if "ranks" not in state:
            return
        position = rescale_position(state["position"], state["accumulation"], self.accumulation)
        rollouts, returns, weights = self._dealt(state["ranks"])
        self.fill(rollouts, returns, weights, state["phase"])
        self._position = position

    def _dealt(self, ranks: list[dict[str, Tensor]]) -> tuple[RolloutBatch, Tensor, Tensor]:
        """Return this rank's rows of what a possibly different number of ranks held."""
        lanes = self.batch_size // len(ranks) * len(ranks) == self.batch_size
        if not lanes or sum(len(columns["returns"]) for columns in ranks) != self.num_rollouts:
            raise ValueError(
                f"the checkpoint holds {sum(len(columns['returns']) for columns in ranks)} rollouts of {len(ranks)}"
                f" ranks, and this run collects {self.num_rollouts} in steps of {self.batch_size}: give the same"
                " num_rollouts and batch_size"
            )
        if len(ranks) == self.world_size:
            columns = dict(ranks[self.rank])
            returns, weights = columns.pop("returns"), columns.pop("importance_weights")
            return RolloutBatch.from_columns(columns), returns, weights
        width = max(columns["returns"].shape[1] for columns in ranks)
        joined = {
            name: torch.cat([pad(columns[name], (0, width - columns[name].shape[1])) for columns in ranks])
            for name in ("returns", "importance_weights")
        }
        rest = [{name: value for name, value in columns.items() if name not in joined} for columns in ranks]
        rollouts = concatenate_rollouts([RolloutBatch.from_columns(columns) for columns in rest], pad_token_id=0)
        numbers = torch.arange(self.num_rollouts)
        stored = torch.cat([numbers[numbers % self.batch_size % len(ranks) == rank] for rank in range(len(ranks))])
        mine = stored.argsort()[self.local_rows()]
        rollouts = select_rollouts(rollouts, mine)
        width = rollouts.response_ids.shape[1]
        return rollouts, joined["returns"][mine, :width], joined["importance_weights"][mine, :width]
