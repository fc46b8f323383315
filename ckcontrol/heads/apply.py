"""Run a model with heads pruned or scaled: `pruned`, a context manager over hooks on the output projections.

A mask multiplies the projection's *input*, where every head still has its own columns; after the projection the heads
are summed and cannot be told apart. Works with every attention kernel, with padding and with caches. Knows masks, hooks
and which stream is running; knows nothing of scores or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..decoding.streams import running_streams
from ..errors import HeadsError
from .families import HeadLayout, describe
from .forward import eager
from .mask import HeadMask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Pruned", "gated", "pruned"]

Masks = HeadMask | Sequence[HeadMask | None] | None


@contextmanager
def pruned(
    model: PreTrainedModel,
    mask: Masks = None,
    *,
    contextual: Masks = None,
    parametric: Masks = None,
    strict: bool = True,
) -> Iterator[None]:
    """**This changes what the model computes** while the block runs, for every caller in every thread.

    Factors act at every position, in prefill and in decode. On exit, even after an exception, the hooks are gone and
    the model is bit for bit what it was; a mask of ones changes no bit inside the block either. Blocks nest: factors
    multiply. Never carry a key-value cache into or out of a block. Compiled code does not see hooks: while a block
    runs, everything under ``torch.compile`` in this process runs eagerly.

    Args:
        model: A model of a known family (`families.FAMILIES`).
        mask: For every forward, both streams of `ckcontrol.generate` included. A sequence has one entry (a mask or
            None) per row of the batch; beams and ``num_return_sequences`` are rows of their own.
        contextual: Instead of `mask`: only for the stream with the passages. Needs two-stream decoding:
            `ckcontrol.generate` or `decoding_loop`; any other forward inside the block is refused.
        parametric: The same for the stream without the passages. May be given together with `contextual`.
        strict: Compare the mask's digest of the weights with the model's; False compares only the counts.

    Raises:
        HeadsError: The mask is for another model (the message names the field); `mask` is given together with a
            stream's own; or, raised from within a forward, rows and masks do not match.

    Example:
        >>> from ckcontrol.models.tiny import tiny_model
        >>> model, tokenizer = tiny_model()
        >>> ids = tokenizer("Who?", return_tensors="pt").input_ids
        >>> with pruned(model, HeadMask.of(model, [(0, 1)])):
        ...     answer = model.generate(ids, max_new_tokens=4, do_sample=False)
    """
    with Pruned(model, mask, contextual=contextual, parametric=parametric, strict=strict).acting():
        yield


class Pruned:
    """Masks of a model, checked once; `acting` may be entered for every step of a batch.

    Args and errors are those of `pruned`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        mask: Masks = None,
        *,
        contextual: Masks = None,
        parametric: Masks = None,
        strict: bool = True,
    ) -> None:
        if mask is not None and (contextual is not None or parametric is not None):
            raise HeadsError(
                "mask was given together with contextual or parametric.", "Give one mask, or one per stream."
            )
        self.layout = describe(model)
        given = (mask, mask) if mask is not None else (contextual, parametric)
        lists = [_as_list(masks) for masks in given]
        for one in {m for masks in lists for m in masks if m is not None}:
            one.check(model, strict=strict)
        self.layers = sorted({layer for masks in lists for m in masks if m is not None for layer in m.layers})
        self.factors = _Factors(self.layout, lists[0], lists[1], both=mask is not None)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Multiply the heads while the block runs."""
        with gated(self.layout, self.factors, self.layers):
            yield


@contextmanager
def gated(layout: HeadLayout, factors: Callable[[int, Tensor], Tensor], layers: Sequence[int]) -> Iterator[None]:
    """Multiply the heads of some layers while the block runs; `pruned` and the learned mask are made of this.

    Args:
        layout: What `describe` returned.
        factors: Called with the layer and the projection's input z, [B, T, H*d_h]; returns what z is multiplied by:
            broadcastable to z, in its dtype and on its device. Gradients flow through it.
        layers: The layers whose heads are multiplied.
    """
    handles = [layout.projections[layer].register_forward_pre_hook(_hook(layer, factors)) for layer in layers]
    try:
        with eager():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: int, factors: Callable[[int, Tensor], Tensor]) -> Callable[..., Any]:
    def multiply(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args:
            raise HeadsError(
                f"layer {layer} passes its heads by keyword.", "This version of transformers is not supported."
            )
        return (args[0] * factors(layer, args[0]), *args[1:])

    # A CUDA graph replays what was multiplied when it was captured: right for factors that are kept, and no others.
    multiply.repeats_itself = isinstance(factors, _Factors)  # type: ignore[attr-defined]
    return multiply


class _Factors:
    """What each layer is multiplied by for the rows at hand, built once per batch shape and kept."""

    def __init__(
        self, layout: HeadLayout, contextual: list[HeadMask | None], parametric: list[HeadMask | None], *, both: bool
    ) -> None:
        self.layout = layout
        self.masks = {"contextual": contextual, "parametric": parametric}
        self.both = both
        self.kept: dict[Any, Tensor] = {}

    def __call__(self, layer: int, z: Tensor) -> Tensor:
        streams = running_streams()
        if streams is None:
            if not self.both:
                raise HeadsError(
                    "a forward outside two-stream decoding met masks that are each for one stream.",
                    "Use ckcontrol.generate or decoding_loop inside the block, or pruned(model, mask).",
                )
            streams = ("contextual",)  # both lists are the same
        rows, rest = divmod(z.shape[0], len(streams))
        key = (layer, streams, rows, z.dtype, z.device)
        if key not in self.kept:
            if rest:
                raise HeadsError(f"{z.shape[0]} rows do not split into {len(streams)} streams.", "Report this.")
            parts = [self._part(layer, self.masks[name], rows) for name in streams]
            if all(part.shape[0] == 1 and torch.equal(part, parts[0]) for part in parts):
                whole = parts[0]
            else:
                whole = torch.cat([part.expand(rows, -1) for part in parts])
            columns = whole.repeat_interleave(self.layout.head_dim, dim=1)
            self.kept[key] = columns[:, None].to(dtype=z.dtype, device=z.device)
        return self.kept[key]

    def _part(self, layer: int, masks: list[HeadMask | None], rows: int) -> Tensor:
        """Factors of one stream: [1, H] where all rows share them, else [rows, H]."""
        if len(masks) not in (1, rows):
            raise HeadsError(
                f"{len(masks)} masks meet a batch of {rows} rows.",
                "Give one mask, or one per row; repeat each for beams and num_return_sequences.",
            )
        return torch.tensor([[1.0] * self.layout.heads if m is None else m.row(layer) for m in masks])


def _as_list(masks: Masks) -> list[HeadMask | None]:
    if masks is None or isinstance(masks, HeadMask):
        return [masks]
    found = list(masks)
    if not found or any(m is not None and not isinstance(m, HeadMask) for m in found):
        raise HeadsError(f"{masks!r} is not a list of masks.", "Give a HeadMask, or one HeadMask or None per row.")
    return found
