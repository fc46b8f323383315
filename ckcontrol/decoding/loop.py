"""The decoding loop: fuse, process, draw, append to both streams, until every row has ended.

One loop serves both doors (generate.py, transformers_loop.py). Order at each step: raw logits of both streams ->
fusion -> logits processors and warpers, once, on the fused scores -> one draw per pair. Knows streams, policies and
transformers' processor and stopping interfaces; knows nothing of prompts or text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import NonFiniteLogits
from ..fusion.distributions import first_max, nonfinite_rows
from .drafts import Beginnings, Hopeless
from .endings import Once, torch_as_it_was, whatever_happens
from .fused_step import FusedStep, fused_step
from .plan import DecodingPlan
from .processing import RowsOfQuestions, penalise_answers
from .recorder import Recorder
from .rounds import Rounds
from .segments import Segments
from .source_step import SourceStep
from .source_streams import SourceStreams
from .streams import Stream, TwoStreams, streams_as_they_were

__all__ = ["Draw", "Generated", "decode", "run_streams"]

R = TypeVar("R")

_STREAMS = ("contextual", "parametric", "fused")


class Draw:
    """Picks one token per row.

    Args:
        sample: Draw from softmax(scores) instead of taking the maximum.
        seeds: One seed per row: each row then has its own generator. None: torch's global generator, one joint
            draw for the batch, exactly as transformers does.
        device: Where the scores live.
    """

    def __init__(self, sample: bool, seeds: Sequence[int] | None, device: torch.device) -> None:
        self.sample = sample
        self.generators = None
        self.turn: AbstractContextManager[Any] = nullcontext()
        if sample and seeds is not None:
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        elif sample and device.type == "cuda":
            from .static_step import CAPTURING

            self.turn = CAPTURING  # another thread's capture has torch's global generator to itself

    def __call__(self, scores: Tensor, broken: Tensor) -> Tensor:
        """Return token ids, [B, V] -> [B]; rows marked broken draw an arbitrary token instead of crashing."""
        if not self.sample:
            return first_max(scores)
        probs = scores.masked_fill(broken[:, None], 0.0).softmax(-1)
        if self.generators is None:
            with self.turn:
                return torch.multinomial(probs, 1).squeeze(1)
        rows = [torch.multinomial(probs[i : i + 1], 1, generator=g) for i, g in enumerate(self.generators)]
        return torch.cat(rows).squeeze(1)


class _Poll:
    """Learns when to stop without stalling an accelerator: the flag is read one step late there, at once on CPU."""

    def __init__(self, device: torch.device, streaming: bool) -> None:
        self.late = device.type == "cuda" and not streaming  # a streamer waits for every token anyway
        self.flag: Tensor | None = None
        self.event: Any = None

    def __call__(self, flag: Tensor) -> bool:
        if not self.late:
            return bool(flag)
        before = False
        if self.flag is not None:
            self.event.synchronize()  # the previous step's copy, long finished while this step was queued
            before = bool(self.flag)
        else:
            self.flag, self.event = torch.empty((), dtype=torch.bool, pin_memory=True), torch.Event("cuda")
        self.flag.copy_(flag, non_blocking=True)
        self.event.record()
        return before


@dataclass(frozen=True)
class Generated:
    """What the loop produced.

    Attributes:
        sequences: The contextual prompts with the answers appended, [B, L + T] int64.
        lengths: Tokens generated per row, the end token included.
    """

    sequences: Tensor
    lengths: list[int]


def decode(plan: DecodingPlan) -> Generated:
    """Run the loop.

    Rows that ended are filled with `pad_token_id`; both streams of a pair end together. A neutral policy leaves the
    contextual logits untouched and is transformers' own sampling loop, bit for bit.

    Raises:
        NonFiniteLogits: A running row met NaN, +inf or an empty distribution.
    """
    undo: list[Callable[[], object]] = [] if plan.sources is None else [plan.sources.leave]
    if plan.streamer is None:
        return run_streams(plan.contextual, lambda: _decode_all(plan), *undo)
    once = Once(plan.streamer)
    return run_streams(plan.contextual, lambda: _decode_all(replace(plan, streamer=once)), once.end, *undo)


def run_streams(contextual: Stream, work: Callable[[], R], *undo: Callable[[], object]) -> R:
    """Return what `work` returns, which runs a model's streams; model, torch and this thread are then as before.

    Args:
        contextual: The stream that `TwoStreams` is made with in `work`.
        work: Runs the streams.
        undo: What else is to be put back; see `whatever_happens`.
    """
    from .attention_kernels import leave_steady_attention
    from .matmul import leave_few_row_products
    from .pair_cache import leave_pair_attention
    from .static_step import leave_capture

    def leave() -> None:
        leave_capture()
        leave_steady_attention(contextual)
        leave_pair_attention(contextual.model, contextual)
        leave_few_row_products(contextual.model, contextual)

    leave()  # a copy made while another run was going may carry ours
    return whatever_happens(work, leave, torch_as_it_was(), streams_as_they_were(), *undo)


@torch.no_grad()
def _decode_all(plan: DecodingPlan) -> Generated:
    if plan.segments is not None:
        return _decode_segments(plan, plan.segments)
    return _decode_drafts(plan) if plan.drafts.several else _decode(plan)


def _decode_drafts(plan: DecodingPlan) -> Generated:
    """Run all drafts side by side and keep one per question; a streamer gets it when it is complete."""
    drafts = plan.drafts
    recorder = plan.recorder or Recorder()
    hopeless = Hopeless(drafts, recorder) if _stops(plan) else None
    try:  # its lists of scores and logits are the plan's
        made = _decode(replace(plan, streamer=None, recorder=recorder), hopeless=hopeless)
    except NonFiniteLogits as error:
        raise NonFiniteLogits(drafts.items[error.row], error.step, error.stream) from None
    chosen = drafts.choose(recorder)
    recorder.keep(chosen)
    lengths = [made.lengths[row] for row in chosen]
    prompt_length = plan.contextual.input_ids.shape[1]
    sequences = made.sequences[chosen, : prompt_length + max(lengths)]
    for kept in (plan.scores, plan.logits):
        kept[:] = [step[chosen] for step in kept[: max(lengths)]]
    if plan.streamer is not None:
        plan.streamer.put(sequences[:, :prompt_length].cpu())
        for step in range(prompt_length, sequences.shape[1]):
            plan.streamer.put(sequences[:, step].cpu())
    return Generated(sequences, lengths)


def _stops(plan: DecodingPlan) -> bool:
    """Whether drafts that can no longer be given are stopped: where nobody reads them, and a look costs no waiting."""
    shared = plan.sample and plan.seed is None  # fewer steps would leave torch's own generator elsewhere
    return plan.recorder is None and not shared and plan.contextual.input_ids.device.type == "cpu"


def _decode_segments(plan: DecodingPlan, segments: Segments) -> Generated:
    """Run the drafts to the end of a sentence, choose, and go on from what was chosen, until every question is done."""
    rounds = Rounds(plan, segments)
    streams: Any = plan.streams()
    while rounds.open:
        ids, recorder = rounds.ids(), Recorder()
        part = rounds.part(ids.shape[1], recorder)
        beginnings = Beginnings(part.drafts.items, ids.device, drop=False)
        try:
            hopeless = Hopeless(part.drafts, recorder, segments.read) if _stops(plan) else None
            _decode(part, Running(streams, ids, beginnings, begun=rounds.number > 0), hopeless)
        except NonFiniteLogits as error:
            raise rounds.broken(error) from None
        rows, drop = rounds.decide(part.drafts, recorder)
        rounds.stream(plan.streamer)
        if rows:
            streams.rewind(torch.tensor([beginnings.places[row] for row in rows], device=ids.device), drop)
    rounds.fill(plan.recorder)
    plan.drafts.made = [question.made for question in rounds.questions]
    sequences = torch.cat([plan.contextual.input_ids, rounds.answers()], dim=1)
    return Generated(sequences, [len(question.ids) for question in rounds.questions])


@dataclass(frozen=True)
class Running:
    """Streams that a part of a run is decoded with, instead of those of its plan.

    Attributes:
        streams: Of the whole run.
        ids: What stands before the part, [questions, L] int64; the last id has not been run yet if they have `begun`.
        beginnings: Of the part's drafts.
        begun: The prompts have been run.
    """

    streams: TwoStreams | SourceStreams
    ids: Tensor
    beginnings: Beginnings
    begun: bool


def _decode(plan: DecodingPlan, running: Running | None = None, hopeless: Hopeless | None = None) -> Generated:
    streams = plan.streams() if running is None else running.streams
    ids = plan.contextual.input_ids if running is None else running.ids
    prompt_length, device = ids.shape[1], ids.device
    if plan.streamer is not None:
        plan.streamer.put(ids.cpu())
    beginnings: Beginnings | None = None
    begun = False
    if running is not None:
        beginnings, begun = running.beginnings, running.begun
    elif plan.drafts.several:  # of ended rows too, who keeps scores may read what the model would go on with
        beginnings = Beginnings(plan.drafts.items, device, drop=not (plan.keep_scores or plan.keep_logits))
    fed = ids[:, -1]
    if beginnings is not None:
        ids = beginnings.widen(ids)
    rows = ids.shape[0]
    unfinished = torch.ones(rows, dtype=torch.bool, device=device)
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    kinds = len(_STREAMS) if plan.sources is None else 1 + len(plan.sources.slots)  # the last one is what is fused
    broken_at = torch.full((kinds, rows), -1, dtype=torch.long, device=device)
    has_eos = any(hasattr(criterion, "eos_token_id") for criterion in plan.criteria)
    poll = _Poll(device, plan.streamer is not None)
    processors = plan.processors if plan.penalise == "all" else penalise_answers(plan.processors, prompt_length)
    asked = RowsOfQuestions(processors, plan.criteria, plan.drafts.items, device)
    at_once = not (plan.sample or plan.processors or plan.keep_scores or plan.recorder)
    codes = torch.arange(1, kinds + 1, device=device)[:, None]
    items = plan.drafts.items
    seeds = [plan.seed] * (1 + max(items)) if isinstance(plan.seed, int) else plan.seed
    draw = Draw(plan.sample, seeds if seeds is None else [seeds[item] for item in items], device)

    for step in range(plan.max_new_tokens):
        # 1) One more position of both streams, or of all sources, of which the last has all passages.
        logits = streams.prefill() if step == 0 and not begun else streams.step(fed)
        logits_ctx, logits_par = (logits[-1], logits[:-1]) if isinstance(logits, Tensor) else logits
        if beginnings is not None and logits_par is not None:
            logits_ctx, logits_par = beginnings.widen(logits_ctx), beginnings.widen(logits_par)
        if plan.keep_logits:
            plan.logits.append(logits_ctx.clone())
        if plan.structure is not None:
            plan.structure.mask(ids, unfinished, *(logits if isinstance(logits, Tensor) else (logits_ctx, logits_par)))

        # 2) Fuse the raw distributions; the greedy choice is made on the way where nothing lies between.
        if plan.sources is not None and isinstance(logits, Tensor):
            made: FusedStep | None = plan.sources.step(logits, plan.shortlist, plan.vocab_size, at_once)
        else:
            made = _fuse_step(plan, logits_ctx, logits_par, at_once)
        broken = nonfinite_rows(logits_ctx).to(torch.uint8) if made is None else made.broken
        if made is not None and made.tokens is not None:
            tokens = made.tokens
        else:
            # 3) Processors and warpers see the fused scores once.
            scores = asked.process(ids, logits_ctx if made is None or made.scores is None else made.scores)
            broken = torch.where((broken == 0) & nonfinite_rows(scores), kinds, broken)
            # 4) One draw per pair.
            tokens = draw(scores, broken > 0)

        # 5) Watch for NaN and infinities; rows that ended no longer count.
        bad = (broken == codes) & unfinished
        broken_at = torch.where((broken_at < 0) & bad, step, broken_at)
        if has_eos:
            tokens = torch.where(unfinished, tokens, plan.pad_token_id)
        if plan.keep_scores:
            plan.scores.append(scores)
        if plan.recorder is not None:
            plan.recorder.add(tokens, scores, *((None, None) if made is None else (made.signals, made.decision)))
        if plan.recorder is not None and plan.sources is not None and isinstance(made, SourceStep):
            plan.sources.record(tokens, made)
        if plan.streamer is not None:
            plan.streamer.put(tokens.cpu())

        # 6) Append to both streams; both rows of a pair end together.
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        lengths = lengths + unfinished
        unfinished = unfinished & ~asked.stop(ids, plan.scores if plan.keep_scores else None)
        if hopeless is not None:
            unfinished = hopeless(unfinished)
        if poll(~unfinished.any() | (broken_at >= 0).any()):
            break
        fed = tokens if beginnings is None else beginnings.feed(tokens, unfinished, streams.select)
    if plan.recorder is not None:
        plan.recorder.lengths = lengths.tolist()
    _raise_if_broken(broken_at, None if plan.sources is None else plan.sources.name)
    longest = int(lengths.max())
    del plan.scores[longest:], plan.logits[longest:]
    return Generated(ids[:, : prompt_length + longest], lengths.tolist())


def _fuse_step(plan: DecodingPlan, logits_ctx: Tensor, logits_par: Tensor | None, at_once: bool) -> FusedStep | None:
    """Return the fused step, with its tokens if they can be chosen `at_once`; None if there is one stream."""
    if logits_par is None:
        return None
    policy = plan.drafts.policy
    return fused_step(
        policy, logits_ctx, logits_par, shortlist=plan.shortlist, vocab_size=plan.vocab_size, pick=at_once
    )


def _raise_if_broken(broken_at: Tensor, name: Callable[[int, int], str] | None = None) -> None:
    found = broken_at.cpu()
    if not bool((found >= 0).any()):
        return
    first = int(found[found >= 0].min())
    stream, row = (int(i) for i in (found == first).nonzero()[0])
    raise NonFiniteLogits(row, first, _STREAMS[stream] if name is None else name(row, stream))
