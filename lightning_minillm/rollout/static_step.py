"""A decode step of fixed shapes, which a GPU can replay as one CUDA graph.

At one token a row the arithmetic of a step is over before the next kernel is launched: launching is what costs. A graph
launches all kernels of a step at once. It needs tensors that stay where they are: the step attends to every slot of the
cache, under a mask, and writes to the slot that a tensor names.

Legend: A rows still running, S slots, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_minillm._reach import attention_implementation
from lightning_minillm.distributed.sharding import is_sharded
from lightning_minillm.models.split import SplitCausalLM
from lightning_minillm.rollout.cache import InPlaceCache

_WARMUP = 3  # as torch's documentation of CUDA graphs has it: libraries choose their kernels before the capture
_TOLERANCE = 0.05


class StaticStepError(RuntimeError):
    """A model whose step cannot have fixed shapes."""


def has_static_step(model: SplitCausalLM, cache: InPlaceCache) -> bool:
    """Whether a model's step can have fixed shapes: full attention by torch's own kernel, positions as input."""
    config = model.model.config.get_text_config()
    return (
        model.may_be_static
        and model.takes_positions
        and not is_sharded(model.model)
        and not getattr(config, "alibi", False)
        and attention_implementation(config) == "sdpa"
        and cache.is_full_attention
    )


class StaticStep:
    """Feeds one token per row, for A rows and S slots; on a GPU by replaying a graph.

    Args:
        model: the model, split.
        cache: of A rows.
        mask: ``[A, S']`` bool, the prompts' tokens and those sampled so far that count; S' is at most S.

    Raises:
        StaticStepError: the model's step cannot be captured.
    """

    def __init__(self, model: SplitCausalLM, cache: InPlaceCache, mask: Tensor) -> None:
        self._model = model
        self._cache = cache
        self.num_rows, self.capacity = len(mask), cache.capacity
        device = mask.device
        self._ids = torch.zeros(self.num_rows, 1, dtype=torch.int64, device=device)
        self._positions = torch.zeros_like(self._ids)
        self._slot = torch.full((1,), cache.length, dtype=torch.int64, device=device)
        self._mask = torch.zeros(self.num_rows, 1, 1, self.capacity, dtype=torch.bool, device=device)
        self._mask[:, 0, 0, : mask.shape[1]] = mask
        self._graph: torch.cuda.CUDAGraph | None = None
        self._state: Tensor
        if device.type == "cuda":
            self._capture()

    def fits(self, cache: InPlaceCache, num_rows: int) -> bool:
        """Tell whether the step is still one of the right shapes."""
        return (num_rows, cache.capacity) == (self.num_rows, self.capacity)

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Feed the tokens ``[A]`` at ``positions`` ``[A, 1]``; return their states ``[A, H]``."""
        slot = self._cache.length
        self._ids.copy_(ids[:, None])
        self._positions.copy_(positions)
        self._slot.fill_(slot)
        self._mask[..., slot] = True
        if self._graph is None:
            self._state = self._run()
        else:
            self._graph.replay()
        self._cache.rewind(slot + 1)
        return self._state.clone()

    def _run(self) -> Tensor:
        with self._cache.static(self._slot):
            hidden, _ = self._model.hidden(self._ids, self._mask, positions=self._positions, cache=self._cache)
        return hidden[:, -1]

    def _capture(self) -> None:
        """Record the step; it writes to a slot that the next call writes again."""
        graph = torch.cuda.CUDAGraph()
        half = torch.autocast(
            "cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False
        )  # a weight that the cache has cast would be gone when the graph is replayed
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with half, torch.cuda.stream(stream):
                for _ in range(_WARMUP):
                    self._run()
            torch.cuda.current_stream().wait_stream(stream)
            with half, torch.cuda.graph(graph):
                self._state = self._run()
        except (RuntimeError, ValueError, TypeError) as error:
            raise StaticStepError(f"its step cannot be captured as a CUDA graph: {error}") from error
        self._graph = graph


def check_agreement(static: Tensor, plain: Tensor) -> None:
    """Compare the states ``[A, H]`` of the same tokens by both ways, up to the rounding of half precision.

    Raises:
        StaticStepError: they differ by more.
    """
    difference = (static.float() - plain.float()).abs().max()
    if not bool(difference <= _TOLERANCE * plain.float().abs().max()):
        raise StaticStepError(f"its step of fixed shapes gives other states (difference {float(difference):.3g})")
