"""Exposure bias: how errors pile up on a student's own text (MiniLLM, section 3.3, after Arora et al. 2022).

Legend: B rows, T response tokens, L lengths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_minillm.functional.precision import near_float64

_ROUNDING = 1e-6
"""Nats a step below which a difference is rounding."""


def accumulated_error(errors: Tensor, mask: Tensor, num_lengths: int) -> Tensor:
    """Sum each row's errors up to every length; a response that has ended adds nothing more.

    After its end a response has one continuation under either model, so both agree and the error is 0: the
    expectation over prefixes counts ended rows with 0, and does not leave them out.

    Args:
        errors: ``[B, T]`` nats, KL(teacher || student) of the next token after the prefix ``y_{<t}``.
        mask: ``[B, T]`` bool, a run of ``True`` from the left; values elsewhere have no effect, even NaN.
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
        raise ValueError(f"responses of {errors.shape[1]} tokens do not fit into num_lengths={num_lengths}")
    errors, mask = near_float64(errors), near_float64(mask)
    steps = torch.zeros(len(errors), num_lengths, dtype=torch.float64, device=errors.device)
    steps[:, : errors.shape[1]] = errors.double().masked_fill(~mask, 0)
    return steps.cumsum(-1)


def excess_accumulated_error(regret: Tensor, oracle_error: Tensor) -> Tensor:
    """ExAccErr(l) = (R(l) - l eps(l)) / (l eps(l)) * 100 (MiniLLM, section 3.3).

    R(l) = sum_{t <= l} E_{y_{<t} ~ student} KL(p(.|y_{<t}, x) || q(.|y_{<t}, x)), the accumulated regret of imitating
    the teacher p when the student q writes its own prefixes; l eps(l) is the same sum with prefixes that the teacher
    wrote. 0: errors do not pile up; positive: the student errs more on its own text than on the teacher's.

    Args:
        regret: ``[L]`` nats, R(l), at least 0.
        oracle_error: ``[L]`` nats, l eps(l), at least 0.

    Returns:
        ``[L]`` percent. 0 where both differ by no more than rounding (as for a student that equals its teacher, where
        the quotient would be 0 / 0); infinite where only the teacher's prefixes give no error.

    Example:
        >>> excess_accumulated_error(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 2.0])).tolist()
        [0.0, 50.0]
    """
    steps = torch.arange(1, len(regret) + 1, device=regret.device)
    difference = regret - oracle_error
    percent = 100 * difference / oracle_error
    return percent.masked_fill(difference.abs() <= _ROUNDING * steps, 0)


def exposure_bias_curves(regret: Tensor, oracle_error: Tensor) -> dict[str, Tensor]:
    """Return all curves of exposure bias, from the same input as :func:`excess_accumulated_error`.

    ``regret`` R(l) in nats, ``epsilon`` eps(l) in nats per step and ``excess_error`` in percent, each ``[L]``.

    Example:
        >>> curves = exposure_bias_curves(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]))
        >>> curves["epsilon"].tolist(), curves["excess_error"].tolist()
        ([1.0, 1.0], [0.0, 50.0])
    """
    lengths = torch.arange(1, len(regret) + 1, device=regret.device)
    return {
        "regret": regret,
        "epsilon": oracle_error / lengths,
        "excess_error": excess_accumulated_error(regret, oracle_error),
    }
