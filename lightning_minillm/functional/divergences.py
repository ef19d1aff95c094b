"""Divergences between the next-token distributions of a student q and a teacher p.

Every function takes logits ``[N, V]`` and returns ``[N]`` in nats, 0 where both are equal, never NaN for finite
logits: mixtures are taken in log space. Gradients flow into whatever requires them.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl_divergence(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) from log-probabilities ``[N, V]``; entries with a = 0 count 0. Returns ``[N]``."""
    return (log_a.exp() * (log_a - log_b)).masked_fill(log_a == -math.inf, 0).sum(-1)


def log_mixture(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """log(weight a + (1 - weight) b) from log-probabilities ``[N, V]``; ``weight`` in [0, 1).

    An id that neither allows stays at ``-inf``, without a NaN in its gradient.
    """
    if weight == 0:
        return log_b
    nowhere = (log_a == -math.inf) & (log_b == -math.inf)
    log_a, log_b = log_a.masked_fill(nowhere, 0), log_b.masked_fill(nowhere, 0)
    mixed = torch.logaddexp(log_a + math.log(weight), log_b + math.log1p(-weight))
    return mixed.masked_fill(nowhere, -math.inf)


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student): covers all of the teacher's modes.

    Args:
        student_logits: ``[N, V]``.
        teacher_logits: ``[N, V]``.

    Returns:
        ``[N]``, at least 0 up to rounding.

    Example:
        >>> forward_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])).item()
        0.0
    """
    return kl_divergence(teacher_logits.log_softmax(-1), student_logits.log_softmax(-1))


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student || teacher): seeks the teacher's main modes (MiniLLM, arXiv 2306.08543, eq. 1).

    Args:
        student_logits: ``[N, V]``.
        teacher_logits: ``[N, V]``.

    Returns:
        ``[N]``, at least 0 up to rounding.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> reverse_kl(logits, logits).item()
        0.0
    """
    return kl_divergence(student_logits.log_softmax(-1), teacher_logits.log_softmax(-1))


def skewed_forward_kl(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q), the skew KL of DistiLLM (arXiv 2402.03898, section 3.1).

    Mixing the teacher in keeps gradients small where the student gives a token next to nothing.

    Args:
        student_logits: ``[N, V]``, q.
        teacher_logits: ``[N, V]``, p.
        alpha: share of the teacher in the mixture, in [0, 1); 0 is the forward KL. The paper uses 0.1.

    Returns:
        ``[N]`` in ``[0, -log alpha]``.

    Raises:
        ValueError: alpha outside [0, 1).

    Example:
        >>> value = skewed_forward_kl(torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]]), alpha=0.1)
        >>> round(value.item(), 4)  # -log 0.1
        2.3026
    """
    return _skewed_kl(teacher_logits.log_softmax(-1), student_logits.log_softmax(-1), alpha)


def skewed_reverse_kl(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(q || alpha q + (1 - alpha) p), the skew reverse KL of DistiLLM (arXiv 2402.03898, section 3.1).

    Args:
        student_logits: ``[N, V]``, q.
        teacher_logits: ``[N, V]``, p.
        alpha: share of the student in the mixture, in [0, 1); 0 is the reverse KL. The paper uses 0.1.

    Returns:
        ``[N]`` in ``[0, -log alpha]``.

    Raises:
        ValueError: alpha outside [0, 1).

    Example:
        >>> value = skewed_reverse_kl(torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]]), alpha=0.1)
        >>> round(value.item(), 4)
        2.3026
    """
    return _skewed_kl(student_logits.log_softmax(-1), teacher_logits.log_softmax(-1), alpha)


def _skewed_kl(log_a: Tensor, log_b: Tensor, alpha: float) -> Tensor:
    return kl_divergence(log_a, log_mixture(log_a, log_b, check_skew(alpha)))


def check_skew(alpha: float) -> float:
    """Return alpha, the skew of a KL, if it is allowed.

    Raises:
        ValueError: alpha outside [0, 1).
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be in [0, 1), got {alpha}; at 1 the divergence is 0 whatever the student is")
    return alpha


def jeffreys(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p), the symmetric divergence of Jeffreys (1946, doi 10.1098/rspa.1946.0056).

    Args:
        student_logits: ``[N, V]``, q.
        teacher_logits: ``[N, V]``, p.

    Returns:
        ``[N]``, at least 0 up to rounding.

    Example:
        >>> value = jeffreys(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
        >>> round(value.item(), 4)  # 0.25 log 3
        0.2747
    """
    log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return kl_divergence(log_p, log_q) + kl_divergence(log_q, log_p)


def total_variation(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1/2 sum |p - q|, the total variation distance (f-distill, arXiv 2307.15190, section 3).

    Args:
        student_logits: ``[N, V]``, q.
        teacher_logits: ``[N, V]``, p.

    Returns:
        ``[N]`` in ``[0, 1]``. A student that is sure of a different token than the teacher gets hardly any gradient.

    Example:
        >>> value = total_variation(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
        >>> round(value.item(), 4)
        0.25
    """
    return (teacher_logits.softmax(-1) - student_logits.softmax(-1)).abs().sum(-1) / 2


def generalized_jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649, eq. 1).

    beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

    Args:
        student_logits: ``[N, V]``, q.
        teacher_logits: ``[N, V]``, p.
        beta: weight of the teacher, strictly inside (0, 1). At the ends it is 0 whatever p and q are; the
            Kullback-Leibler divergences are functions of their own.

    Returns:
        ``[N]`` in ``[0, log 2]``.

    Raises:
        ValueError: beta outside (0, 1).

    Example:
        >>> generalized_jsd(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), beta=0.3).abs().item() < 1e-7
        True
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must be strictly inside (0, 1), got {beta}; use forward_kl or reverse_kl for the ends")
    log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    log_m = log_mixture(log_p, log_q, beta)
    return beta * kl_divergence(log_p, log_m) + (1 - beta) * kl_divergence(log_q, log_m)


def cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """-sum p log q: the forward KL plus the teacher's entropy, so the same gradient for the student.

    Not a divergence (its value at q = p is the entropy). The official code logs this one as its KD loss.

    Args:
        student_logits: ``[N, V]``, q.
        teacher_logits: ``[N, V]``, p.

    Returns:
        ``[N]``, at least 0.

    Example:
        >>> round(cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2)).item(), 4)
        0.6931
    """
    return -(teacher_logits.softmax(-1) * student_logits.log_softmax(-1)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """-sum q log q.

    Args:
        logits: ``[N, V]``.

    Returns:
        ``[N]`` in ``[0, log V]``.

    Example:
        >>> round(entropy(torch.zeros(1, 2)).item(), 4)
        0.6931
    """
    log_q = logits.log_softmax(-1)
    return -(log_q.exp() * log_q).masked_fill(log_q == -math.inf, 0).sum(-1)
