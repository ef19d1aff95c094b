"""Log-probabilities of tokens: the only next-token shift of the package, and projection in chunks.

Legend: B rows, L tokens, N valid target tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenStates:
    """Hidden states of N target tokens with the projection that turns them into logits.

    Attributes:
        hidden: ``[N, H]``, the state that predicts each target.
        project: maps ``[n, H]`` to logits ``[n, V]``; row by row independent.
        parameters: all weights that ``project`` reads; ``None`` if unknown.
        vocabulary: V; ``None`` if unknown.
    """

    hidden: Tensor
    project: Callable[[Tensor], Tensor]
    parameters: tuple[Tensor, ...] | None = None
    vocabulary: int | None = None

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def logits(self, start: int = 0, stop: int | None = None, temperature: float = 1.0) -> Tensor:
        """Project the states ``start:stop`` to float32 logits ``[n, V]`` divided by ``temperature``."""
        logits = self.project(self.hidden[start:stop]).float()
        return logits if temperature == 1 else logits / temperature


def select_targets(hidden: Tensor, input_ids: Tensor, target_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pair every target token with the hidden state that predicts it.

    This is the one place of the package that shifts: the state at ``t - 1`` predicts token ``t``.

    Args:
        hidden: ``[B, L, H]`` hidden states (or logits) of a causal model over ``input_ids``.
        input_ids: ``[B, L]`` int64.
        target_mask: ``[B, L]`` bool, ``True`` at the tokens to be predicted; never at ``t = 0``.

    Returns:
        ``[N, H]`` states and ``[N]`` target ids, in row-major order.

    Example:
        >>> hidden = torch.arange(3.0).view(1, 3, 1)
        >>> states, ids = select_targets(hidden, torch.tensor([[7, 8, 9]]), torch.tensor([[False, False, True]]))
        >>> states.tolist(), ids.tolist()
        ([[1.0]], [9])
    """
    mask = target_mask[:, 1:]
    return hidden[:, :-1][mask], input_ids[:, 1:][mask]


def gather_logprobs(logits: Tensor, target_ids: Tensor) -> Tensor:
    """Return log softmax(logits) at the target ids, computed in float32 (or float64 if given that).

    Args:
        logits: ``[..., V]``.
        target_ids: ``[...]`` int64.

    Returns:
        ``[...]``.

    Example:
        >>> gather_logprobs(torch.zeros(1, 4), torch.tensor([2])).exp().item()
        0.25
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.gather(-1, target_ids[..., None]).squeeze(-1) - logits.logsumexp(-1)


def chunk_bounds(num_tokens: int, chunk_size: int | None) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of consecutive chunks; one chunk when ``chunk_size`` is ``None``.

    Raises:
        ValueError: ``chunk_size`` is not positive.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 or null (no chunks), got {chunk_size}")
    step = num_tokens if chunk_size is None else chunk_size
    for start in range(0, num_tokens, max(step, 1)):
        yield start, min(start + step, num_tokens)


def target_logprobs(
    states: TokenStates, target_ids: Tensor, temperature: float = 1.0, chunk_size: int | None = 1024
) -> Tensor:
    """Return log-probabilities of the targets without gradient, ``chunk_size`` tokens at a time.

    Args:
        states: N states and their projection.
        target_ids: ``[N]`` int64.
        temperature: divides the logits; positive.
        chunk_size: tokens projected together, or ``None`` for all.

    Returns:
        ``[N]`` float32.
    """
    with torch.no_grad():
        pieces = [
            gather_logprobs(states.logits(start, stop, temperature), target_ids[start:stop])
            for start, stop in chunk_bounds(len(states), chunk_size)
        ]
    return torch.cat(pieces) if pieces else torch.zeros(0, device=target_ids.device)
