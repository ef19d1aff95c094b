"""Speed, memory and gradient norm of training."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from lightning_minillm.distributed.gradients import total_norm
from lightning_minillm.types import PolicyBatch, TokenBatch


def count_tokens(batch: Any) -> int:
    """Return the number of tokens in a training batch, without padding; 0 for batches of an unknown kind."""
    if isinstance(batch, TokenBatch):
        return int(batch.attention_mask.sum())
    if isinstance(batch, PolicyBatch):
        rollouts = batch.rollouts
        return int(rollouts.prompt_mask.sum()) + int(rollouts.response_mask.sum()) + count_tokens(batch.lm)
    if isinstance(batch, dict):
        batch = [*batch.values()]
    return sum(map(count_tokens, batch)) if isinstance(batch, (list, tuple)) else 0


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory so far in GiB: allocated by torch on a GPU, resident set of the process on a CPU.

    ``NaN`` where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class ThroughputMonitor(Callback):
    """Log speed, memory and the gradient norm every ``log_every_n_steps`` steps.

    ======================  ==============================================================================
    perf/tokens_per_second  tokens that the student reads in updates on this rank, per second of update time
    perf/peak_memory_gib    peak memory of this rank (:func:`peak_memory_gib`)
    train/grad_norm         2-norm of all gradients of the optimiser step, before clipping
    ======================  ==============================================================================
    """

    _tokens, _seconds, _started = 0, 0.0, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock; time between batches (rollouts, validation) does not count."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log on the steps that are logged."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._seconds += time.perf_counter() - self._started
        self._tokens += count_tokens(batch)
        if trainer.global_step and _is_logged(trainer, trainer.global_step) and self._seconds > 0:
            pl_module.log("perf/tokens_per_second", self._tokens / self._seconds, batch_size=1)
            pl_module.log("perf/peak_memory_gib", peak_memory_gib(pl_module.device), batch_size=1)
            self._tokens, self._seconds = 0, 0.0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Compute and log the gradient norm on the steps that are logged."""
        if _is_logged(trainer, trainer.global_step + 1):
            pl_module.log("train/grad_norm", gradient_norm(optimizer), batch_size=1)


def gradient_norm(optimizer: Optimizer) -> float:
    """Return the 2-norm over all gradients of an optimiser's parameters, however they are sharded."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return float(total_norm(gradients))


def _is_logged(trainer: Trainer, step: int) -> bool:
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it outside of the class
    return step % interval == 0
