"""Sums over target tokens, a chunk of them at a time, so that few logits exist at once.

Legend: N target tokens, n tokens of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_minillm.functional.autograd import with_gradients
from lightning_minillm.functional.logprobs import TokenStates, chunk_bounds

ChunkSize = int | Literal["auto"] | None
ChunkSums = Callable[[Tensor, int, int], dict[str, Tensor]]
"""Maps hidden states ``[n, H]`` of the tokens ``start:stop`` to named sums over them, ``"loss"`` among them."""

_LOGITS_IN_CACHE = 2**21  # 8 MiB in float32: a CPU's elementwise passes over them stay near its cache
_LOGITS_ON_DEVICE = 2**27  # 512 MiB: enough work for a launch
_FEWEST_TOKENS = 128  # the projection of fewer is bound by reading its weights
_UNKNOWN_VOCABULARY = 1024


def check_chunk_size(chunk_size: ChunkSize) -> ChunkSize:
    """Return ``chunk_size`` if it is allowed.

    Raises:
        ValueError: below 1, or a word other than ``"auto"``.
    """
    if chunk_size is None or chunk_size == "auto" or (isinstance(chunk_size, int) and chunk_size >= 1):
        return chunk_size
    raise ValueError(f"chunk_size must be at least 1, 'auto', or null for no chunks; got {chunk_size!r}")


def tokens_per_chunk(chunk_size: ChunkSize, states: TokenStates) -> int | None:
    """Return how many tokens are projected together; ``None`` for all.

    ``"auto"`` bounds the number of logits, by what suits the device, and keeps at least 128 tokens.

    Example:
        >>> states = TokenStates(torch.zeros(5, 3), lambda hidden: hidden, vocabulary=2048)
        >>> tokens_per_chunk("auto", states), tokens_per_chunk(7, states)
        (1024, 7)
    """
    if not isinstance(chunk_size, str):
        return chunk_size
    if states.vocabulary is None:
        return _UNKNOWN_VOCABULARY
    logits = _LOGITS_IN_CACHE if states.hidden.device.type == "cpu" else _LOGITS_ON_DEVICE
    return max(logits // states.vocabulary, _FEWEST_TOKENS)


def sum_over_chunks(
    compute: ChunkSums, hidden: Tensor, parameters: Sequence[Tensor] | None, chunk_size: int | None
) -> dict[str, Tensor]:
    """Add up what ``compute`` gives for each chunk; only ``"loss"`` carries a gradient.

    With known ``parameters`` the gradient of a chunk is taken as soon as its loss is there, and its logits are dropped:
    nothing is computed twice. Otherwise more than one chunk is computed again in the backward pass.

    Args:
        compute: see :data:`ChunkSums`; sums other than ``"loss"`` are detached.
        hidden: ``[N, H]``.
        parameters: all that ``compute`` reads and that may need a gradient, besides ``hidden``; ``None`` if unknown.
        chunk_size: n, or ``None`` for all N at once, differentiated by autograd as it stands.
    """
    bounds = list(chunk_bounds(len(hidden), chunk_size))
    if torch.is_grad_enabled() and chunk_size is not None and parameters is not None:
        inputs = [tensor for tensor in (hidden, *parameters) if tensor.requires_grad]
        if inputs:
            return _differentiate_chunks(compute, hidden, inputs, bounds)
    recompute = torch.is_grad_enabled() and len(bounds) > 1
    total: dict[str, Tensor] = {}
    for start, stop in bounds:
        arguments = (hidden[start:stop], start, stop)
        if recompute:
            sums: dict[str, Tensor] = checkpoint(compute, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            sums = compute(*arguments)
        total = _added(total, sums)
    return total


def _differentiate_chunks(
    compute: ChunkSums, hidden: Tensor, inputs: Sequence[Tensor], bounds: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    hidden_gradient = torch.empty_like(hidden) if hidden.requires_grad else None
    parameters = [tensor for tensor in inputs if tensor is not hidden]
    gradients: list[Tensor] = []
    for start, stop in bounds:
        with torch.enable_grad():
            chunk = hidden[start:stop].detach().requires_grad_(hidden.requires_grad)
            sums = compute(chunk, start, stop)
        loss = sums["loss"]
        wanted = [chunk, *parameters] if hidden.requires_grad else parameters
        with torch.autocast(hidden.device.type, enabled=False):  # as a backward pass runs
            parts = list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
        if hidden_gradient is not None:
            hidden_gradient[start:stop] = parts.pop(0)
        # many small terms: half precision would lose the last ones
        gradients = (
            [total_part.add_(part) for total_part, part in zip(gradients, parts, strict=True)]
            if gradients
            else [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
        )
        total = _added(total, {name: value.detach() for name, value in sums.items()})
    known = gradients if hidden_gradient is None else [hidden_gradient, *gradients]
    return {**total, "loss": with_gradients(total["loss"], inputs, known)}


def _added(total: dict[str, Tensor], sums: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: total[name] + value if name in total else value for name, value in sums.items()}
