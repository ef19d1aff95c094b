"""From token rewards to advantages (MiniLLM, arXiv 2306.08543, section 2.2; official minillm/losses.py).

Legend: B rows, T response tokens. Everything is float32 at least and carries no gradient that is not asked for.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_minillm.functional.precision import near_float64

ReturnStart = Literal["current", "next"]
Whitening = Literal["none", "response", "all"]


def token_rewards(
    teacher_logprobs: Tensor,
    student_logprobs: Tensor,
    mask: Tensor,
    scaling: float | None = None,
    clip: float | None = None,
) -> Tensor:
    """r_t = log p(y_t) - log q(y_t): high where the teacher likes a token better than the student does.

    Args:
        teacher_logprobs: ``[B, T]``, log p.
        student_logprobs: ``[B, T]``, log q of the student that sampled.
        mask: ``[B, T]`` bool.
        scaling: the reward is divided by it (official 0.5), or ``None``.
        clip: the scaled reward is clipped to +-clip (official 100), or ``None`` / 0 for no clipping.

    Returns:
        ``[B, T]`` float32; 0 where masked.

    Raises:
        ValueError: scaling is not positive, or clip is negative.

    Example:
        >>> token_rewards(torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), torch.tensor([[True]]), scaling=0.5).item()
        4.0
    """
    if scaling is not None and scaling <= 0:
        raise ValueError(f"reward_scaling must be positive or null, got {scaling}")
    if clip is not None and clip < 0:
        raise ValueError(f"reward_clip must be positive, or 0 or null for none, got {clip}")
    rewards = (teacher_logprobs - student_logprobs).masked_fill(~mask, 0)
    if scaling is not None:
        rewards = rewards / scaling
    return rewards.clamp(-clip, clip) if clip else rewards


def discounted_returns(
    rewards: Tensor, mask: Tensor, gamma: float = 1.0, start: ReturnStart = "current", length_normalize: bool = True
) -> Tensor:
    """R_t = r_t + gamma R_{t+1}, by the reverse recurrence, divided by the tokens left.

    Args:
        rewards: ``[B, T]``; what is masked has no effect.
        mask: ``[B, T]`` bool, a run of ``True`` from the left.
        gamma: discount in [0, 1]; the paper has none (1), the official code 0.95.
        start: ``"current"`` sums from r_t (official code); ``"next"`` from r_{t+1}, since r_t is covered exactly by
            the single-step term (paper, eq. 5).
        length_normalize: divide by the number of rewards in the undiscounted sum: the tokens left, t included for
            ``"current"`` (official) and excluded for ``"next"`` (paper, eq. 6), at least 1.

    Returns:
        ``[B, T]``; 0 where masked.

    Raises:
        ValueError: gamma outside [0, 1] or an unknown start.

    Example:
        >>> rewards, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, True, True]])
        >>> discounted_returns(rewards, mask).tolist()
        [[2.0, 2.5, 3.0]]
        >>> discounted_returns(rewards, mask, start="next").tolist()
        [[2.5, 3.0, 0.0]]
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}")
    if start not in ("current", "next"):
        raise ValueError(f"return_start must be 'current' or 'next', got {start!r}")
    rewards = rewards.masked_fill(~mask, 0)
    returns = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = running
        running = rewards[:, t] + gamma * running
        returns[:, t] = running if start == "current" else following
    if length_normalize:
        left = mask.flip(-1).cumsum(-1).flip(-1)
        returns = returns / (left if start == "current" else left - 1).clamp_min(1)
    return returns.masked_fill(~mask, 0)


def whitening_sums(returns: Tensor, mask: Tensor, mode: Whitening, width: int | None = None) -> Tensor:
    """Count, sum and sum of squares that whitening needs; add them over ranks and micro-batches.

    Args:
        returns: ``[B, T]``; what is masked counts as 0.
        mask: ``[B, T]`` bool.
        mode: ``"response"`` counts valid tokens, ``"all"`` every position, padding too (official code).
        width: columns to count per row for ``"all"``: the maximum response length, so that trimming a batch
            changes nothing. ``None`` means T.

    Returns:
        ``[3]`` float64; on the CPU if the device has no float64.
    """
    returns, mask = near_float64(returns), near_float64(mask)
    values = returns.double().masked_fill(~mask, 0)
    count = mask.sum() if mode == "response" else torch.tensor(returns.shape[0] * (width or returns.shape[1]))
    return torch.stack([count.to(values), values.sum(), values.square().sum()])


def whiten(returns: Tensor, sums: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Shift and scale to mean 0 and (biased) variance 1 under the given statistics.

    Args:
        returns: ``[B, T]``.
        sums: ``[3]`` float64 from :func:`whitening_sums`, summed over whatever shares the statistics.
        epsilon: added to the variance (official 1e-8).

    Returns:
        ``[B, T]``; masked positions hold what the official code has there, (0 - mean) / deviation.

    Raises:
        ValueError: the statistics count no element.

    Example:
        >>> x = torch.tensor([[1.0, 3.0]])
        >>> whiten(x, whitening_sums(x, torch.ones_like(x).bool(), "response")).round().tolist()
        [[-1.0, 1.0]]
    """
    count, total, squares = sums.unbind()
    if count == 0:
        raise ValueError("whitening over no element: every response of the optimiser step is empty")
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    return ((near_float64(returns).double() - mean) * (variance + epsilon).rsqrt()).to(returns.dtype).to(returns.device)
