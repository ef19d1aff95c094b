"""The checkpoint of the best validation, also where the monitored metric is always 0."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint of the best validation, with a second metric for those at which the first is 0.

    A score such as Rouge-L is 0 at every validation if the student has not learnt anything it can see yet, or if it
    cannot see the text at all; the first checkpoint would then count as the best. As long as the monitored metric was 0
    at every validation, the one with the lowest ``fallback`` is kept, which a warning says. As soon as the metric is
    above 0, it alone decides.

    Args:
        fallback: a logged metric of which the lowest value is the best; ``None`` for Lightning's behaviour.
        options: of :class:`lightning.pytorch.callbacks.ModelCheckpoint`; the fallback applies to ``mode="max"`` with
            one checkpoint.
    """

    def __init__(self, *, fallback: str | None = "val/loss", **options: Any) -> None:
        super().__init__(**options)
        self.fallback = fallback if self.mode == "max" and self.save_top_k == 1 else None
        self.fallback_score: float | None = None
        """Value of the fallback in the kept checkpoint, if that was chosen by it."""
        self._has_warned = False

    @property
    def state_key(self) -> str:
        """The key of Lightning's class, so that a run which began with that resumes with this."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether this validation is the best so far."""
        other = trainer.callback_metrics.get(self.fallback) if self.fallback is not None else None
        if current is None or other is None:
            return bool(super().check_monitor_top_k(trainer, current))
        known, value = self.fallback_score, float(other)
        is_first = not self.best_k_models
        if bool(current != 0) or not (is_first or known is not None):  # the metric decides
            is_best = bool(super().check_monitor_top_k(trainer, current))
            self.fallback_score = None if is_best else known
            return is_best
        is_best = trainer.strategy.reduce_boolean_decision(is_first or known is None or value < known)
        if is_best:
            self.fallback_score = value
        if not is_first and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"{self.monitor} is 0 at every validation so far: until it is not, the checkpoint with the lowest"
                f" {self.fallback} is kept as the best"
            )
        return bool(is_best)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of Lightning's class and the value of the fallback."""
        return {**super().state_dict(), "fallback_score": self.fallback_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        super().load_state_dict(state_dict)
        self.fallback_score = state_dict.get("fallback_score")
