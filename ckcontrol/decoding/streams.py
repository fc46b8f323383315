"""The two streams: prompts with and without the passages, advanced by the same tokens.

A `Stream` is one prompt batch with its own cache, mask and positions. `TwoStreams` prefills both separately, then
decodes them in one shared forward where the model allows it (pair_cache.py), else in two. Knows forward passes, masks
and positions; knows nothing of fusion, sampling or stopping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UnsupportedMode
from .attention_kernels import steady_attention
from .matmul import few_row_products
from .refusals import accepted_inputs, bare, cache_name
from .self_check import check_itself
from .weight_rows import BASE, rows_take

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

__all__ = [
    "Stream",
    "TwoStreams",
    "last_logits",
    "running",
    "running_streams",
    "side_by_side",
    "streams_as_they_were",
]

_ALIKE = 16  # tokens that rows must begin with alike, such as a system's turn, for these to be run once
_WORTHWHILE = 8  # columns of another stream; fewer are run again as fast as they are copied
_RUNNING: ContextVar[tuple[str, ...] | None] = ContextVar("running_streams", default=None)


def running_streams() -> tuple[str, ...] | None:
    """Return whose rows the running forward holds: one stream's, or those of several in equal parts, in order.

    None outside such a forward. For hooks that treat the streams differently (heads/apply.py).
    """
    return _RUNNING.get()


def streams_as_they_were() -> Callable[[], object]:
    """Return a function that puts `running_streams` of this thread back to what it is now."""
    now = _RUNNING.get()
    return lambda: _RUNNING.set(now)


@contextmanager
def running(*streams: str) -> Iterator[None]:
    """Say whose rows the forward of this block holds, see `running_streams`; for who runs streams by hand."""
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
        self.alike = 0  # with how many tokens all rows begin alike; these are run once
        self.adapters: tuple[str, ...] | None = None  # of each row, see weight_rows.py
        self.cache: Cache | None = None
        self.cache_argument = cache_name(model) or "past_key_values"
        accepted = accepted_inputs(model)
        self._fixed: dict[str, Any] = {"use_cache": True, "return_dict": True}
        if "logits_to_keep" in accepted:
            self._fixed["logits_to_keep"] = 1

    def prefill(self, like: Stream | None = None) -> Tensor:
        """Run the prompts; return the logits of the next token, [B, V] float32.

        Args:
            like: A stream that has been prefilled; what the prompts begin with as its do is taken from it, where
                that can be done. The logits then differ by rounding from those of prompts run whole.
        """
        check_itself(self)
        begun = 0 if like is None else self._begin_like(like)
        return self._forward(self.input_ids[:, begun:], self.position[:, begun:]) if begun else self._start()

    def _begin_like(self, other: Stream) -> int:
        """Take the columns of every prompt's beginning from another stream of the model; return how many there are."""
        if not other.joins or any(layer.is_sliding for layer in other.cache.layers) or _hooked(self.model):  # type: ignore[union-attr]
            return 0
        ours, theirs = self._kept().int(), other._kept().int()
        skip, shift = ours.argmax(1), theirs.argmax(1) - ours.argmax(1)  # padding, and how much more of it there is
        size = ours.shape[1] - 1
        column = torch.arange(size, device=shift.device)[None] + shift[:, None]
        held = column.clamp(0, theirs.shape[1] - 1)
        same = (other.input_ids.gather(1, held) == self.input_ids[:, :size]) & (column == held)
        same |= torch.arange(size, device=skip.device)[None] < skip[:, None]  # padding is like any other
        begun = int(same.all(0).int().cumprod(0).sum())
        if begun < _WORTHWHILE:
            return 0
        from transformers.cache_utils import DynamicCache

        self.cache, place = DynamicCache(config=self.model.config), held[:, None, :begun, None]
        for layer, source in zip(self.cache.layers, other.cache.layers, strict=True):  # type: ignore[union-attr]
            taken = [x.gather(2, place.expand(-1, x.shape[1], -1, x.shape[3])) for x in (source.keys, source.values)]
            layer.lazy_initialization(*taken)
            layer.keys, layer.values = taken
        return begun

    def _start(self) -> Tensor:
        from transformers.cache_utils import DynamicCache

        # As transformers' generate decides it: models with a cache class of their own make one and return it.
        takes_dynamic = getattr(bare(self.model), "_supports_default_dynamic_cache", lambda: True)()
        self.cache = DynamicCache(config=self.model.config) if takes_dynamic else None
        if self.alike and self.cache is not None and not any(layer.is_sliding for layer in self.cache.layers):
            return self._start_once(self.cache, self.alike)
        return self._forward(self.input_ids, self.position)

    def _start_once(self, cache: Cache, alike: int) -> Tensor:
        """Run what all rows begin with once, and behind it the rest of each; the cache is that of `_start`."""
        keep, position, (rows, length) = self.keep, self.position, self.input_ids.shape
        first = self.input_ids[:1] if keep is None else self.input_ids[keep.all(1)][:1]  # the longest has no padding
        self.keep, self.position = None, torch.arange(alike, device=position.device)[None]
        self._forward(first[:, :alike], self.position)
        cache.batch_repeat_interleave(rows)
        if keep is not None:  # between the beginning and the rest, for now
            self.keep = torch.cat([keep.new_ones(rows, alike), keep[:, : length - alike]], dim=1)
        logits = self._forward(self.input_ids[:, alike:], position[:, alike:])
        self.keep, self.position = keep, position
        if keep is not None:
            column, padding = torch.arange(length, device=position.device)[None], (~keep).sum(1, keepdim=True)
            place = torch.where(column < padding + alike, (column - padding).clamp_min(0), column)[:, None, :, None]
            for layer in cache.layers:
                for name in ("keys", "values"):
                    held = getattr(layer, name)
                    setattr(layer, name, held.gather(2, place.expand(-1, held.shape[1], -1, held.shape[3])))
        return logits

    @torch.no_grad()
    def read(self, positions: int, name: str = "contextual") -> Tensor:
        """Run the rows once, keeping nothing; return the logits of the last positions, [B, positions, V] float32.

        Args:
            positions: How many.
            name: What the stream is to `running_streams`.
        """
        kept = {"logits_to_keep": positions} if "logits_to_keep" in self._fixed else {}
        with running(name), rows_take(self.adapters):
            output = self.model(
                input_ids=self.input_ids,
                attention_mask=None if self.keep is None else self.keep.long(),
                position_ids=self.position,
                **{**self._fixed, **kept, "use_cache": False},
            )
        return output.logits[:, -positions:].float()  # type: ignore[no-any-return]

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
        if self.adapters is not None:
            self.adapters = tuple(self.adapters[row] for row in rows.tolist())
        if self.keep is not None:
            self.keep = self.keep[rows]
        if self.cache is not None:
            _select(self.cache, rows)

    @property
    def joins(self) -> bool:
        """Whether rows of other streams can be taken in: the past is keys and values, in transformers' own layers."""
        from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

        return type(self.cache) is DynamicCache and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.is_initialized
            for layer in getattr(self.cache, "layers", ())
        )

    def join(self, others: Sequence[Stream]) -> None:
        """Take in the rows of other streams of the model, behind one's own; all have been prefilled, see `joins`.

        Every row ends at the newest position, so shorter ones are padded on the left, as prompts of a batch are; what
        no row looks at any more is cut.
        """
        streams = [self, *others]
        self.adapters = _adapters(streams)
        length = 1 + max(int(stream.position[:, -1].max()) for stream in streams)
        keep = torch.cat([_newest(stream._kept(), 1, length) for stream in streams])
        self.position = torch.cat([stream.position[:, -1:] for stream in streams])
        self.keep = None if bool(keep.all()) else keep
        for layer, *more in zip(*(stream.cache.layers for stream in streams), strict=True):  # type: ignore[union-attr]
            size = min(length, layer.sliding_window - 1) if layer.is_sliding else length
            layer.keys = torch.cat([_newest(one.keys, 2, size) for one in (layer, *more)])
            layer.values = torch.cat([_newest(one.values, 2, size) for one in (layer, *more)])
            if layer.is_sliding:
                layer.cumulative_length = length
        for stream in others:
            stream.cache = None  # who asked holds the stream for as long as the row runs

    def _kept(self) -> Tensor:
        """Return what is no padding, [B, L] bool."""
        if self.keep is not None:
            return self.keep
        rows, length = len(self.position), 1 + int(self.position[0, -1])
        return torch.ones(rows, length, dtype=torch.bool, device=self.position.device)

    def _remembers(self) -> bool:
        """Whether the past is a recurrent state, not keys: it has forgotten padding, and takes no mask of the past."""
        return self.position.shape[1] == 1 and not any(
            hasattr(layer, "keys") for layer in getattr(self.cache, "layers", ())
        )

    def _forward(self, input_ids: Tensor, position: Tensor) -> Tensor:
        with rows_take(self.adapters):
            output = self.model(
                input_ids=input_ids,
                attention_mask=None if self.keep is None or self._remembers() else self.keep.long(),
                position_ids=position,
                **{self.cache_argument: self.cache},
                **self._fixed,
            )
        if self.cache is None:
            self.cache = getattr(output, self.cache_argument)
        return last_logits(output.logits)


def side_by_side(streams: Sequence[Stream]) -> Stream:
    """Return one stream with the rows of several of a model, padded on the left to the longest; none has been run."""
    longest = max(stream.input_ids.shape[1] for stream in streams)
    ids = torch.cat([_newest(stream.input_ids, 1, longest) for stream in streams])
    keep = torch.cat([_newest(stream._kept(), 1, longest) for stream in streams])
    # Padding repeats a row's own id, so that no row meets an embedding that is not its own.
    made = Stream(streams[0].model, ids.where(keep, ids[:, -1:]), keep)
    made.adapters = _adapters(streams)
    if made.adapters is None:
        own = [row[kept] for row, kept in zip(ids, keep, strict=True)]
        least = min(map(len, own)) - 1  # one token is left to each
        alike = torch.stack([row[:least] == own[0][:least] for row in own]).all(0).cumprod(0).sum() if least > 0 else 0
        made.alike = int(alike) if alike >= _ALIKE else 0
    return made


def _adapters(streams: Sequence[Stream]) -> tuple[str, ...] | None:
    """Return the adapters of the rows of several streams, in order; each has as many as rows."""
    if all(stream.adapters is None for stream in streams):
        return None
    return tuple(name for one in streams for name in one.adapters or (BASE,) * one.position.shape[0])


def _newest(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Return the newest `size` positions of a dimension, with zeros (False) before them where there are fewer."""
    missing = max(0, size - tensor.shape[dim])
    tensor = tensor.narrow(dim, tensor.shape[dim] - (size - missing), size - missing)
    return torch.nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 1 - dim) + (missing, 0)) if missing else tensor


def _select(cache: Cache, rows: Tensor) -> None:
    """Keep these rows of a cache, [R] int64; of recurrent states too, which only `reorder_cache` knows of."""
    recurrent = any(hasattr(layer, "recurrent_states") for layer in getattr(cache, "layers", ()))
    select = getattr(cache, "reorder_cache" if recurrent else "batch_select_indices", None)
    if select is None:
        raise UnsupportedMode(
            f"rows of {type(cache).__name__} cannot be picked, which methods of several drafts need.",
            "Use a method that decodes one draft, such as Control('cad').",
        )
    select(rows)


def _hooked(model: PreTrainedModel) -> bool:
    """Whether anything listens to the model's forwards, which may treat the streams differently (heads/apply.py)."""
    return any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def last_logits(logits: Tensor) -> Tensor:
    """Return the last position as a float32 copy of its own, [B, L, V] -> [B, V]."""
    return logits[:, -1].to(dtype=torch.float32, copy=True)


class TwoStreams:
    """Contextual and parametric stream in lockstep. The model is as it was whenever no method runs.

    Args:
        contextual: The prompts with passages.
        parametric: The prompts without; None runs the contextual stream alone.
        share: Decode both in one forward. The logits then differ from two forwards by rounding only.
        reserve: Number of tokens to decode, for allocation.
        steered: Answers are steered, so attention need not use the kernels of plain generation; None: if `share`.
        alike: Run what the prompts of both begin with once (a chat's system prompt), on a CPU, where a forward's time
            grows with its tokens; the parametric stream then is not that of the closed book to the last bit.
    """

    def __init__(
        self,
        contextual: Stream,
        parametric: Stream | None,
        *,
        share: bool,
        reserve: int,
        steered: bool | None = None,
        alike: bool = False,
    ) -> None:
        self.contextual = contextual
        self.parametric = parametric
        self.share = share and parametric is not None
        self.steered = self.share if steered is None else steered
        self.reserve = reserve
        self.alike = alike and self.share and contextual.input_ids.device.type == "cpu"
        self._pair: Any = None

    def prefill(self) -> tuple[Tensor, Tensor | None]:
        """Run both prompts, each at its own length; return their next-token logits, [B, V] float32 each."""
        with self._products():
            with self._runs("contextual"):
                logits_ctx = self.contextual.prefill()
            logits_par = None
            if self.parametric is not None:
                with self._runs("parametric"):
                    logits_par = self.parametric.prefill(self.contextual if self.alike else None)
        if self.share and self.parametric is not None:
            self._join(self.contextual, self.parametric)
        return logits_ctx, logits_par

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Append the same tokens, [B] int64, to both streams; return their next-token logits."""
        if self._pair is None or self.parametric is None:
            with self._runs("contextual"):
                logits_ctx = self.contextual.step(tokens)
            if self.parametric is None:
                return logits_ctx, None
            with self._runs("parametric"):
                return logits_ctx, self.parametric.step(tokens)
        logits = last_logits(self._shared_step(tokens, self.parametric))
        rows = tokens.shape[0]
        return logits[:rows], logits[rows:]

    def _shared_step(self, tokens: Tensor, parametric: Stream) -> Tensor:
        """Append one token per row, [B], to both streams in one forward; return the model's logits, [2B, 1, V]."""
        self._pair.begin_step()
        self.contextual.advance()
        parametric.advance()
        position = torch.cat([self.contextual.position, parametric.position])
        token = torch.cat([tokens, tokens])[:, None]
        return self._shared_forward(self.contextual.model, input_ids=token, position_ids=position)

    def _shared_forward(self, forward: Callable[..., Any], **inputs: Any) -> Tensor:
        from .pair_cache import pair_attention

        model = self.contextual.model
        with self._products(), self._runs("contextual", "parametric"), pair_attention(model, self.contextual):
            output = forward(use_cache=True, return_dict=True, **{self.contextual.cache_argument: self._pair}, **inputs)
        return output.logits  # type: ignore[no-any-return]

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

    def rewind(self, rows: Tensor, drop: Sequence[int]) -> None:
        """Keep these rows as they were before their newest positions: answers go on from there.

        Rows that forget more than others are moved up, and masked where they began, so that all end at one place.

        Args:
            rows: As in `select`.
            drop: How many positions each of them forgets; none of the prompt's.

        Raises:
            UnsupportedMode: The streams do not share their forward.
        """
        if self._pair is None or self.parametric is None:
            raise UnsupportedMode("streams of two forwards cannot be led back.", "Leave segments out.")
        for stream in (self.contextual, self.parametric):
            stream.select(rows)
            stream.position = stream.position[:, -1:] - torch.tensor(drop, device=rows.device)[:, None]
        self._pair.rewind(rows, drop)

    @property
    def joins(self) -> bool:
        """Whether these streams, which have been prefilled, can take in rows of others, or be taken in."""
        streams = [self.contextual] if self.parametric is None else [self.contextual, self.parametric]
        return self._pair is not None or all(stream.joins for stream in streams)

    @property
    def wasteful(self) -> bool:
        """Whether `join`, be it of nobody, would cut more than a quarter of a stream: what no row looks at any more."""
        pair = [stream for stream in (self.contextual, self.parametric) if stream is not None and self.joins]
        return any(
            stream.keep is not None and 4 * (1 + int(stream.position[:, -1].max())) < 3 * stream.keep.shape[1]
            for stream in pair
        )

    def join(self, others: Sequence[TwoStreams]) -> None:
        """Take in the rows of others, behind one's own: they go on with the next step; see `Stream.join`.

        Args:
            others: Prefilled streams of the same model that run as these do; of no use afterwards.
        """
        for streams in (self, *others):
            streams._part()
        self.contextual.join([streams.contextual for streams in others])
        if self.parametric is not None:
            self.parametric.join([streams.parametric for streams in others])  # type: ignore[misc]
            if self.share:
                self._join(self.contextual, self.parametric)

    def _part(self) -> None:
        """Give each stream a cache of its own again."""
        if self._pair is not None and self.parametric is not None:
            self.contextual.cache, self.parametric.cache = self._pair.parted(self.contextual.model.config)
            self._pair = None

    @contextmanager
    def _runs(self, *streams: str) -> Iterator[None]:
        """A forward of these streams; of steered ones with kernels that take any length as it comes."""
        with (
            running(*streams),
            steady_attention(self.contextual.input_ids.device, self.contextual) if self.steered else nullcontext(),
        ):
            yield

    def _products(self) -> AbstractContextManager[Any]:
        """Fast few-row products where streams share forwards; otherwise the model's own, bit for bit."""
        model = self.contextual.model
        return few_row_products(model, self.contextual) if self.share else nullcontext()

    def _join(self, first: Stream, second: Stream) -> None:
        from .pair_cache import PairCache

        model = first.model
        self._pair = PairCache(
            (first.cache, second.cache),
            (first.keep, second.keep),
            additive=str(model.config._attn_implementation).endswith("eager"),
            dtype=model.dtype,
            reserve=min(self.reserve, 512),
        )
        first.cache = second.cache = None
