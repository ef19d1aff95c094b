"""Divergences between the next-token distributions of a student q and a teacher p.

Every divergence takes the logits ``[N, V]`` of both and returns ``[N]`` in nats: at least 0 up to rounding, 0 where
both are equal, never NaN for finite logits, since mixtures are taken in log space. Gradients flow into whatever
requires them.

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

    Example:
        >>> forward_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])).item()
        0.0
    """
    return kl_divergence(teacher_logits.log_softmax(-1), student_logits.log_softmax(-1))


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student || teacher): seeks the teacher's main modes (MiniLLM, arXiv 2306.08543, eq. 1).

    Example:
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> reverse_kl(logits, logits).item()
        0.0
    """
    return forward_kl(teacher_logits, student_logits)


def skewed_forward_kl(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q), the skew KL of DistiLLM (arXiv 2402.03898, section 3.1).

    Mixing the teacher in keeps gradients small where the student gives a token next to nothing. ``alpha``, its share in
    the mixture, is in [0, 1); 0 is the forward KL, the paper uses 0.1.

    Returns:
        ``[N]`` in ``[0, -log alpha]``.

    Raises:
        ValueError: alpha outside [0, 1).

    Example:
        >>> value = skewed_forward_kl(torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]]), alpha=0.1)
        >>> round(value.item(), 4)  # -log 0.1
        2.3026
    """
    log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return kl_divergence(log_p, log_mixture(log_p, log_q, check_skew(alpha)))


def skewed_reverse_kl(student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(q || alpha q + (1 - alpha) p), the skew reverse KL of DistiLLM (arXiv 2402.03898, section 3.1).

    ``alpha``, the share of the student in the mixture, is in [0, 1); 0 is the reverse KL, the paper uses 0.1.

    Returns:
        ``[N]`` in ``[0, -log alpha]``.

    Raises:
        ValueError: alpha outside [0, 1).

    Example:
        >>> value = skewed_reverse_kl(torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]]), alpha=0.1)
        >>> round(value.item(), 4)
        2.3026
    """
    return skewed_forward_kl(teacher_logits, student_logits, alpha)


def check_skew(alpha: float) -> float:
    """Return alpha, the skew of a KL; raise a ValueError if it is outside [0, 1)."""
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be in [0, 1), got {alpha}; at 1 the divergence is 0 whatever the student is")
    return alpha


def jeffreys(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p), the symmetric divergence of Jeffreys (1946, doi 10.1098/rspa.1946.0056).

    Example:
        >>> value = jeffreys(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
        >>> round(value.item(), 4)  # 0.25 log 3
        0.2747
    """
    log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return kl_divergence(log_p, log_q) + kl_divergence(log_q, log_p)


def total_variation(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1/2 sum |p - q|, the total variation distance (f-distill, arXiv 2307.15190, section 3).

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

    beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q. ``beta`` is strictly inside (0, 1): at the
    ends the value is 0 whatever p and q are, and the Kullback-Leibler divergences are functions of their own.

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

    Example:
        >>> round(cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2)).item(), 4)
        0.6931
    """
    return -(teacher_logits.softmax(-1) * student_logits.log_softmax(-1)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """-sum q log q of one distribution: ``[N]`` in ``[0, log V]``.

    Example:
        >>> round(entropy(torch.zeros(1, 2)).item(), 4)
        0.6931
    """
    log_q = logits.log_softmax(-1)
    return -(log_q.exp() * log_q).masked_fill(log_q == -math.inf, 0).sum(-1)


def adaptive_kl(student_logits: Tensor, teacher_logits: Tensor, head_mass: float = 0.5) -> Tensor:
    """Adaptive KL (AKL, arXiv 2404.02657, section 4): w KL(p || q) + (1 - w) KL(q || p).

    w = g_head / (g_head + g_tail), where g sums |p - q| over the head, the teacher's most probable tokens that together
    hold at most ``head_mass`` (always the first), or over the tail, all others. The forward KL corrects the head
    sooner, the reverse KL the tail. w carries no gradient. ``head_mass`` is in (0, 1); the paper uses 0.5.

    Raises:
        ValueError: head_mass outside (0, 1).

    Example:
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> adaptive_kl(logits, logits).abs().item() < 1e-6
        True
    """
    check_head_mass(head_mass)
    weight = head_weight(student_logits.detach(), teacher_logits.detach(), head_mass)
    logits = (student_logits, teacher_logits)
    return weight * forward_kl(*logits) + (1 - weight) * reverse_kl(*logits)


def head_weight(student_logits: Tensor, teacher_logits: Tensor, head_mass: float) -> Tensor:
    """Share ``[N]`` in [0, 1] of the difference that is in the teacher's head; 1/2 if there is no difference."""
    probabilities, order = teacher_logits.softmax(-1).sort(dim=-1, descending=True)
    gaps = (probabilities - student_logits.softmax(-1).gather(-1, order)).abs()
    is_head = probabilities.cumsum(-1) <= head_mass
    is_head[..., 0] = True
    head, total = gaps.masked_fill(~is_head, 0).sum(-1), gaps.sum(-1)
    return (head / total).masked_fill(total == 0, 0.5)


def check_head_mass(head_mass: float) -> None:
    """Raise a ValueError if the head is everything or nothing."""
    if not 0 < head_mass < 1:
        raise ValueError(f"head_mass must be inside (0, 1), got {head_mass}; use forward_kl or reverse_kl at the ends")


def alpha_beta_divergence(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.2, beta: float = 0.7
) -> Tensor:
    """Alpha-beta divergence (ABKD, arXiv 2505.04560, definition of D_AB; Cichocki et al., doi 10.3390/e13010134).

    -1 / (alpha beta) sum [p^alpha q^beta - alpha / s p^s - beta / s q^s] with s = alpha + beta, and its limits where an
    exponent is 0: (1, 0) is the forward KL, (0, 1) the reverse KL, (1/2, 1/2) four times the squared Hellinger
    distance.

    It is computed as a sum of terms that are each at least 0, so that little is lost where p and q are close. Both
    exponents are at least 0. A small ``alpha`` weighs all errors alike, a large one those on tokens that the teacher
    likes; a large ``beta`` weighs the errors on tokens that the student is sure of.

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
    """Raise a ValueError for exponents for which the divergence is not finite."""
    if alpha < 0 or beta < 0 or alpha + beta == 0:
        raise ValueError(f"alpha and beta must be at least 0, and not both 0; got alpha={alpha}, beta={beta}")


def _limit(log_a: Tensor, log_b: Tensor) -> Tensor:
    """A log(A / B) - A + B, elementwise; entries with A = 0 count B."""
    a = log_a.exp()
    return (a * (log_a - log_b)).masked_fill(log_a == -math.inf, 0) - a + log_b.exp()
