"""One decode forward for two streams, or several: shared weights, separate attention.

A `PairCache` holds the keys and values of both streams, or of all sources, each at its own length. During a decode
forward its `update` stores the new row of every stream and returns `PairKV` handles instead of tensors; the attention
function registered here sees the handles and attends each stream to its own past with the model's own attention. So
one forward reads the weights once for all rows, the short prompt is never padded to the long one, and storage is
written in place instead of being concatenated at every token.

Knows transformers' cache and attention interfaces; knows nothing of fusion or sampling. Models outside
`SHARED_FORWARD` run as two forwards (see streams.py), which is always right and slower.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

__all__ = ["SHARED_FORWARD", "PairCache", "can_share_forward", "leave_pair_attention", "pair_attention", "parted"]

# model_type of the families whose attention passes the cache's keys straight to the attention interface.
SHARED_FORWARD = frozenset({"llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral", "gpt2", "gpt_neox"})
_BASES = ("sdpa", "eager")
_PREFIX = "ckcontrol_pair_"


class PairKV:
    """Keys (or values) of all streams for one layer, with each stream's mask; stands in for a tensor."""

    __slots__ = ("masks", "parts")

    def __init__(self, parts: Sequence[Tensor], masks: Sequence[Tensor | None]) -> None:
        self.parts = parts  # each [B, H, T_stream, D]
        self.masks = masks  # each [B, 1, 1, T_stream] or None

    def attend(
        self, base: Callable[..., Any], module: torch.nn.Module, query: Tensor, value: PairKV, **kwargs: Any
    ) -> Tensor:
        """Attend each stream to its own past with the model's attention `base`, [SB, H, 1, D] -> [SB, 1, H, D]."""
        rows = query.shape[0] // len(self.parts)
        made = [
            base(module, query[i * rows : (i + 1) * rows], self.parts[i], value.parts[i], self.masks[i], **kwargs)[0]
            for i in range(len(self.parts))
        ]
        return torch.cat(made)


class _Buffer:
    """Keys and values of one stream in one layer, in storage that grows by half when it is full."""

    def __init__(self, keys: Tensor, values: Tensor, reserve: int) -> None:
        self.length = keys.shape[2]
        self.keys = self._grown(keys, reserve)
        self.values = self._grown(values, reserve)

    def _grown(self, tensor: Tensor, extra: int) -> Tensor:
        grown = tensor.new_empty(*tensor.shape[:2], self.length + extra, tensor.shape[3])
        grown[:, :, : self.length] = tensor[:, :, : self.length]
        return grown

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store one more position, [B, H, 1, D]."""
        if self.length == self.keys.shape[2]:
            extra = max(64, self.length // 2)
            self.keys, self.values = self._grown(self.keys, extra), self._grown(self.values, extra)
        self.keys[:, :, self.length : self.length + 1] = keys
        self.values[:, :, self.length : self.length + 1] = values
        self.length += 1

    def select(self, rows: Tensor) -> None:
        """Keep these rows, [R] int64; see `PairCache.batch_select_indices`."""
        rows, spare = rows.to(self.keys.device), self.keys.shape[2] - self.length
        keys, values = self.view(None)
        self.keys = self._grown(keys.index_select(0, rows), spare)
        self.values = self._grown(values.index_select(0, rows), spare)

    def rewind(self, cut: int, shift: Tensor | None) -> None:
        """Forget the newest `cut` positions of all rows, and the newest of each by moving the others up, [R] int64."""
        self.length -= cut
        if shift is None:
            return
        shift = shift.to(self.keys.device)
        place = (torch.arange(self.length, device=shift.device)[None] - shift[:, None]).clamp_min(0)[:, None, :, None]
        for tensor in (self.keys, self.values):
            held = tensor[:, :, : self.length]
            held.copy_(held.gather(2, place.expand(-1, held.shape[1], -1, held.shape[3])))

    def view(self, window: int | None) -> tuple[Tensor, Tensor]:
        """Return keys and values that the newest position may attend to, without copying."""
        start = 0 if window is None else max(0, self.length - window)
        return self.keys[:, :, start : self.length], self.values[:, :, start : self.length]


class PairLayer(DynamicLayer):  # type: ignore[misc]
    """All streams' buffers of one layer."""

    def __init__(self, streams: Sequence[DynamicLayer], owner: PairCache, reserve: int) -> None:
        super().__init__()
        self.is_initialized = True
        self._owner = weakref.ref(owner)  # a cache that knew itself would be held until garbage is collected
        self.window: int | None = getattr(streams[0], "sliding_window", None) if streams[0].is_sliding else None
        self.buffers = tuple(_Buffer(layer.keys, layer.values, reserve) for layer in streams)

    @property
    def owner(self) -> PairCache:
        """The cache that the layer is of."""
        owner = self._owner()
        if owner is None:
            raise RuntimeError("a layer outlived its cache")
        return owner

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Store one position: rows [0, B) are the first stream's, with the context in a pair, [B, 2B) the second's."""
        rows = self.owner.rows
        parts = []
        for i, buffer in enumerate(self.buffers):
            mine = slice(i * rows, (i + 1) * rows)
            buffer.append(key_states[mine], value_states[mine])
            parts.append(buffer.view(self.window))
        device = key_states.device
        masks = [self.owner.mask(i, keys.shape[2], device) for i, (keys, _) in enumerate(parts)]
        return PairKV([keys for keys, _ in parts], masks), PairKV([values for _, values in parts], masks)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of every stream."""
        for buffer in self.buffers:
            buffer.select(indices)

    def get_seq_length(self) -> int:
        """Length of the first stream; only transformers' unused mask creation asks."""
        return self.buffers[0].length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Sizes for transformers' mask creation, whose result the pair attention ignores."""
        return self.buffers[0].length + query_length, 0


class PairCache(Cache):  # type: ignore[misc]
    """The caches of prefilled streams, ready for shared decode forwards.

    Args:
        caches: Filled `DynamicCache` of each stream, B rows; of a pair the one with passages first. They are emptied,
            layer by layer, so that no more than one layer is held twice.
        keep: Per stream, [B, L] bool attention mask of the prompt, or None where nothing is padded.
        additive: The attention adds its mask (eager) instead of testing it (sdpa).
        dtype: Dtype of an additive mask.
        reserve: Positions to allocate for the answer.
    """

    def __init__(
        self,
        caches: Sequence[DynamicCache],
        keep: Sequence[Tensor | None],
        *,
        additive: bool,
        dtype: torch.dtype,
        reserve: int,
    ) -> None:
        self.rows = caches[0].layers[0].keys.shape[0]
        self.additive, self.dtype = additive, dtype
        self._keep = list(keep)
        self._masks: dict[tuple[int, int, torch.device], Tensor] = {}
        streams = zip(*(cache.layers for cache in caches), strict=True)
        made = []
        for layers in streams:
            made.append(PairLayer(layers, self, reserve))
            for layer in layers:
                layer.keys = layer.values = None
        super().__init__(layers=made)

    def begin_step(self) -> None:
        """Extend the padding masks by the token about to be decoded."""
        self._masks.clear()
        for i, keep in enumerate(self._keep):
            if keep is not None:
                self._keep[i] = torch.cat([keep, keep.new_ones(keep.shape[0], 1)], dim=1)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of every stream, in this order, [R] int64; a row named twice goes on as two."""
        super().batch_select_indices(indices)
        self.rows = len(indices)
        self._masks.clear()
        self._keep = [None if keep is None else keep[indices] for keep in self._keep]

    def rewind(self, rows: Tensor, drop: Sequence[int]) -> None:
        """Keep these rows as they were before their newest positions, see `TwoStreams.rewind`."""
        self.batch_select_indices(rows)
        cut = min(drop)
        shift = torch.tensor(drop, device=rows.device) - cut if max(drop) > cut else None
        for layer in self.layers:
            for buffer in layer.buffers:
                buffer.rewind(cut, shift)
        for i, keep in enumerate(self._keep):
            length = max(layer.buffers[i].length for layer in self.layers)
            if shift is None and keep is None:
                continue
            if keep is None:
                keep = torch.ones(len(rows), length, dtype=torch.bool, device=rows.device)
            keep = keep[:, : keep.shape[1] - cut] if self._keep[i] is not None else keep
            if shift is not None:
                place = torch.arange(keep.shape[1], device=rows.device)[None] - shift[:, None]
                keep = keep.gather(1, place.clamp_min(0)) & (place >= 0)
            self._keep[i] = keep

    def parted(self, config: Any) -> tuple[DynamicCache, ...]:
        """Return a cache of its own for each stream of a model of this config; the storage stays shared with these."""
        return parted(config, [[buffer.view(None) for buffer in layer.buffers] for layer in self.layers])

    def mask(self, stream: int, length: int, device: torch.device) -> Tensor | None:
        """Return the mask over the newest `length` positions of a stream, [B, 1, 1, length]; None if all are kept.

        Args:
            stream: 0 with the context, 1 without.
            length: Of what the layer holds.
            device: Of the layer: a model may lie on several.
        """
        keep = self._keep[stream]
        if keep is None:
            return None
        if (stream, length, device) not in self._masks:
            mask = keep[:, None, None, -length:]
            if self.additive:
                low = torch.finfo(self.dtype).min
                mask = torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill(~mask, low)
            self._masks[stream, length, device] = mask.to(device)
        return self._masks[stream, length, device]


def parted(config: Any, layers: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> tuple[DynamicCache, ...]:
    """Return a cache for each stream.

    Args:
        config: Of the model.
        layers: Of each layer the keys and values of every stream, [B, H, T, D].
    """
    made = tuple(DynamicCache(config=config) for _ in layers[0])
    for i, streams in enumerate(layers):
        for cache, (keys, values) in zip(made, streams, strict=True):
            layer = cache.layers[i]
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
    return made


def _attend(module: torch.nn.Module, query: Tensor, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    """Attend each stream to its own past; anything that is not a pair goes to the model's own attention."""
    base = _base_attention(module)
    if not isinstance(key, PairKV):
        return base(module, query, key, value, attention_mask, **kwargs)
    return key.attend(base, module, query, value, **kwargs), None


def _base_attention(module: torch.nn.Module) -> Callable[..., Any]:
    name = _own_implementation(module.config)
    if name == "eager":
        eager: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return eager
    base: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
    return base


for _name in _BASES:
    ALL_ATTENTION_FUNCTIONS.register(_PREFIX + _name, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])

_LOCK = threading.Lock()
_USERS: dict[int, weakref.WeakSet[Any]] = {}  # id of a config -> who decodes with it just now


@contextmanager
def pair_attention(model: PreTrainedModel, user: object) -> Iterator[None]:
    """Route the model's attention through `_attend` while the block runs: one forward, no longer.

    Kept per config and user, so threads may decode with one model at once; plain forwards of other threads pass
    through to the model's own attention.

    Args:
        model: Whose attention.
        user: Any object that stands for the run, and does not outlive it.
    """
    config = model.config
    try:
        with _LOCK:
            _USERS.setdefault(id(config), weakref.WeakSet()).add(user)
            config._attn_implementation_internal = _PREFIX + _own_implementation(config)
        yield
    finally:
        leave_pair_attention(model, user)


def leave_pair_attention(model: PreTrainedModel, user: object) -> None:
    """Give the model its own attention back, unless others still use ours. Does no harm where it is in place."""
    config = model.config
    with _LOCK:
        users = _USERS.get(id(config), weakref.WeakSet())
        users.discard(user)
        if not users:
            _USERS.pop(id(config), None)
            if _own_implementation(config) != str(getattr(config, "_attn_implementation", "")):
                config._attn_implementation_internal = _own_implementation(config)


def _own_implementation(config: Any) -> str:
    return str(getattr(config, "_attn_implementation", "")).removeprefix(_PREFIX)


def can_share_forward(model: PreTrainedModel) -> bool:
    """Whether the model can decode all streams in one forward; otherwise each has its own."""
    config = model.config
    return (
        config.model_type in SHARED_FORWARD
        and _own_implementation(config) in _BASES
        and not getattr(config, "reorder_and_upcast_attn", False)
        and all(_follows(module, config) for module in model.modules())
    )


def _follows(module: torch.nn.Module, config: Any) -> bool:
    """Whether an attention module would see the switch of `pair_attention`, and computes rows independently.

    A copied or replaced layer has a config of its own; torch's dynamic quantisation scales all rows of a forward alike.
    """
    own = getattr(module, "config", config) if hasattr(module, "scaling") or hasattr(module, "head_dim") else config
    return own is config and not type(module).__module__.startswith("torch.ao.nn.quantized.dynamic")
