"""Keys and values of both streams in buffers that never move, so that a decode step is the same kernels every time.

A stream's buffers are longer than what it holds, by up to a bucket; a mask hides the rest. Where the next token goes is
a tensor on the device that the step itself moves on, so nothing in a step depends on the host: it can be captured in a
CUDA graph (static_step.py). A window's layers hold what the window can see, in buffers of their own. Knows
transformers' cache interface; knows nothing of models, fusion or graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from .pair_cache import PairKV, parted

__all__ = ["StaticPair", "grouped_attention"]

BUCKET = 128  # lengths are multiples of it
AHEAD = 512  # tokens there is room for before a bucket is outgrown, if the answer may be that long


class _Track:
    """Where one stream writes and what it may see, in all layers of one window.

    Attributes:
        at: Where the next token goes, [1] int64.
        mask: What is added to attention weights, [B, 1, 1, size]: 0 or -inf.
    """

    def __init__(self, keep: Tensor, window: int | None, dtype: torch.dtype, ahead: int) -> None:
        self.window, self.dtype = window, dtype
        self.used = keep.shape[1]  # as the host counts; `at` says the same on the device
        self.keep = keep
        self.mask: Tensor
        self.resize(self.used, ahead)

    def resize(self, held: int, ahead: int) -> None:
        """Make room for `ahead` tokens behind the newest `held`; the layers do the same with their buffers."""
        self.size = -(-(held + ahead) // BUCKET) * BUCKET
        self.keep = F.pad(self.keep[:, self.used - held : self.used], (0, self.size - held), value=True)
        self.used = held
        self.at = torch.tensor([held], device=self.keep.device)
        self.places = torch.arange(self.size, device=self.keep.device)

    def held(self) -> int:
        """Number of tokens that a later token may still see."""
        return self.used if self.window is None else min(self.used, self.window - 1)

    def look(self) -> None:
        """Build the mask of the token at `at`; one of the things a step does on the device."""
        seen = self.keep & (self.places <= self.at)
        if self.window is not None:
            seen = seen & (self.places > self.at - self.window)
        hidden = torch.zeros_like(seen, dtype=self.dtype).masked_fill_(~seen, -torch.inf)
        self.mask = hidden[:, None, None]


class StaticKV(PairKV):
    """Keys (or values) of both streams for one layer; attends to them with the query heads of a group side by side."""

    __slots__ = ("additive",)

    def __init__(self, parts: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor], additive: bool) -> None:
        super().__init__(parts, masks)
        self.additive = additive

    def attend(
        self, base: Callable[..., Any], module: torch.nn.Module, query: Tensor, value: PairKV, **kwargs: Any
    ) -> Tensor:
        """Return what `pair_cache` asks for; `base` serves streams whose buffers have the length of what they hold."""
        rows = query.shape[0] // 2
        scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
        made = [
            grouped_attention(
                query[i * rows : (i + 1) * rows],
                self.parts[i],
                value.parts[i],
                self.masks[i],
                scaling=scaling,
                softcap=softcap,
                plain=self.additive or softcap is not None,  # torch's kernels know no softcap
            )
            for i in (0, 1)
        ]
        return torch.cat(made)


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    plain: bool = False,
) -> Tensor:
    """Attend one new position per row without repeating grouped keys: the query heads of a group are its positions.

    Args:
        query: [B, H, 1, D], H a multiple of G; head h reads group h // (H / G), as transformers repeats them.
        key: [B, G, T, D].
        value: [B, G, T, D].
        mask: Added to the weights, [B, 1, 1, T] in the query's dtype.
        scaling: Of the weights; None is D ** -0.5.
        softcap: Weights become ``softcap * tanh(weights / softcap)`` before the mask; needs `plain`.
        plain: Written out as transformers' eager attention (softmax in float32), not torch's fused kernels.

    Returns:
        [B, 1, H, D], as transformers' attention functions return it.
    """
    rows, heads, _, width = query.shape
    packed = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    if plain:
        weights = torch.matmul(packed, key.transpose(2, 3)) * (width**-0.5 if scaling is None else scaling)
        if softcap is not None:
            weights = torch.tanh(weights / softcap) * softcap
        if mask is not None:
            weights = weights + mask
        made = torch.matmul(weights.softmax(-1, dtype=torch.float32).to(query.dtype), value)
    else:
        made = F.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
    return made.reshape(rows, 1, heads, width)


class StaticLayer(DynamicLayer):  # type: ignore[misc]
    """Both streams' buffers of one layer, [B, G, size, D] each."""

    def __init__(self, streams: tuple[DynamicLayer, DynamicLayer], tracks: tuple[_Track, _Track], plain: bool) -> None:
        super().__init__()
        self.is_initialized = True
        self.tracks, self.plain = tracks, plain
        self.buffers = [
            [_moved(tensor, track.used, tensor.shape[2], track.size) for tensor in (layer.keys, layer.values)]
            for layer, track in zip(streams, tracks, strict=True)
        ]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Store one position: rows [0, B) are the stream with the context, [B, 2B) the one without."""
        rows = key_states.shape[0] // 2
        for i, (keys, values) in enumerate(self.buffers):
            mine = slice(i * rows, (i + 1) * rows)
            keys.index_copy_(2, self.tracks[i].at, key_states[mine])
            values.index_copy_(2, self.tracks[i].at, value_states[mine])
        masks = (self.tracks[0].mask, self.tracks[1].mask)
        first, second = self.buffers
        return StaticKV((first[0], second[0]), masks, self.plain), StaticKV((first[1], second[1]), masks, self.plain)

    def resize(self, stream: int, held: int, used: int, size: int) -> None:
        """Take the newest `held` of `used` positions of a stream into buffers of another size."""
        self.buffers[stream] = [_moved(tensor, held, used, size) for tensor in self.buffers[stream]]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of both streams."""
        self.buffers = [[tensor.index_select(0, indices) for tensor in pair] for pair in self.buffers]

    def get_seq_length(self) -> int:
        """Length of the buffers; only transformers' mask creation would ask, and it is given a mask."""
        return self.tracks[0].size

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As `get_seq_length`."""
        return self.tracks[0].size, 0


def _moved(tensor: Tensor, held: int, used: int, size: int) -> Tensor:
    """Return the newest `held` of `used` positions in a buffer of `size`; zeros behind, since 0 times NaN is NaN."""
    grown = tensor.new_zeros(*tensor.shape[:2], size, tensor.shape[3])
    grown[:, :, :held] = tensor[:, :, used - held : used]
    return grown


class StaticPair(Cache):  # type: ignore[misc]
    """The caches of two prefilled streams in static buffers.

    Args:
        contextual: Filled `DynamicCache` of the prompts with passages, B rows.
        parametric: Filled `DynamicCache` of the prompts without, B rows.
        keep: Per stream, [B, L] bool attention mask of the prompt, or None where nothing is padded.
        plain: The model's attention is transformers' eager one; see `grouped_attention`.
        dtype: Of the model, for masks.
        reserve: Longest answer.
    """

    def __init__(
        self,
        contextual: DynamicCache,
        parametric: DynamicCache,
        keep: tuple[Tensor | None, Tensor | None],
        *,
        plain: bool,
        dtype: torch.dtype,
        reserve: int,
    ) -> None:
        self.ahead = max(1, min(reserve, AHEAD))
        self._tracks: dict[tuple[int, int | None, int], _Track] = {}
        layers = []
        for streams in zip(contextual.layers, parametric.layers, strict=True):
            window = getattr(streams[0], "sliding_window", None) if streams[0].is_sliding else None
            first, second = (self._track(i, layer, window, keep[i], dtype) for i, layer in enumerate(streams))
            layers.append(StaticLayer(streams, (first, second), plain))
        super().__init__(layers=layers)

    def _track(
        self, stream: int, layer: DynamicLayer, window: int | None, keep: Tensor | None, dtype: torch.dtype
    ) -> _Track:
        keys = layer.keys
        place = (stream, window, keys.shape[2])
        if place not in self._tracks:
            if keep is None:
                keep = torch.ones(keys.shape[0], keys.shape[2], dtype=torch.bool, device=keys.device)
            self._tracks[place] = _Track(keep[:, -keys.shape[2] :], window, dtype, self.ahead)
        return self._tracks[place]

    def make_room(self) -> bool:
        """Make every buffer take one more token; return whether one had to be replaced by a larger one."""
        full = [track for track in self._tracks.values() if track.used == track.size]
        for track in full:
            held, used = track.held(), track.used
            track.resize(held, self.ahead)
            for layer in self.layers:
                for stream in (0, 1):
                    if layer.tracks[stream] is track:
                        layer.resize(stream, held, used, track.size)
        return bool(full)

    def begin_step(self) -> None:
        """Build the masks of the token about to be decoded, on the device."""
        for track in self._tracks.values():
            track.look()

    def end_step(self) -> None:
        """Move on to the next place, on the device."""
        for track in self._tracks.values():
            track.at.add_(1)

    def count_step(self) -> None:
        """Say to the host what `end_step` says to the device, which a replayed graph does by itself."""
        for track in self._tracks.values():
            track.used += 1

    def parted(self, config: Any) -> tuple[DynamicCache, ...]:
        """See `PairCache.parted`."""
        layers = [
            [
                (keys[:, :, : track.used], values[:, :, : track.used])
                for (keys, values), track in zip(layer.buffers, layer.tracks, strict=True)
            ]
            for layer in self.layers
        ]
        return parted(config, layers)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of both streams, in this order, [R] int64; a row named twice goes on as two."""
        super().batch_select_indices(indices)
        for track in self._tracks.values():
            track.keep = track.keep[indices]
