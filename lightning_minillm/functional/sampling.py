"""Next-token distributions to sample from, and sampling with given noise.

Legend: A rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def filter_logprobs(logprobs: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Keep the most probable tokens and renormalise.

    Args:
        logprobs: ``[A, V]`` log-probabilities.
        top_k: keep that many; 0 keeps all.
        top_p: keep the smallest set with at least that mass (the most probable token always stays).

    Returns:
        ``[A, V]`` log-probabilities, ``-inf`` for dropped tokens.

    Example:
        >>> filter_logprobs(torch.tensor([[0.5, 0.3, 0.2]]).log(), top_k=1).exp().tolist()
        [[1.0, 0.0, 0.0]]
    """
    if 0 < top_k < logprobs.shape[-1]:
        kth = logprobs.topk(top_k, dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < kth, -math.inf).log_softmax(-1)
    if top_p < 1:
        ordered, order = logprobs.sort(dim=-1, descending=True)
        mass_before = ordered.exp().cumsum(-1) - ordered.exp()
        dropped = torch.zeros_like(mass_before, dtype=torch.bool).scatter(-1, order, mass_before >= top_p)
        logprobs = logprobs.masked_fill(dropped, -math.inf).log_softmax(-1)
    return logprobs


def mixture_logprobs(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """log((1 - alpha) q + alpha p) (paper, eq. 3), in log space.

    Args:
        student: ``[A, V]``, log q.
        teacher: ``[A, V]``, log p.
        alpha: in [0, 1].

    Returns:
        ``[A, V]``.
    """
    if alpha == 0:
        return student
    if alpha == 1:
        return teacher
    return torch.logaddexp(student + math.log1p(-alpha), teacher + math.log(alpha))


def sample_with_noise(logprobs: Tensor, noise: Tensor) -> Tensor:
    """Draw one token a row by the inverse of the cumulative distribution.

    The draw depends on the row's own noise alone: not on its place in the batch, nor on which rows have finished.

    Args:
        logprobs: ``[A, V]`` log-probabilities; ``-inf`` is never drawn.
        noise: ``[A]`` uniform numbers in [0, 1).

    Returns:
        ``[A]`` int64, always a valid index: the last one where ``logprobs`` is not a number.

    Example:
        >>> sample_with_noise(torch.tensor([[0.5, 0.0, 0.5]]).log(), torch.tensor([0.7])).tolist()
        [2]
    """
    cumulative = logprobs.exp().cumsum(-1)
    threshold = noise.to(cumulative)[:, None] * cumulative[:, -1:]
    # noise just below 1 may round up to the total: the last token with any mass is then the one meant
    threshold = torch.minimum(threshold, torch.nextafter(cumulative[:, -1:], torch.zeros_like(threshold)))
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp_max(logprobs.shape[-1] - 1)
