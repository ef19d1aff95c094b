"""Sharding any transformers causal LM with FSDP2, decoder layer by decoder layer.

This package calls the body and the head of a model separately, which FSDP2 does not notice: it gathers the parameters
outside of the layers (embeddings, last norm, head) when the model's own ``forward`` is called. So every use of a
sharded model is inside :func:`run_sharded` (training: layers are gathered one at a time) or :func:`gathered` (sampling:
the whole model is gathered once). Neither changes anything for a model that is not sharded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from lightning_minillm._reach import layer_class_names

_Result = TypeVar("_Result")
_RUN = "run_as_forward"  # name of the method that a sharded model gets
_RESHARD = "reshards_after_forward"


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model, each of which is sharded by itself.

    transformers names their classes; for a model without such names, they are the members of its longest
    ``nn.ModuleList``.

    Raises:
        ValueError: the model has no layers.
    """
    names = layer_class_names(model)
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        layers = list(max(lists, key=len, default=[]))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no decoder layers to shard: it contains no nn.ModuleList")
    return layers


def is_sharded(model: nn.Module) -> bool:
    """Return whether any parameter is sharded over ranks, be it over a single one."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def shard(
    model: nn.Module,
    mesh: DeviceMesh,
    *,
    reshard_after_forward: bool = True,
    param_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype = torch.float32,
    cpu_offload: bool = False,
) -> None:
    """Shard a model in place; its weights have to be loaded.

    Args:
        model: a transformers causal LM.
        mesh: one dimension to shard over, or two: the first to replicate over, the second to shard over.
        reshard_after_forward: free a layer's gathered parameters after its forward pass and gather them again in the
            backward pass; ``False`` keeps them in between, which is faster and takes more memory.
        param_dtype: dtype of gathered parameters and so of compute; ``None`` for that of the shards.
        reduce_dtype: dtype in which gradients are summed over ranks, if ``param_dtype`` is given.
        cpu_offload: keep the shards, their gradients and the optimiser state on the CPU.
    """
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype if param_dtype else None)
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if cpu_offload else OffloadPolicy()
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "offload_policy": offload}
    for layer in decoder_layers(model):
        fully_shard(layer, reshard_after_forward=reshard_after_forward, **options)
    fully_shard(model, reshard_after_forward=reshard_after_forward, **options)
    for module in _fsdp_modules(model):
        object.__setattr__(module, _RESHARD, reshard_after_forward)
    object.__setattr__(model, _RUN, _call)
    register_fsdp_forward_method(model, _RUN)


def run_sharded(models: Sequence[nn.Module], function: Callable[[], _Result]) -> _Result:
    """Call ``function`` as if it were the forward pass of all ``models``, so that it may use any part of them.

    Parameters outside of the decoder layers are gathered once for the whole call, layers one at a time. The backward
    pass may start from any tensor that the function returns, alone or in a list, tuple or dict.
    """
    for model in models:
        if isinstance(model, FSDPModule):
            inner, outer = function, getattr(model, _RUN)

            def function(inner: Callable[[], Any] = inner, outer: Callable[..., Any] = outer) -> Any:
                return outer(inner)

    return function()


@contextmanager
def gathered(*models: nn.Module) -> Iterator[None]:
    """Hold all parameters of ``models`` on every rank, for sampling: one all-gather per layer and none per token.

    Inside, no rank waits for another, so that ranks may make different numbers of passes. Parameters must not be
    updated inside.
    """
    sharded = [model for model in models if isinstance(model, FSDPModule)]
    modules = [module for model in sharded for module in _fsdp_modules(model)]
    run_sharded(sharded, lambda: None)  # FSDP finds its root module in the first pass through the whole model
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(getattr(module, _RESHARD), recurse=False)


def full_state_dict(model: nn.Module) -> dict[str, Any]:
    """Return the whole state dict of a model on the CPU of the first rank, ``{}`` elsewhere; all ranks take part."""
    if not is_sharded(model):
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options))


def _fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _call(function: Callable[[], _Result]) -> _Result:
    return function()
