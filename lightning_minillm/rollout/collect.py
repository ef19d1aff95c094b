"""Collecting the rollouts of one phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lightning_minillm.rollout.batching import concatenate_rollouts, select_prompts, select_rollouts
from lightning_minillm.rollout.sampler import MixtureSampler
from lightning_minillm.types import PromptBatch, RolloutBatch

ProgressListener = Callable[[int, int], None]


def collect_rollouts(
    sampler: MixtureSampler,
    prompts: PromptBatch,
    *,
    seed: int,
    phase: int,
    batch_size: int,
    listeners: Sequence[ProgressListener] = (),
) -> RolloutBatch:
    """Sample a response to every prompt, ``batch_size`` at a time, prompts of like length together.

    Args:
        sampler: what samples.
        prompts: B left-padded prompts on the sampler's device.
        seed: of the run.
        phase: number of the rollout phase.
        batch_size: rows that advance together; changes speed and memory, never the result beyond rounding.
        listeners: called with (rows done, rows to do) after every batch.

    Returns:
        B rollouts in the order of ``prompts``.

    Raises:
        ValueError: batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"the rollout batch size must be at least 1, got {batch_size}")
    order = prompts.attention_mask.sum(-1).argsort(stable=True, descending=True)
    batches, done = [], 0
    for rows in order.split(batch_size):
        batches.append(sampler.sample(select_prompts(prompts, rows), seed=seed, phase=phase))
        done += len(rows)
        for listener in listeners:
            listener(done, len(order))
    joined = concatenate_rollouts(batches, sampler.pad_token_id)
    return select_rollouts(joined, torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order)))
