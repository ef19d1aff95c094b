"""float64 on devices that have it."""

from __future__ import annotations

from torch import Tensor


def near_float64(tensor: Tensor) -> Tensor:
    """Return a tensor where it can be converted to float64: on its device, or on the CPU for MPS, which has none.

    Example:
        >>> import torch
        >>> near_float64(torch.tensor([1.0])).double().device
        device(type='cpu')
    """
    return tensor.cpu() if tensor.device.type == "mps" else tensor
