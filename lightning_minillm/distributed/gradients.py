"""The norm of gradients that may be sharded in different ways, and clipping by it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm over all gradients, however each of them is sharded.

    torch's own function cannot mix plain tensors with tensors on different device meshes, which a model sharded both by
    layers and by tensors has. This one takes the norm of each kind and combines the norms.

    Args:
        gradients: at least one; all ranks pass the same gradients in the same order.

    Returns:
        Scalar, equal on all ranks.

    Example:
        >>> total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]).item()
        5.0
    """
    kinds: dict[object, list[Tensor]] = {}
    for gradient in gradients:
        kind = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
        kinds.setdefault(kind, []).append(gradient)
    norms = [_whole(torch.nn.utils.get_total_norm(group)) for group in kinds.values()]
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return total


def clip_by_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their common 2-norm is at most ``max_norm``.

    Args:
        parameters: parameters without a gradient are ignored.
        max_norm: positive.

    Returns:
        The norm before clipping, a scalar that is equal on all ranks; 0 without gradients.

    Raises:
        ValueError: ``max_norm`` is not positive.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_by_norm([weight], 1.0).item(), [round(x, 3) for x in weight.grad.tolist()]
        (5.0, [0.6, 0.8])
    """
    if max_norm <= 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = total_norm(gradients)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        local.mul_(factor.to(local.device))
    return norm


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
