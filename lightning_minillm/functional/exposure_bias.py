"""Exposure bias: how errors accumulate on a student's own text (MiniLLM, section 3.3, after Arora et al. 2022).

Legend: B rows, T response tokens, L lengths.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING = 1e-6
"""Nats per step; smaller differences are treated as rounding errors."""


def accumulated_error(errors: Tensor, mask: Tensor, num_lengths: int) -> Tensor:
    """Sum the errors of each row up to every length; a response that has ended adds nothing.

    A response that has ended has only one continuation under both models, so that its error is 0. The expectation over
    prefixes therefore includes ended rows with 0.

    Args:
        errors: ``[B, T]`` nats, KL(teacher || student) of the next token after the prefix ``y_{<t}``.
        mask: ``[B, T]`` bool, a run of ``True`` from the left; masked values have no effect, even NaN.
        num_lengths: L, at least T.

    Returns:
        ``[B, L]`` float64; column ``l - 1`` holds the sum over ``t <= l``.

    Raises:
        ValueError: a response is longer than ``num_lengths``.

    Example:
        >>> accumulated_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, True]]), 3).tolist()
        [[1.0, 3.0, 3.0]]
    """
    if errors.shape[1] > num_lengths:
        raise ValueError(
            f"num_lengths must be at least the {errors.shape[1]} tokens of the responses, got {num_lengths}"
        )
    steps = torch.zeros(len(errors), num_lengths, dtype=torch.float64, device=errors.device)
    steps[:, : errors.shape[1]] = errors.double().masked_fill(~mask, 0)
    return steps.cumsum(-1)


def excess_accumulated_error(regret: Tensor, oracle_error: Tensor) -> Tensor:
    """ExAccErr(l) = (R(l) - l eps(l)) / (l eps(l)) * 100 (MiniLLM, section 3.3).

    R(l) = sum_{t <= l} E_{y_{<t} ~ student} KL(p(.|y_{<t}, x) || q(.|y_{<t}, x)) is the accumulated regret of imitating
    the teacher p when the student q writes the prefixes; l eps(l) is the same sum with prefixes that the teacher
    writes. At 0, errors do not accumulate; a positive value means that the student errs more on its own text than on
    the teacher's.

    Args:
        regret: ``[L]`` nats, R(l), at least 0.
        oracle_error: ``[L]`` nats, l eps(l), at least 0.

    Returns:
        ``[L]`` percent. 0 where both are equal up to rounding (also 0 / 0, for a student that equals its teacher);
        infinite where the error is 0 on the teacher's prefixes only.

    Example:
        >>> excess_accumulated_error(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 2.0])).tolist()
        [0.0, 50.0]
    """
    steps = torch.arange(1, len(regret) + 1, device=regret.device)
    difference = regret - oracle_error
    percent = 100 * difference / oracle_error
    return percent.masked_fill(difference.abs() <= _ROUNDING * steps, 0)
