"""Next-token distributions to sample from, and sampling with given noise.

Legend: A rows, L tokens of a sequence, V vocabulary.
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


def repeated_ngram_mask(sequence_ids: Tensor, sequence_mask: Tensor, size: int, vocabulary: int) -> Tensor:
    """Find the next tokens that would complete an n-gram which the sequence already holds.

    Args:
        sequence_ids: ``[A, L]`` int64, prompt and response so far, padded on the left.
        sequence_mask: ``[A, L]`` bool; n-grams with a token that does not count are none.
        size: n, at least 1; 1 finds every token of the sequence.
        vocabulary: V; larger ids of the sequence have no place in the result.

    Returns:
        ``[A, V]`` bool, ``True`` for tokens that repeat. All ``False`` in a row where every token would: there must be
        something left to sample.

    Example:
        >>> ids = torch.tensor([[1, 2, 0, 1]])
        >>> repeated_ngram_mask(ids, torch.ones_like(ids, dtype=torch.bool), size=2, vocabulary=3).tolist()
        [[False, False, True]]
    """
    num_rows, length = sequence_ids.shape
    found = torch.zeros(num_rows, vocabulary + 1, dtype=torch.bool, device=sequence_ids.device)
    if length < size:
        return found[:, :-1]
    repeats = sequence_mask.unfold(1, size, 1).all(-1)
    for place in range(size - 1):  # the last n - 1 tokens against the beginning of every n-gram
        repeats = repeats & (
            sequence_ids[:, place : length - size + 1 + place] == sequence_ids[:, length - size + 1 + place, None]
        )
    last_ids = sequence_ids[:, size - 1 :]
    nowhere = vocabulary  # a column of its own, so that no size depends on what was found
    found.scatter_(1, last_ids.masked_fill(~repeats | (last_ids >= vocabulary), nowhere), True)
    found = found[:, :-1]
    return found & ~found.all(-1, keepdim=True)


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
