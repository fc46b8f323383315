"""The two streams: prompts with and without the passages, advanced by the same tokens.

A `Stream` is one prompt batch with its own cache, mask and positions. `TwoStreams` prefills both separately, then
decodes them in one shared forward where the model allows it (pair_cache.py), else in two. Knows forward passes, masks
and positions; knows nothing of fusion, sampling or stopping.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UnsupportedMode
from .matmul import few_row_products

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache

__all__ = ["Stream", "TwoStreams", "running_streams", "streams_as_they_were"]

_RUNNING: ContextVar[tuple[str, ...] | None] = ContextVar("running_streams", default=None)


def running_streams() -> tuple[str, ...] | None:
    """Return whose rows the running forward of `TwoStreams` holds: one stream's, or both in equal halves, in order.

    None outside such a forward. For hooks that treat the streams differently (heads/apply.py).
    """
    return _RUNNING.get()


def streams_as_they_were() -> Callable[[], object]:
    """Return a function that puts `running_streams` of this thread back to what it is now."""
    now = _RUNNING.get()
    return lambda: _RUNNING.set(now)


@contextmanager
def _running(*streams: str) -> Iterator[None]:
    token = _RUNNING.set(streams)
    try:
        yield
    finally:
        _RUNNING.reset(token)


class Stream:
    """One batch of left-padded prompts with its key-value cache.

    Args:
        model: A decoder-only transformers model.
        input_ids: [B, L] int64, padded on the left.
        mask: [B, L], 1 = token, 0 = padding; None means no padding.

    Raises:
        UnsupportedMode: The prompts are padded on the right.
    """

    def __init__(self, model: PreTrainedModel, input_ids: Tensor, mask: Tensor | None) -> None:
        self.model = model
        self.input_ids = input_ids
        keep = None if mask is None else mask.to(input_ids.device).bool()
        if keep is not None and bool(keep.all()):
            keep = None  # transformers drops such masks too; attention then takes its fast path
        if keep is not None and not bool(keep[:, -1].all()):
            raise UnsupportedMode("a prompt is padded on the right.", "Tokenize with padding_side='left'.")
        self.keep = keep
        if keep is None:
            self.position = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
        else:
            self.position = (keep.long().cumsum(-1) - 1).masked_fill(~keep, 0)
        self.cache: DynamicCache | None = None
        accepted = inspect.signature(model.forward).parameters
        self.cache_argument = (
            "cache" if "cache" in accepted else "past_key_values"
        )  # its name from transformers 5.24 on
        self._fixed: dict[str, Any] = {"use_cache": True, "return_dict": True}
        if "logits_to_keep" in accepted:
            self._fixed["logits_to_keep"] = 1

    def prefill(self) -> Tensor:
        """Run the prompts; return the logits of the next token, [B, V] float32."""
        from transformers.cache_utils import DynamicCache

        self.cache = DynamicCache(config=self.model.config)
        return self._forward(self.input_ids, self.position)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token per row, [B] int64; return the logits of the next, [B, V] float32."""
        self.advance()
        return self._forward(tokens[:, None], self.position)

    def advance(self) -> None:
        """Move positions and mask to the next token."""
        self.position = self.position[:, -1:] + 1
        if self.keep is not None:
            self.keep = torch.cat([self.keep, self.keep.new_ones(self.keep.shape[0], 1)], dim=1)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, [R] int64; see `TwoStreams.select`."""
        self.position = self.position[rows]
        if self.keep is not None:
            self.keep = self.keep[rows]
        if self.cache is not None:
            self.cache.batch_select_indices(rows)

    def _forward(self, input_ids: Tensor, position: Tensor) -> Tensor:
        output = self.model(
            input_ids=input_ids,
            attention_mask=None if self.keep is None else self.keep.long(),
            position_ids=position,
            **{self.cache_argument: self.cache},
            **self._fixed,
        )
        return last_logits(output.logits)


def last_logits(logits: Tensor) -> Tensor:
    """Return the last position as a float32 copy of its own, [B, L, V] -> [B, V]."""
    return logits[:, -1].to(dtype=torch.float32, copy=True)


class TwoStreams:
    """Contextual and parametric stream in lockstep. The model is as it was whenever no method runs; a context manager makes sure.

    Args:
        contextual: The prompts with passages.
        parametric: The prompts without; None runs the contextual stream alone.
        share: Decode both in one forward. The logits then differ from two forwards by rounding only.
        reserve: Number of tokens to decode, for allocation.
    """

    def __init__(self, contextual: Stream, parametric: Stream | None, *, share: bool, reserve: int) -> None:
        self.contextual = contextual
        self.parametric = parametric
        self.share = share and parametric is not None
        self.reserve = reserve
        self._pair: Any = None

    def __enter__(self) -> TwoStreams:
        return self

    def __exit__(self, *exc: object) -> None:
        from .pair_cache import leave_pair_attention

        leave_pair_attention(self.contextual.model, self.contextual)

    def prefill(self) -> tuple[Tensor, Tensor | None]:
        """Run both prompts, each at its own length; return their next-token logits, [B, V] float32 each."""
        with self._products():
            with _running("contextual"):
                logits_ctx = self.contextual.prefill()
            logits_par = None
            if self.parametric is not None:
                with _running("parametric"):
                    logits_par = self.parametric.prefill()
        if self.share and self.parametric is not None:
            self._join(self.contextual, self.parametric)
        return logits_ctx, logits_par

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Append the same tokens, [B] int64, to both streams; return their next-token logits."""
        if self._pair is None or self.parametric is None:
            with _running("contextual"):
                logits_ctx = self.contextual.step(tokens)
            if self.parametric is None:
                return logits_ctx, None
            with _running("parametric"):
                return logits_ctx, self.parametric.step(tokens)
        from .pair_cache import pair_attention

        model = self.contextual.model
        self._pair.begin_step()
        self.contextual.advance()
        self.parametric.advance()
        position = torch.cat([self.contextual.position, self.parametric.position])
        token = torch.cat([tokens, tokens])[:, None]
        with self._products(), _running("contextual", "parametric"), pair_attention(model, self.contextual):
            output = model(
                input_ids=token,
                position_ids=position,
                use_cache=True,
                return_dict=True,
                **{self.contextual.cache_argument: self._pair},
            )
        logits = last_logits(output.logits)
        rows = tokens.shape[0]
        return logits[:rows], logits[rows:]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order, for the steps that follow; a row named several times goes on as several.

        So prompts are run once for answers that begin alike and part later, and ended rows can be dropped.

        Args:
            rows: [R] int64, each below the number of rows so far.
        """
        self.contextual.select(rows)
        if self.parametric is not None:
            self.parametric.select(rows)
        if self._pair is not None:
            self._pair.batch_select_indices(rows)

    def _products(self) -> AbstractContextManager[Any]:
        """Fast few-row products where streams share forwards; otherwise the model's own, bit for bit."""
        model = self.contextual.model
        return few_row_products(model.device, model.dtype) if self.share else nullcontext()

    def _join(self, first: Stream, second: Stream) -> None:
        from .pair_cache import PairCache

        model = first.model
        self._pair = PairCache(
            first.cache,
            second.cache,
            (first.keep, second.keep),
            additive=str(model.config._attn_implementation).endswith("eager"),
            dtype=model.dtype,
            reserve=min(self.reserve, 512),
        )
        first.cache = second.cache = None
