"""What the policy-gradient loss needs of student q and teacher p, in few passes over the vocabulary.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class PolicyTerms(NamedTuple):
    """Per-token quantities of two next-token distributions, ``[N]`` each."""

    logprobs: Tensor
    """log q of the target ids, with gradient."""
    reverse_kl: Tensor
    """KL(q || p), exact over the vocabulary, with gradient for q alone."""
    entropy: Tensor
    """-sum q log q, without gradient."""


class _PolicyTerms(torch.autograd.Function):
    """With s the student's logits: d log q(y) / ds = [y] - q and d KL(q || p) / ds = q (log q - log p - KL)."""

    @staticmethod
    def forward(ctx: Any, student_logits: Tensor, target_ids: Tensor, teacher_logits: Tensor) -> tuple[Tensor, ...]:
        log_q = student_logits.log_softmax(-1)
        logprobs = log_q.gather(-1, target_ids[:, None]).squeeze(-1)
        q = log_q.exp()
        impossible = log_q == -math.inf
        # in place: each of these is as large as the logits
        log_p = teacher_logits.log_softmax(-1)
        log_ratio = torch.sub(log_q, log_p, out=log_p).masked_fill_(impossible, 0)
        entropy = -_dot(q, log_q.masked_fill_(impossible, 0))
        reverse_kl = _dot(q, log_ratio)
        ctx.save_for_backward(q, log_ratio, reverse_kl, target_ids)
        ctx.mark_non_differentiable(entropy)
        return logprobs, reverse_kl, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logprobs_gradient: Tensor, reverse_kl_gradient: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        q, log_ratio, reverse_kl, target_ids = ctx.saved_tensors
        constant = reverse_kl * reverse_kl_gradient + logprobs_gradient
        gradient = (log_ratio * reverse_kl_gradient[:, None]).sub_(constant[:, None]).mul_(q)
        return gradient.scatter_add_(-1, target_ids[:, None], logprobs_gradient[:, None]), None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner product ``[N]`` without a product of the size of the rows."""
    return torch.einsum("nv,nv->n", a, b)


def policy_terms(student_logits: Tensor, target_ids: Tensor, teacher_logits: Tensor) -> PolicyTerms:
    """Return log-probabilities of the targets, reverse KL and entropy; equal to computing each by itself.

    The gradient is written out: autograd would pass over the logits about twice as often. It can be differentiated
    once, for the student.

    Args:
        student_logits: ``[N, V]``; ``-inf`` counts 0.
        target_ids: ``[N]`` int64.
        teacher_logits: ``[N, V]``.

    Example:
        >>> terms = policy_terms(torch.zeros(1, 2), torch.tensor([1]), torch.zeros(1, 2))
        >>> [round(value.item(), 4) for value in terms]
        [-0.6931, 0.0, 0.6931]
    """
    terms = _PolicyTerms.apply(student_logits, target_ids, teacher_logits)  # type: ignore[no-untyped-call]
    return PolicyTerms(*terms)
