"""Exposure bias as a metric over rows and ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_minillm._reach import keep_float64
from lightning_minillm.functional.exposure_bias import accumulated_error, exposure_bias_curves


@keep_float64
class ExposureBias(Metric):
    """Accumulated regret, oracle error and excess accumulated error of every length up to ``num_lengths``.

    Both expectations are means over all rows and ranks of sums over steps; the quotient is taken last, of the means.

    Args:
        num_lengths: L, the maximum number of response tokens; at least 1.
        options: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: ``num_lengths`` is below 1.
    """

    full_state_update = False
    higher_is_better = False
    regret: Tensor
    oracle_error: Tensor
    count: Tensor

    def __init__(self, num_lengths: int, **options: Any) -> None:
        super().__init__(**options)
        if num_lengths < 1:
            raise ValueError(f"num_lengths must be at least 1, got {num_lengths}")
        self.num_lengths = num_lengths
        for name, shape in (("regret", (num_lengths,)), ("oracle_error", (num_lengths,)), ("count", ())):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, student: Tensor, student_mask: Tensor, teacher: Tensor, teacher_mask: Tensor) -> None:
        """Add B prompts.

        Args:
            student: ``[B, T]`` KL(teacher || student) after each prefix of text written by the student.
            student_mask: ``[B, T]`` bool.
            teacher: ``[B, T']`` the same on text written by the teacher for the same prompts.
            teacher_mask: ``[B, T']`` bool.

        Raises:
            ValueError: the numbers of rows differ, or responses are longer than ``num_lengths``.
        """
        if len(student) != len(teacher):
            raise ValueError(f"{len(student)} rows of student text and {len(teacher)} of teacher text: give pairs")
        self.regret += accumulated_error(student, student_mask, self.num_lengths).sum(0)
        self.oracle_error += accumulated_error(teacher, teacher_mask, self.num_lengths).sum(0)
        self.count += len(student)

    def compute(self) -> dict[str, Tensor]:
        """Return ``regret`` R(l), ``epsilon`` eps(l) (nats) and ``excess_error`` (percent), each ``[L]`` float64."""
        return exposure_bias_curves(self.regret / self.count, self.oracle_error / self.count)
