"""Values whose gradients are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [tensor.dtype for tensor in inputs]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            (gradient * grad_output).to(dtype) for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (None, None, *scaled)


def with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return ``value`` as a function of ``inputs`` with the given gradients.

    Autograd sees an ordinary function of the inputs: gradients accumulate, hooks run, and a factor that the value is
    multiplied by reaches them. It can be differentiated once.

    Args:
        value: scalar without gradient.
        inputs: tensors that require gradients.
        gradients: d value / d input of each, of the same shape; cast to the input's dtype.

    Returns:
        The scalar, with gradient.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> value = with_gradients((x * x).sum().detach(), [x], [2 * x.detach()])
        >>> (3 * value).backward()
        >>> x.grad.tolist()
        [6.0, 12.0]
    """
    result: Tensor = _KnownGradients.apply(value, tuple(gradients), *inputs)  # type: ignore[no-untyped-call]
    return result
