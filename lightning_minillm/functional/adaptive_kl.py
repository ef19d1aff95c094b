"""Forward and reverse KL, weighted by where student and teacher differ.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from lightning_minillm.functional.divergences import forward_kl, reverse_kl


def adaptive_kl(student_logits: Tensor, teacher_logits: Tensor, head_mass: float = 0.5) -> Tensor:
    """Adaptive KL (AKL, arXiv 2404.02657, section 4): w KL(p || q) + (1 - w) KL(q || p).

    w = g_head / (g_head + g_tail), where g sums |p - q| over the head, the teacher's most probable tokens that together
    hold at most ``head_mass`` (always the first), or over the tail, all others. The forward KL corrects the head
    sooner, the reverse KL the tail. w carries no gradient.

    Args:
        student_logits: ``[N, V]``, q.
        teacher_logits: ``[N, V]``, p.
        head_mass: mu in (0, 1); the paper uses 0.5.

    Returns:
        ``[N]``, at least 0 up to rounding.

    Raises:
        ValueError: head_mass outside (0, 1).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> adaptive_kl(logits, logits).abs().item() < 1e-6
        True
    """
    check_head_mass(head_mass)
    weight = head_weight(student_logits.detach(), teacher_logits.detach(), head_mass)
    return weight * forward_kl(student_logits, teacher_logits) + (1 - weight) * reverse_kl(
        student_logits, teacher_logits
    )


def head_weight(student_logits: Tensor, teacher_logits: Tensor, head_mass: float) -> Tensor:
    """Share ``[N]`` in [0, 1] of the difference that is in the teacher's head; 1/2 if there is no difference."""
    probabilities, order = teacher_logits.softmax(-1).sort(dim=-1, descending=True)
    gaps = (probabilities - student_logits.softmax(-1).gather(-1, order)).abs()
    is_head = probabilities.cumsum(-1) <= head_mass
    is_head[..., 0] = True
    head, total = gaps.masked_fill(~is_head, 0).sum(-1), gaps.sum(-1)
    return (head / total).masked_fill(total == 0, 0.5)


def check_head_mass(head_mass: float) -> None:
    """Refuse a head that is everything or nothing.

    Raises:
        ValueError: head_mass outside (0, 1).
    """
    if not 0 < head_mass < 1:
        raise ValueError(f"head_mass must be inside (0, 1), got {head_mass}; use forward_kl or reverse_kl at the ends")
