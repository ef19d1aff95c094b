"""Lightning's first FSDP, for those who want it; FSDP2 (``ShardedStrategy``) does more and runs everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from lightning_minillm.distributed.sharding import decoder_layers

_Result = TypeVar("_Result")


class FSDP1Strategy(FSDPStrategy):
    """Shards the student by decoder layer; the teacher is whole on every device.

    Args:
        kwargs: of Lightning's ``FSDPStrategy``.

    Raises:
        ValueError: there is no GPU.
    """

    def __init__(self, **kwargs: Any) -> None:
        if not torch.cuda.is_available():
            raise ValueError("strategy=fsdp1 needs a GPU, and there is none: use strategy=fsdp, which runs on CPUs too")
        super().__init__(**{"state_dict_type": "full", **kwargs})

    def shard_model(self, model: nn.Module) -> None:
        """Note which layers to wrap when Lightning wraps the module; the teacher, which it does not know, stays."""
        if any(parameter.requires_grad for parameter in model.parameters()):
            self.kwargs["auto_wrap_policy"] = ModuleWrapPolicy({type(layer) for layer in decoder_layers(model)})

    def run_sampling(self, function: Callable[[], _Result]) -> _Result:
        """Call a function that samples, with whole parameters on every device."""
        assert self.model is not None
        with FullyShardedDataParallel.summon_full_params(self.model, writeback=False):
            return function()

    def clip_by_norm(self, parameters: Iterable[Tensor], max_norm: float) -> None:
        """Clip by the norm over all ranks, which only the root module knows."""
        assert isinstance(self.model, FullyShardedDataParallel)
        self.model.clip_grad_norm_(max_norm)
