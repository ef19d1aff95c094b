"""Sharding any transformers causal LM with FSDP2, decoder layer by decoder layer.

A package of ours calls body and head of a model one by one, which FSDP2 does not see: it gathers what belongs to the
whole model (embeddings, last norm, head) when the model's own ``forward`` is called. So every use of a sharded model
happens inside :func:`run_sharded` (training: layers are gathered one at a time) or :func:`gathered` (sampling: all of
the model is gathered once). Both do nothing for a model that is not sharded.
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
_RUN = "run_as_forward"  # name of the method that a sharded model is given
_RESHARD = "reshards_after_forward"


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that are sharded each by itself.

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
    """Whether any parameter lies in shards on several ranks (or is made to, on one)."""
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
        mesh: one dimension to shard over, or two: to replicate over and to shard over.
        reshard_after_forward: free a layer's gathered parameters after its forward pass and gather them again in the
            backward pass; ``False`` keeps them in between: faster, more memory.
        param_dtype: of gathered parameters and so of compute; ``None`` for that of the shards.
        reduce_dtype: in which gradients are summed over ranks.
        cpu_offload: keep the shards, their gradients and so the optimiser's state on the CPU.
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

    What belongs to no decoder layer is gathered once for the whole call, layers one at a time. The backward pass may
    start from any tensor that the function returns, by itself or in a list, tuple or dict.
    """
    for model in models:
        if isinstance(model, FSDPModule):
            inner, outer = function, getattr(model, _RUN)

            def function(inner: Callable[[], Any] = inner, outer: Callable[..., Any] = outer) -> Any:
                return outer(inner)

    return function()


@contextmanager
def gathered(*models: nn.Module) -> Iterator[None]:
    """Hold all parameters of ``models`` on every rank, for sampling: one all-gather a layer, none a token.

    No rank waits for another inside, so that ranks may make different numbers of passes. Parameters must not be
    updated inside.
    """
    sharded = [model for model in models if isinstance(model, FSDPModule)]
    modules = [module for model in sharded for module in _fsdp_modules(model)]
    run_sharded(sharded, lambda: None)  # a first pass through the whole model tells FSDP what its root is
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
    """Return a model's whole state dict on the CPU of the first rank and ``{}`` on the others; all ranks take part."""
    if not is_sharded(model):
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options))


def _fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _call(function: Callable[[], _Result]) -> _Result:
    return function()
