"""Single-sample estimators of KL(q || p) from log-probabilities of tokens drawn from q.

The names k1, k2, k3 are John Schulman's ("Approximating KL divergence", 2020). Legend: any shape.
"""

from __future__ import annotations

from torch import Tensor


def k1(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """Log q - log p: unbiased, can be negative."""
    return student_logprobs - teacher_logprobs


def k2(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """(log q - log p)^2 / 2: biased, low variance, at least 0."""
    return (student_logprobs - teacher_logprobs).square() / 2


def k3(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """p/q - 1 - log(p/q): unbiased, at least 0. What the official code logs as ``rev_kl`` (utils.get_rev_kl)."""
    log_ratio = teacher_logprobs - student_logprobs
    return log_ratio.exp() - 1 - log_ratio
