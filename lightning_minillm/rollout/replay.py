"""DistiLLM's adaptive off-policy text: a buffer of the student's responses that are replayed.

Legend: B rows of a rank, N rows of a phase over all ranks, C rows of the buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from lightning_minillm.checks import check_choice, check_range
from lightning_minillm.rollout.batching import concatenate_rollouts, select_rollouts
from lightning_minillm.rollout.sources import TextRequest, TextSource
from lightning_minillm.types import RolloutBatch

FreshShare = Literal["decreasing", "constant", "increasing"]


class AdaptiveReplay(TextSource):
    """References at first; as validation worsens, more student text, more of it replayed (arXiv 2402.03898).

    With ``probability``, a phase consists of student text. That text is sampled while the buffer has room, and later in
    a share of the cases; otherwise it comes from the buffer, with the prompts it was written for. The defaults are the
    official code's (distillm, finetune.py and its scripts).

    Args:
        probability: of student text at the start, in [0, 1].
        step: by how much a worse validation raises the probability, in (0, 1].
        tolerance: how much worse the validation loss must be, in nats per token, at least 0; compared with the loss at
            the last rise.
        capacity: C, rows that the buffer holds, at least N; the oldest leave first. It is the same on every rank, so
            that what is replayed does not depend on their number.
        fresh: share of student text that is sampled again once the buffer is full: 1 minus the training's progress,
            one half, or the progress.
    """

    def __init__(
        self,
        probability: float = 0.0,
        step: float = 0.1,
        tolerance: float = 0.1,
        capacity: int = 1000,
        fresh: FreshShare = "decreasing",
    ) -> None:
        check_range(0 <= probability <= 1, "probability", "in [0, 1]", probability)
        check_range(0 < step <= 1, "step", "in (0, 1]", step)
        check_range(tolerance >= 0, "tolerance", "at least 0", tolerance)
        check_range(capacity >= 1, "capacity", "at least 1", capacity)
        check_choice("fresh", fresh, FreshShare)
        self.probability = probability
        self.step = step
        self.tolerance = tolerance
        self.capacity = capacity
        self.fresh = fresh
        self._compared_loss: float | None = None
        self._buffer: RolloutBatch | None = None

    def __len__(self) -> int:
        return 0 if self._buffer is None else len(self._buffer)

    def text(self, request: TextRequest) -> RolloutBatch:
        """Return references, fresh student text, or replayed student text.

        Raises:
            ValueError: the buffer is smaller than a phase.
        """
        count = request.total
        if count > self.capacity:
            raise ValueError(f"capacity={self.capacity} rows cannot hold a phase of {count}: set at least {count}")
        draw = request.draw()
        if draw >= self.probability:
            return request.reference(request.prompts)
        done = request.progress
        fresh_share = {"decreasing": 1 - done, "constant": 0.5, "increasing": done}[self.fresh]
        if len(self) < self.capacity or draw < self.probability * fresh_share:
            return self._remember(request.student(request.prompts), request)
        assert self._buffer is not None
        generator = np.random.default_rng((request.seed, request.phase, 2))
        rows = torch.from_numpy(generator.choice(len(self), size=count, replace=False))
        return select_rollouts(self._buffer, request.share(rows)).to(request.prompts.input_ids.device)

    def _remember(self, written: RolloutBatch, request: TextRequest) -> RolloutBatch:
        kept = replace(written.to("cpu"), teacher_logprobs=None, reward_logprobs=None, teacher_hidden=None)
        kept = request.gather(kept)
        joined = kept if self._buffer is None else concatenate_rollouts([self._buffer, kept], pad_token_id=0)
        newest = torch.arange(max(0, len(joined) - self.capacity), len(joined))
        self._buffer = select_rollouts(joined, newest)
        return written

    def on_validation(self, loss: float) -> None:
        """Raise the probability where the loss is worse than at the last rise, or than the first one."""
        if self._compared_loss is None:
            self._compared_loss = loss
        elif loss >= self._compared_loss + self.tolerance:
            self.probability = min(1.0, self.probability + self.step)
            self._compared_loss = loss

    def metrics(self) -> dict[str, float]:
        """Return the probability of student text and the number of rows to replay from."""
        return {"student_probability": self.probability, "replay_rows": float(len(self))}

    def state_dict(self) -> dict[str, Any]:
        """Return the probability, the loss to compare with, and the buffer."""
        buffer = None if self._buffer is None else self._buffer.columns()
        return {"probability": self.probability, "compared_loss": self._compared_loss, "buffer": buffer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.probability, self._compared_loss = state["probability"], state["compared_loss"]
        self._buffer = None if state["buffer"] is None else RolloutBatch.from_columns(state["buffer"])
