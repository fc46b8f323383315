"""N streams side by side: memory, each source and all passages together, prefilled once, stepped in one forward.

Every stream has one row per question; a question with fewer sources than others has rows there that nobody reads. The
prompts' caches can be kept, so that whole drafts are read after every prompt in one forward each. Knows streams and
caches; knows nothing of fusion, weights or text. A pair of streams is `streams.TwoStreams`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..fusion.distributions import entropy, log_probs
from .attention_kernels import steady_attention
from .matmul import few_row_products, leave_few_row_products
from .pair_cache import PairCache, can_share_forward, leave_pair_attention, pair_attention, parted
from .sources import SourcePrompts
from .streams import Stream, last_logits, running

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Reading", "SourceStreams", "slots"]

_AT_ONCE = 2**25  # logits held while drafts are read


@dataclass(frozen=True)
class Reading:
    """What one source makes of one draft: one number per token, in nats; the raw distribution.

    Attributes:
        logp: Log-probability of the token.
        h: Entropy.
        rank: Rank of the token; 0 is the favourite.
        best: Log-probability of that favourite.
    """

    logp: Sequence[float]
    h: Sequence[float]
    rank: Sequence[int]
    best: Sequence[float]


def slots(prompts: Sequence[SourcePrompts]) -> list[list[int | None]]:
    """Return, per stream, which prompt of each question it holds; None where the question has none there.

    The streams lie in the order of `SourcePrompts`: memory first, all last. A question whose only source is all it has,
    beside others with several, has that prompt in both places.
    """
    most = max(len(one.names) for one in prompts)
    inner: list[list[int | None]] = [
        [i if i < max(len(one.names) - 1, 2 * (len(one.names) == 2)) else None for one in prompts]
        for i in range(1, most - 1)
    ]
    last: list[list[int | None]] = [[len(one.names) - 1 for one in prompts]] if most > 1 else []
    return [[0] * len(prompts), *inner, *last]


@dataclass
class _Group:
    """The streams of one model, which share a forward where it allows that."""

    model: PreTrainedModel
    places: list[int]
    shares: bool
    pair: PairCache | None = None


@dataclass
class _Prompt:
    """What is kept of a prefilled stream."""

    cache: Any  # None: it cannot be gone on from with several positions at once
    logits: Tensor
    ids: Tensor
    keep: Tensor | None
    position: Tensor = field(repr=False)


class SourceStreams:
    """Streams of any number, B rows each, in lockstep. The models are as they were whenever no method runs.

    Args:
        streams: In order; memory first, all passages together last. Their models may differ, not their vocabularies.
        reserve: Number of tokens to decode, for allocation.
        share: Step the streams of a model in one forward where it allows that. The logits then differ from those of
            forwards of their own by rounding only.
        keep: Keep what the prompts came to, for `score`; the storage is that of the caches themselves.
        vocab_size: Number of ids the tokenizer knows; `score` gives the others no probability. None: the model's width.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        reserve: int,
        share: bool = True,
        keep: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        self.streams = list(streams)
        self.reserve, self.vocab_size, self._keeps = reserve, vocab_size, keep
        models = list(dict.fromkeys(stream.model for stream in streams))
        self._groups = [
            _Group(model, [i for i, stream in enumerate(streams) if stream.model is model], share) for model in models
        ]
        for group in self._groups:
            group.shares = share and len(group.places) > 1 and can_share_forward(group.model)
        self._prompts: list[_Prompt] = []
        self._made: list[Tensor] = []  # the logits of the prompts that have been run

    def __len__(self) -> int:
        return len(self.streams)

    @torch.no_grad()
    def prefill(self) -> Tensor:
        """Run every prompt once, at its own length; return the logits of the next tokens, [S, B, V] float32."""
        for _ in self.prefilling():
            pass
        logits = _stacked(self._made)
        self._made = []
        caches = [stream.cache if stream.joins else None for stream in self.streams]
        for group in self._groups:
            if group.shares:
                self._join(group, caches)
        if self._keeps:
            for i, (stream, cache) in enumerate(zip(self.streams, caches, strict=True)):
                held = None if cache is None else _view(cache, stream)
                self._prompts.append(_Prompt(held, logits[i].clone(), stream.input_ids, stream.keep, stream.position))
        return logits

    @torch.no_grad()
    def prefilling(self) -> Iterator[None]:
        """Run the prompts that have not been run, one at each turn, ahead of `prefill`."""
        for i in range(len(self._made), len(self)):
            with self._around(self.streams[i].model, [i]):
                self._made.append(self.streams[i].prefill())
            yield

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every row; return the logits of the next, [S, B, V] float32.

        Args:
            tokens: [B] int64: the same in every stream; or [S, B]: each stream its own.
        """
        each = tokens.expand(len(self), -1)
        made: list[Tensor] = [tokens] * len(self)
        for group in self._groups:
            streams = [self.streams[i] for i in group.places]
            if group.pair is None:
                for i, stream in zip(group.places, streams, strict=True):
                    with self._around(stream.model, [i]):
                        made[i] = stream.step(each[i].to(stream.input_ids.device))
                continue
            group.pair.begin_step()
            for stream in streams:
                stream.advance()
            fed = torch.cat([each[i] for i in group.places])[:, None]
            with self._around(group.model, group.places), pair_attention(group.model, self.streams[-1]):
                output = group.model(
                    input_ids=fed.to(streams[0].input_ids.device),
                    position_ids=torch.cat([stream.position for stream in streams]),
                    use_cache=True,
                    return_dict=True,
                    **{streams[0].cache_argument: group.pair},
                )
            logits = last_logits(output.logits)
            if len(self._groups) == 1:
                return logits.view(len(self), -1, logits.shape[-1])
            for i, rows in zip(group.places, logits.chunk(len(streams)), strict=True):
                made[i] = rows
        return _stacked(made)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of every stream, [R] int64, in this order; see `TwoStreams.select`."""
        for stream in self.streams:
            stream.select(rows)
        for group in self._groups:
            if group.pair is not None:
                group.pair.batch_select_indices(rows)

    def leave(self) -> None:
        """Put every model's attention back; does no harm where it is in place."""
        for group in self._groups:
            leave_pair_attention(group.model, self.streams[-1])
            leave_few_row_products(group.model, self.streams[-1])

    @torch.no_grad()
    def score(self, row: int, drafts: Sequence[Sequence[int]]) -> list[list[Reading]]:
        """Return what every source makes of every draft, read after its prompt: [S][D] of T numbers each.

        One forward per source over all drafts; the prompts' caches are as they were.

        Args:
            row: The question, as it was numbered when the prompts were run.
            drafts: Token ids, the end token included; none of them empty.
        """
        return [self.score_by(i, row, drafts) for i in range(len(self))]

    @torch.no_grad()
    def score_by(self, place: int, row: int, drafts: Sequence[Sequence[int]]) -> list[Reading]:
        """Return what one source makes of every draft, as `score` does."""
        prompt, stream = self._prompts[place], self.streams[place]
        longest, device = max(map(len, drafts)), prompt.ids.device
        tokens = torch.tensor([[*draft, *[draft[-1]] * (longest - len(draft))] for draft in drafts], device=device)
        found: list[Reading] = []
        size = max(1, _AT_ONCE // (longest * prompt.logits.shape[-1]))
        for first in range(0, len(drafts), size):
            part = tokens[first : first + size]
            with self._around(stream.model, [place]):
                read = _read_anew if prompt.cache is None else _read_on
                logits = read(stream, prompt, row, part, _role(place))
            for ids, scores, draft in zip(part, logits, drafts[first : first + size], strict=True):
                found.append(self._reading(scores[: len(draft)].float(), ids[: len(draft)]))
        return found

    def _reading(self, logits: Tensor, ids: Tensor) -> Reading:
        if self.vocab_size is not None:
            logits[:, self.vocab_size :] = -torch.inf
        logp = log_probs(logits)
        own = logp.gather(-1, ids[:, None].to(logp.device))
        ranks = (logp > own).sum(-1)
        return Reading(own[:, 0].tolist(), entropy(logp).tolist(), ranks.tolist(), logp.amax(-1).tolist())

    def _around(self, model: PreTrainedModel, places: Sequence[int]) -> ExitStack:
        """A forward of these streams: hooks know whose rows they see; kernels are those of steered steps."""
        stack = ExitStack()
        stack.enter_context(running(*map(_role, places)))
        if any(group.shares for group in self._groups):
            stack.enter_context(few_row_products(model, self.streams[-1]))
            stack.enter_context(steady_attention(model.device, self.streams[-1]))
        return stack

    def _join(self, group: _Group, caches: list[Any]) -> None:
        streams = [self.streams[i] for i in group.places]
        group.pair = PairCache(
            [stream.cache for stream in streams],
            [stream.keep for stream in streams],
            additive=str(group.model.config._attn_implementation).endswith("eager"),
            dtype=group.model.dtype,
            reserve=min(self.reserve, 512),
        )
        if self._keeps:  # views of the same storage, which is written behind them only
            for i, cache in zip(group.places, group.pair.parted(group.model.config), strict=True):
                caches[i] = cache
        for stream in streams:
            stream.cache = None


def _role(place: int) -> str:
    """Return what a stream is to hooks that treat memory and passages differently."""
    return "contextual" if place else "parametric"


def _stacked(logits: Sequence[Tensor]) -> Tensor:
    """Return rows of all streams as one tensor; other models may score more ids, which no tokenizer knows."""
    width = min(rows.shape[-1] for rows in logits)
    return torch.stack([rows[..., :width].to(logits[-1].device) for rows in logits])


def _view(cache: Any, stream: Stream) -> Any:
    """Return a cache over the same keys and values, which what happens to the first does not change."""
    held = parted(stream.model.config, [[(layer.keys, layer.values)] for layer in cache.layers])[0]
    for layer in held.layers:
        if layer.is_sliding:
            layer.cumulative_length = stream.input_ids.shape[1]
    return held


def _read_on(stream: Stream, prompt: _Prompt, row: int, tokens: Tensor, role: str) -> Tensor:
    """Return the logits at each token of the drafts, [D, T, V]: the prompt's own first, and not the last's."""
    first = prompt.logits[row].expand(len(tokens), 1, -1)
    if tokens.shape[1] == 1:
        return first
    rows = torch.full((len(tokens),), row, device=tokens.device)
    cache = _view(prompt.cache, stream)
    cache.batch_select_indices(rows)
    fed = tokens[:, :-1]
    ahead = torch.arange(1, fed.shape[1] + 1, device=fed.device)
    mask = None
    if prompt.keep is not None:
        mask = torch.cat([prompt.keep[rows], torch.ones_like(fed, dtype=torch.bool)], dim=1).long()
    output = stream.model(
        input_ids=fed,
        attention_mask=mask,
        position_ids=prompt.position[rows, -1:] + ahead,
        use_cache=True,
        return_dict=True,
        **{stream.cache_argument: cache},
    )
    return torch.cat([first, output.logits.float()[..., : first.shape[-1]].to(first.device)], dim=1)


def _read_anew(stream: Stream, prompt: _Prompt, row: int, tokens: Tensor, role: str) -> Tensor:
    """Return the same from prompt and drafts in one forward, where a cache takes one position at a time."""
    ids = prompt.ids[row] if prompt.keep is None else prompt.ids[row][prompt.keep[row]]
    rows = torch.cat([ids.expand(len(tokens), -1), tokens], dim=1)
    return Stream(stream.model, rows, None).read(tokens.shape[1] + 1, role)[:, :-1, : prompt.logits.shape[-1]]
