"""A key-value cache for sampling: written in place, filled by groups of prompts, and freed of finished rows.

Rows are aligned on the right: the last token of every prompt is in slot P - 1, and all rows grow together.

Legend: B rows, A rows still running, P prompt slots, S slots, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

_BLOCK = 64  # slots by which a full layer grows


@dataclass
class _Extent:
    """What all layers of a cache share. They hold this and not the cache: a cycle would keep it in memory."""

    num_rows: int
    prompt_width: int
    capacity: int
    prefill_rows: slice | None = None
    slot: Tensor | None = None


class _InPlaceLayer(CacheLayerMixin):
    """Keys and values ``[B, heads, S, D]`` of one attention layer; the first A rows and ``length`` slots are in use."""

    keys: Tensor
    values: Tensor

    def __init__(self, extent: _Extent, sliding_window: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers has no types here
        self._extent = extent
        self.sliding_window = sliding_window
        self.is_sliding = sliding_window is not None
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (self._extent.num_rows, key_states.shape[1], self._extent.capacity)
        # zeros, not empty: NaN in a masked slot would still propagate
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        group, width = self._extent.prefill_rows, self._extent.prompt_width
        if group is not None:
            start = width - key_states.shape[-2]
            for store, states in ((self.keys, key_states), (self.values, value_states)):
                store[group, :, start:width] = states
            return key_states, value_states
        count, slot = self._extent.num_rows, self._extent.slot
        if slot is not None:
            keys, values = self.keys[:count], self.values[:count]
            return keys.index_copy_(2, slot, key_states), values.index_copy_(2, slot, value_states)
        start, self.length = self.length, self.length + key_states.shape[-2]
        self.reserve(self.length)
        self.keys[:count, :, start : self.length] = key_states
        self.values[:count, :, start : self.length] = value_states
        first = 0 if self.sliding_window is None else max(0, start - self.sliding_window + 1)
        return self.keys[:count, :, first : self.length], self.values[:count, :, first : self.length]

    def reserve(self, length: int) -> None:
        missing = length - self.keys.shape[-2]
        if missing > 0:
            rows, more = slice(self._extent.num_rows), (0, 0, 0, max(missing, _BLOCK))
            self.keys, self.values = pad(self.keys[rows], more), pad(self.values[rows], more)

    def move(self, targets: Tensor, sources: Tensor) -> None:
        for store in (self.keys, self.values):
            store[targets, :, : self.length] = store[sources, :, : self.length]

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        if isinstance(query_length, Tensor):  # transformers 4 gives the positions of the queries
            query_length = len(query_length)
        length = self.get_seq_length()
        first = 0 if self.sliding_window is None else max(0, length - self.sliding_window + 1)
        return length - first + query_length, first

    def get_seq_length(self) -> int:
        return 0 if self._extent.prefill_rows is not None else self.length

    def get_max_length(self) -> int:
        return -1 if self.sliding_window is None else self.sliding_window

    get_max_cache_shape = get_max_length  # its name in transformers 4


class InPlaceCache(Cache):
    """A transformers cache of attention layers, full or with a sliding window.

    Args:
        layers: one entry a layer: its sliding window, or ``None`` for full attention.
        num_rows: B.
        prompt_width: P.
        new_tokens: slots to reserve at first for what is sampled; more are added when they are full.
    """

    def __init__(self, layers: list[int | None], num_rows: int, prompt_width: int, new_tokens: int) -> None:
        self._extent = _Extent(num_rows, prompt_width, prompt_width + min(new_tokens, _BLOCK))
        self._own_layers = [_InPlaceLayer(self._extent, window) for window in layers]
        super().__init__(layers=list(self._own_layers))

    def start_prefill(self, rows: slice) -> None:
        """Read the prompts of ``rows`` next; they attend to nothing but themselves."""
        self._extent.prefill_rows = rows

    def finish_prefill(self) -> None:
        """Switch from prompts to sampled tokens."""
        self._extent.prefill_rows = None
        self.rewind(self._extent.prompt_width)

    @property
    def length(self) -> int:
        """Slots in use, those of the prompts included."""
        return self._own_layers[0].length

    @property
    def capacity(self) -> int:
        """Number of slots, at least one more than :attr:`length`; more are allocated when they are full."""
        for layer in self._own_layers:
            layer.reserve(self.length + 1)
        return self._own_layers[0].keys.shape[-2]

    @property
    def has_windows(self) -> bool:
        """Whether any layer sees a window of the last tokens only."""
        return any(layer.is_sliding for layer in self._own_layers)

    @contextmanager
    def static(self, slot: Tensor) -> Iterator[None]:
        """Write the next token to ``slot`` ``[1]`` and return all slots; :meth:`rewind` counts it."""
        self._extent.slot = slot
        try:
            yield
        finally:
            self._extent.slot = None

    def rewind(self, length: int) -> None:
        """Set the number of slots in use."""
        for layer in self._own_layers:
            layer.length = length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows ``indices`` ``[A]``; see :func:`rows_to_keep` for an order that moves few."""
        self._extent.num_rows = len(indices)
        targets = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(-1)
        for layer in self._own_layers:
            layer.move(targets, indices[targets])


def make_cache(config: Any, num_rows: int, prompt_width: int, new_tokens: int) -> Cache:
    """Return an :class:`InPlaceCache`, or transformers' own cache if a model has other kinds of layers."""
    plain = DynamicCache(config=config)
    kinds = {type(layer) for layer in plain.layers}
    if not kinds or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return plain
    windows = [getattr(layer, "sliding_window", None) for layer in plain.layers]
    return InPlaceCache(windows, num_rows, prompt_width, new_tokens)


def rows_to_keep(running: Tensor) -> Tensor:
    """Return the rows that are still running ``[A]``, ordered so that few rows change their place.

    Example:
        >>> rows_to_keep(torch.tensor([True, False, True, False, True])).tolist()
        [0, 4, 2]
    """
    count = int(running.sum())
    rows = torch.arange(count, device=running.device)
    rows[~running[:count]] = running[count:].nonzero().squeeze(-1) + count
    return rows
