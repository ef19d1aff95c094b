"""Divergences between teacher and student as losses: each names the function it averages over target tokens.

The legend of all formulas: p teacher, q student, both over the shared vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from torch import Tensor

from lightning_minillm.functional import divergences
from lightning_minillm.losses.base import TokenLoss
from lightning_minillm.losses.chunking import ChunkSize
from lightning_minillm.types import TokenSignals, TokenValues


def logits_of(signals: TokenSignals) -> tuple[Tensor, Tensor]:
    """Return the logits ``[N, V]`` of student and teacher."""
    assert signals.teacher_logits is not None  # TokenLoss.forward has checked it
    return signals.student_logits, signals.teacher_logits


class _OfBothLogits:
    """The value of a token is a divergence of the two logits ``[N, V]``, and depends on nothing else."""

    is_divergence: ClassVar[bool] = True
    function: Callable[..., Tensor]

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the divergence of each token."""
        return TokenValues(self.function(*logits_of(signals)))


class ForwardKL(_OfBothLogits, TokenLoss):
    """KL(p || q): word-level distillation (Hinton et al., arXiv 1503.02531)."""

    function = staticmethod(divergences.forward_kl)


class ReverseKL(_OfBothLogits, TokenLoss):
    """KL(q || p), exact over the vocabulary (MiniLLM, arXiv 2306.08543)."""

    function = staticmethod(divergences.reverse_kl)


class SkewedForwardKL(_OfBothLogits, TokenLoss):
    """KL(p || alpha p + (1 - alpha) q): the loss of DistiLLM (arXiv 2402.03898).

    Args:
        alpha: weight of the teacher in the mixture, in [0, 1); 0 is the forward KL.
    """

    def __init__(self, alpha: float = 0.1, chunk_size: ChunkSize = "auto") -> None:
        super().__init__(chunk_size)
        self.function = partial(divergences.skewed_forward_kl, alpha=divergences.check_skew(alpha))


class SkewedReverseKL(_OfBothLogits, TokenLoss):
    """KL(q || alpha q + (1 - alpha) p): the other loss of DistiLLM (arXiv 2402.03898).

    Args:
        alpha: weight of the student in the mixture, in [0, 1); 0 is the reverse KL.
    """

    def __init__(self, alpha: float = 0.1, chunk_size: ChunkSize = "auto") -> None:
        super().__init__(chunk_size)
        self.function = partial(divergences.skewed_reverse_kl, alpha=divergences.check_skew(alpha))


class GeneralizedJSD(_OfBothLogits, TokenLoss):
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD, arXiv 2306.13649).

    Args:
        beta: weight of the teacher in the mixture, strictly inside (0, 1).
    """

    def __init__(self, beta: float = 0.5, chunk_size: ChunkSize = "auto") -> None:
        super().__init__(chunk_size)
        if not 0 < beta < 1:
            raise ValueError(f"beta must be strictly between 0 and 1, got {beta}; use ForwardKL or ReverseKL instead")
        self.function = partial(divergences.generalized_jsd, beta=beta)


class Jeffreys(_OfBothLogits, TokenLoss):
    """KL(p || q) + KL(q || p) (Jeffreys 1946): symmetric, and at least as large as either of the two."""

    function = staticmethod(divergences.jeffreys)


class TotalVariation(_OfBothLogits, TokenLoss):
    """1/2 sum |p - q| (f-distill, arXiv 2307.15190): bounded, and insensitive to tokens that both find unlikely."""

    function = staticmethod(divergences.total_variation)


class AdaptiveKL(_OfBothLogits, TokenLoss):
    """w KL(p || q) + (1 - w) KL(q || p), where w is the head's share of |p - q| (AKL, arXiv 2404.02657).

    The head consists of the teacher's most probable tokens. w is computed per target token and carries no gradient.

    Args:
        head_mass: mu in (0, 1), the largest probability that the teacher gives to the head as a whole.
    """

    def __init__(self, head_mass: float = 0.5, chunk_size: ChunkSize = "auto") -> None:
        super().__init__(chunk_size)
        divergences.check_head_mass(head_mass)
        self.function = partial(divergences.adaptive_kl, head_mass=head_mass)


class AlphaBetaDivergence(_OfBothLogits, TokenLoss):
    """-1 / (alpha beta) sum [p^alpha q^beta - alpha / s p^s - beta / s q^s], s = alpha + beta (ABKD, arXiv 2505.04560).

    Args:
        alpha: exponent of the teacher, at least 0; (1, 0) is the forward KL.
        beta: exponent of the student, at least 0; (0, 1) is the reverse KL.

    Raises:
        ValueError: a negative exponent, or both 0.
    """

    def __init__(self, alpha: float = 0.2, beta: float = 0.7, chunk_size: ChunkSize = "auto") -> None:
        super().__init__(chunk_size)
        divergences.check_exponents(alpha, beta)
        self.function = partial(divergences.alpha_beta_divergence, alpha=alpha, beta=beta)


class TeacherCrossEntropy(TokenLoss):
    """-sum p log q: the gradient of the forward KL, and the value that the official code logs as ``ds_loss``."""

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return the cross-entropy of each token."""
        value = divergences.cross_entropy(*logits_of(signals))
        return TokenValues(value, {"teacher_cross_entropy": value})
