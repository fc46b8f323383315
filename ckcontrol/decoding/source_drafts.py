"""Whole answers of several sources: each writes its own from beginning to end, each reads all, one is given.

Sources of a question run side by side as streams of their own (source_streams.py): memory, each passage or group, and
all passages together, which are put in an order that their texts decide, so that the order they came in does not
matter. Knows streams and drafts; policies/source_answers.py knows which answer is given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..errors import NonFiniteLogits
from ..fusion.distributions import nonfinite_rows
from ..policies import SourceDraft, first_sentence, surprise
from .inputs import processors_for, stream_of
from .loop import Draw
from .options import GenerateOptions
from .source_streams import Reading, SourceStreams, slots
from .sources import SourcePrompts
from .token_texts import StopTexts, said

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")

__all__ = ["SourceAnswer", "canonical", "through", "writing"]


@dataclass(frozen=True)
class SourceAnswer:
    """What a question's sources came to.

    Attributes:
        ids: Of each source's draft, the end token included, in the order of `SourcePrompts`.
        finals: Log-probability of each of its ids in the distribution that it was drawn from, nats.
        texts: Of each draft.
        readings: What each source makes of each draft.
    """

    ids: Sequence[Sequence[int]]
    finals: Sequence[Sequence[float]]
    texts: Sequence[str]
    readings: Sequence[Sequence[Reading]]

    def told(self, prompts: SourcePrompts) -> list[SourceDraft]:
        """Return it as `weigh` takes it."""
        found = []
        for place, (text, readings, pair) in enumerate(zip(self.texts, self.readings, prompts.pairs, strict=True)):
            own = readings[place].logp[: first_sentence(text, len(self.ids[place]))]
            each = [surprise(reading.logp) for reading in readings]
            found.append(SourceDraft(text, each, surprise(own), pair.passages))
        return found


def canonical(passages: Sequence[str]) -> list[int]:
    """Return the places of passages in an order that their texts decide: by SHA-256, so no alphabet comes first."""
    return sorted(range(len(passages)), key=lambda place: hashlib.sha256(passages[place].encode()).digest())


def through(steps: Generator[None, None, T]) -> T:
    """Run steps to their end and return their value."""
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            value: T = ended.value
            return value


@torch.no_grad()
def writing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[SourcePrompts],
    options: GenerateOptions,
    *,
    ends: Sequence[int],
    vocab_size: int | None,
    instead: Sequence[tuple[int, Sequence[int]] | None] = (),
) -> Generator[None, None, list[SourceAnswer]]:
    """Let every source of every question write its answer, and read those of the others: a forward at each turn.

    Args:
        model: Writes and reads; sources with a model of their own are read by it.
        tokenizer: Of all of them.
        prompts: One per question; of a question with another model among its sources, that one alone.
        options: How tokens are drawn and when to stop. With a seed, every source of a question draws with it.
        ends: End tokens.
        vocab_size: Number of ids the tokenizer knows; the others are never said.
        instead: Of each question, the place of a source and the answer that is read as its draft; None: as it wrote it.

    Returns:
        An answer per question, as the generator's value.

    Raises:
        NonFiniteLogits: Of a source, named as its stream.
    """
    if not prompts:
        return []
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    table = slots(prompts)
    held = [
        [one.ids[place if place is not None else 0] for one, place in zip(prompts, places, strict=True)]
        for places in table
    ]
    models = [(prompts[0].models[places[0] or 0] or model) if len(prompts) == 1 else model for places in table]
    streams = SourceStreams(
        [stream_of(each, rows, pad) for each, rows in zip(models, held, strict=True)],
        reserve=options.max_new_tokens,
        keep=True,
        vocab_size=vocab_size,
    )
    try:
        ids, finals = yield from _write(streams, tokenizer, prompts, table, options, ends, vocab_size)
        found = []
        for row, one in enumerate(prompts):
            own = [slot for slot, places in enumerate(table) if places[row] is not None]
            drafts = [ids[slot][row] for slot in own]
            if instead and (other := instead[row]) is not None:
                drafts[other[0]] = list(other[1])
            distinct = list(dict.fromkeys(map(tuple, drafts)))
            read = []
            for slot in range(len(streams)):
                read.append(streams.score_by(slot, row, distinct))
                yield
            which = [distinct.index(tuple(draft)) for draft in drafts]
            texts = [said(tokenizer, d, stop=options.stop, ends=ends, thinking=one.pair.thinking).text for d in drafts]
            readings = [[read[slot][place] for place in which] for slot in own]
            found.append(SourceAnswer(drafts, [finals[slot][row] for slot in own], texts, readings))
    finally:
        streams.leave()
    return found


def _write(
    streams: SourceStreams,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[SourcePrompts],
    table: Sequence[Sequence[int | None]],
    options: GenerateOptions,
    ends: Sequence[int],
    vocab_size: int | None,
) -> Generator[None, None, tuple[list[list[list[int]]], list[list[list[float]]]]]:
    """Return the ids that each stream writes for each question, [S][B], and their final log-probabilities."""
    count, rows = len(streams), len(prompts)
    device = streams.streams[-1].input_ids.device
    stops = StopTexts(tokenizer, options.stop, 0) if options.stop else None
    processing = [processors_for(options, stream.keep) for stream in streams.streams]
    penalised = options.penalty_scope == "all"
    seeds = None if options.seed is None else [options.seed] * rows
    draws = [Draw(options.do_sample, seeds, device) for _ in range(count)]
    there = torch.tensor([[place is not None for place in places] for places in table], device=device)
    ending = torch.tensor(sorted(ends), device=device, dtype=torch.long)
    said_so_far = torch.empty(count, rows, 0, dtype=torch.long, device=device)
    lengths = torch.zeros(count, rows, dtype=torch.long, device=device)
    open_ = there.clone()
    finals: list[Tensor] = []
    yield from streams.prefilling()
    logits = streams.prefill()
    for step in range(options.max_new_tokens):
        broken = torch.stack([nonfinite_rows(each) for each in logits]).to(device) & open_
        _raise_if_broken(broken, table, prompts, step)
        if vocab_size is not None:
            logits[..., vocab_size:] = -torch.inf
        tokens, final = [], []
        for slot, (stream, process, draw) in enumerate(zip(streams.streams, processing, draws, strict=True)):
            before = [stream.input_ids.to(device), said_so_far[slot]] if penalised else [said_so_far[slot]]
            scores = logits[slot].to(device)
            if process:
                scores = process(torch.cat(before, dim=1), scores)
            tokens.append(draw(scores, ~open_[slot]))
            own = scores.gather(-1, tokens[-1][:, None]) - scores.logsumexp(-1, keepdim=True)
            final.append(own[:, 0])
        chosen = torch.stack(tokens)
        finals.append(torch.stack(final))
        said_so_far = torch.cat([said_so_far, chosen[..., None]], dim=-1)
        lengths += open_
        ended = torch.isin(chosen, ending)
        if stops is not None:
            ended |= stops(said_so_far.flatten(0, 1)).view(count, rows)
        open_ &= ~ended
        if step + 1 == options.max_new_tokens or not bool(open_.any()):
            break
        logits = streams.step(chosen)
        yield
    until = lengths.tolist()

    def rows_of(values: Tensor) -> list[list[Any]]:
        return [[row[:n].tolist() for row, n in zip(*both, strict=True)] for both in zip(values, until, strict=True)]

    return rows_of(said_so_far), rows_of(torch.stack(finals, dim=-1))


def _raise_if_broken(
    broken: Tensor, table: Sequence[Sequence[int | None]], prompts: Sequence[SourcePrompts], step: int
) -> None:
    if bool(broken.any()):
        slot, row = (int(index) for index in broken.nonzero()[0])
        raise NonFiniteLogits(row, step, prompts[row].names[table[slot][row] or 0])
