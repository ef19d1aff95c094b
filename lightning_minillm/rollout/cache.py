"""A cache for sampling: keys and values written in place, filled by groups of prompts, and freed of finished rows.

Layers that keep a state in place of keys and values (convolutions, linear attention, state-space models) stay those of
transformers. Padding would enter their states, so prompts are read in groups of one length and the states are joined.

Rows are aligned on the right: the last token of every prompt is in slot P - 1, and all rows grow together.

Legend: B rows, A rows still running, P prompt slots, S slots, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

_BLOCK = 64  # slots by which a full layer grows
_STATEFUL = ("LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer")  # transformers 4 does not have them
_EMPTY = "DummyLayer"  # of layers without a cache


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
        self.is_initialized = False  # transformers 4.56 has no such attribute
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
    """A transformers cache of attention layers, full or with a sliding window, and of layers that keep a state.

    Args:
        layers: one entry per layer, as transformers made it.
        num_rows: B.
        prompt_width: P.
        new_tokens: slots to reserve at first for what is sampled; more are added when they are full.
    """

    def __init__(self, layers: list[Any], num_rows: int, prompt_width: int, new_tokens: int) -> None:
        self._extent = _Extent(num_rows, prompt_width, prompt_width + min(new_tokens, _BLOCK))
        own = {number: _own_layer(layer, self._extent) for number, layer in enumerate(layers) if _is_attention(layer)}
        self._own_layers = list(own.values())
        self._unread = {n: layer for n, layer in enumerate(layers) if type(layer).__name__ in _STATEFUL}
        self._read: list[dict[int, Any]] = []
        super().__init__(layers=[own.get(number, layer) for number, layer in enumerate(layers)])

    @property
    def has_states(self) -> bool:
        """Whether a layer keeps a state, so that prompts of different lengths cannot be read together."""
        return bool(self._unread)

    @property
    def has_attention(self) -> bool:
        """Whether any layer attends to tokens before the current one, and so reads a mask of them."""
        return any(isinstance(layer, CacheLayerMixin) for layer in self.layers)

    @property
    def is_full_attention(self) -> bool:
        """Whether every layer attends to all tokens before the current one."""
        return len(self._own_layers) == len(self.layers) and not any(layer.is_sliding for layer in self._own_layers)

    def start_prefill(self, rows: slice) -> None:
        """Read the prompts of ``rows`` next; they attend to nothing but themselves."""
        self._extent.prefill_rows = rows
        self._read.append({number: deepcopy(layer) for number, layer in self._unread.items()})
        for number, layer in self._read[-1].items():
            self.layers[number] = layer

    def finish_prefill(self) -> None:
        """Switch from prompts to sampled tokens."""
        self._extent.prefill_rows = None
        self.rewind(self._extent.prompt_width)
        for number in self._unread:
            _join(self.layers[number], [group[number] for group in self._read], self._extent.prompt_width)
        self._read = []

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

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep only the rows ``beam_idx`` ``[A]``; see :func:`rows_to_keep` for an order that moves few."""
        self._extent.num_rows = len(beam_idx)
        targets = (beam_idx != torch.arange(len(beam_idx), device=beam_idx.device)).nonzero().squeeze(-1)
        for layer in self._own_layers:
            layer.move(targets, beam_idx[targets])
        stateful: list[Any] = [self.layers[number] for number in self._unread]
        for layer in stateful:
            layer.reorder_cache(beam_idx)


def make_cache(config: Any, num_rows: int, prompt_width: int, new_tokens: int) -> Cache:
    """Return an :class:`InPlaceCache`, or transformers' own cache if a model has layers of an unknown kind."""
    layers = DynamicCache(config=config).layers
    known = all(_is_attention(layer) or type(layer).__name__ in (*_STATEFUL, _EMPTY) for layer in layers)
    return InPlaceCache(layers, num_rows, prompt_width, new_tokens) if layers and known else DynamicCache(config=config)


def _is_attention(layer: Any) -> bool:
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


def _own_layer(layer: Any, extent: _Extent) -> _InPlaceLayer:
    return _InPlaceLayer(extent, getattr(layer, "sliding_window", None))


def _join(layer: Any, groups: list[Any], width: int) -> None:
    """Give ``layer``, the last of the groups, the states of all groups, with keys and values aligned on the right."""
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name)
        for index in [index for index, state in states.items() if state is not None]:
            states[index] = torch.cat([getattr(group, name)[index] for group in groups])
    if isinstance(layer, DynamicLayer):
        keys, values = ([getattr(group, name) for group in groups] for name in ("keys", "values"))
        layer.keys, layer.values = (
            torch.cat([pad(piece, (0, 0, width - piece.shape[-2], 0)) for piece in pieces]) for pieces in (keys, values)
        )


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
