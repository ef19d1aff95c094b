"""Single-sample estimators of KL(q || p) from log-probabilities of tokens drawn from q.

The names k1 and k3 are John Schulman's ("Approximating KL divergence", 2020). Legend: any shape.
"""

from __future__ import annotations

from torch import Tensor


def k1(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """Log q - log p: unbiased, can be negative."""
    return student_logprobs - teacher_logprobs


def k3(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """p/q - 1 - log(p/q): unbiased, at least 0; the official code logs it as ``rev_kl`` (utils.get_rev_kl)."""
    log_ratio = teacher_logprobs - student_logprobs
    return log_ratio.exp() - 1 - log_ratio
