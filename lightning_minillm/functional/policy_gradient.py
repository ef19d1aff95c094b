"""Importance weights and the clipped surrogate of the policy gradient.

Legend: any shape, the same for all arguments of one call.
"""

from __future__ import annotations

import torch
from torch import Tensor


def importance_weights(student_logprobs: Tensor, mixture_logprobs: Tensor, mask: Tensor) -> Tensor:
    """w_t = q(y_t) / mu(y_t) for tokens sampled from mu (paper, eq. 4, per token as the paper approximates it).

    Args:
        student_logprobs: log q at the time of sampling.
        mixture_logprobs: log mu, of the distribution that was sampled from.
        mask: bool.

    Returns:
        Weights without gradient, in (0, 1 / (1 - alpha)] for an unfiltered mixture; 1 where masked.

    Example:
        >>> importance_weights(torch.tensor([-1.0]), torch.tensor([-1.0]), torch.tensor([True])).item()
        1.0
    """
    return (student_logprobs - mixture_logprobs).masked_fill(~mask, 0).exp().detach()


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic loss per token: max(-A rho, -A clip(rho, 1 - eps, 1 + eps)).

    Args:
        ratio: rho = exp(log q_now - log q_then) w, with gradient.
        advantages: A; higher is better; any gradient it carries is dropped.
        clip_range: eps > 0 (official 0.2).

    Returns:
        Loss (to be minimised) and a bool tensor, ``True`` where the clipped branch is the larger one, so that the
        token gives no gradient.

    Raises:
        ValueError: eps is not positive.

    Example:
        >>> loss, clipped = clipped_surrogate(torch.tensor([1.5]), torch.tensor([1.0]), 0.2)
        >>> round(loss.item(), 4), clipped.item()
        (-1.2, True)
    """
    if clip_range <= 0:
        raise ValueError(f"clip_range must be positive, got {clip_range}")
    advantages = advantages.detach()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(plain, clipped), clipped > plain
