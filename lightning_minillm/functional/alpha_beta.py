"""The alpha-beta divergence, a plane of divergences with both Kullback-Leibler divergences in it.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def alpha_beta_divergence(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.2, beta: float = 0.7
) -> Tensor:
    """Alpha-beta divergence (ABKD, arXiv 2505.04560, definition of D_AB; Cichocki et al., doi 10.3390/e13010134).

    -1 / (alpha beta) sum [p^alpha q^beta - alpha / s p^s - beta / s q^s] with s = alpha + beta, and its limits where an
    exponent is 0: (1, 0) is the forward KL, (0, 1) the reverse KL, (1/2, 1/2) four times the squared Hellinger
    distance.

    It is computed as a sum of terms that are each at least 0, so that little is lost where p and q are close.

    Args:
        student_logits: ``[N, V]``, q.
        teacher_logits: ``[N, V]``, p.
        alpha: at least 0; small values weigh all errors alike, large ones those on tokens that the teacher likes.
        beta: at least 0; large values weigh the errors on tokens that the student is sure of.

    Returns:
        ``[N]``, at least 0 up to rounding.

    Raises:
        ValueError: a negative exponent, which a probability that underflows would make infinite; or both 0.

    Example:
        >>> q, p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> round(alpha_beta_divergence(q, p, alpha=1.0, beta=1.0).item(), 6)  # 1/2 sum (p - q)^2
        0.0625
    """
    check_exponents(alpha, beta)
    log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    nowhere = (log_p == -math.inf) & (log_q == -math.inf)
    log_p, log_q = log_p.masked_fill(nowhere, 0), log_q.masked_fill(nowhere, 0)
    if beta == 0:
        return _limit(alpha * log_p, alpha * log_q).sum(-1) / alpha**2
    if alpha == 0:
        return _limit(beta * log_q, beta * log_p).sum(-1) / beta**2
    power = alpha + beta
    difference = power * (log_q - log_p)
    # the mean's weight of the smaller of p^s and q^s; the larger is taken out, so that nothing overflows
    weight = beta / power + (alpha - beta) / power * (difference > 0).to(difference.dtype)
    larger = power * torch.maximum(log_p, log_q)
    gap = -difference.abs()
    terms = larger.exp() * (weight * torch.expm1(gap) - torch.expm1(weight * gap))
    return terms.sum(-1) / (alpha * beta)


def check_exponents(alpha: float, beta: float) -> None:
    """Refuse exponents for which the divergence is not finite.

    Raises:
        ValueError: see :func:`alpha_beta_divergence`.
    """
    if alpha < 0 or beta < 0 or alpha + beta == 0:
        raise ValueError(f"alpha and beta must be at least 0, and not both 0; got alpha={alpha}, beta={beta}")


def _limit(log_a: Tensor, log_b: Tensor) -> Tensor:
    """A log(A / B) - A + B, elementwise; entries with A = 0 count B."""
    a = log_a.exp()
    return (a * (log_a - log_b)).masked_fill(log_a == -math.inf, 0) - a + log_b.exp()
