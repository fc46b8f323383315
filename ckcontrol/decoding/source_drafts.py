"""Whole answers of several sources: each writes its own from beginning to end, each reads all, one is given.

Sources of a question run side by side as streams of their own (source_streams.py): memory, each passage or group, and
all passages together, which are put in an order that their texts decide, so that the order they came in does not
matter. Knows streams and drafts; policies/source_answers.py knows which answer is given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..answer import Answer, Draft, SourceTold, TokenTrace
from ..control import Control
from ..errors import NonFiniteLogits, UnsupportedMode
from ..fusion.distributions import nonfinite_rows
from ..policies import Dial, Policy, SourceDraft, first_sentence, surprise, weigh
from ..policies.idle_drafts import silent
from ..policies.source_answers import CONTRADICTS, SILENT, SUPPORTS, merged
from .inputs import processors_for, stream_of
from .loop import Draw
from .options import GenerateOptions
from .prompts import build_pair, passage_list, passage_text
from .refusals import check_tokenizer, eos_ids
from .source_step import told as told_sources
from .source_streams import Reading, SourceStreams, slots
from .sources import Source, SourcePrompts, build_sources, check_room, read_sources
from .token_texts import StopTexts, pieces, said

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SourceAnswer", "canonical", "check_answers", "check_beside", "sourced", "tell", "write_drafts"]


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


def check_answers(policy: Policy) -> Dial:
    """Return the policy whose whole answers are weighed across sources.

    Raises:
        UnsupportedMode: It is another one, or goes by segments.
    """
    if not isinstance(policy, Dial):
        raise UnsupportedMode(
            f"method {policy.name!r} does not choose among whole answers of several sources.",
            "Use Control('dial'), or leave sources out.",
        )
    if policy.segmented:
        raise UnsupportedMode(
            "segments=True goes on from a chosen sentence, and sources are weighed by whole answers.",
            "Leave segments or sources out.",
        )
    return policy


def check_beside(processors: Sequence[Any], criteria: Sequence[Any], options: GenerateOptions, *structure: Any) -> None:
    """Refuse what a caller wants of one decode, where every source has its own.

    Args:
        processors: The caller's own.
        criteria: Likewise.
        options: Of the request.
        *structure: A schema or grammar; None where there is none.

    Raises:
        UnsupportedMode: There is something of it.
    """
    barred = {
        "processors": bool(processors),
        "criteria": bool(criteria),
        "json_schema, grammar and regex": any(one is not None for one in structure),
        "compile=True": options.compile is True,
    }
    if found := [name for name, there in barred.items() if there]:
        raise UnsupportedMode(
            f"sources write answers side by side, which {found[0]} cannot follow.",
            f"Leave {'sources' if found[0] != 'compile=True' else 'compile'} out.",
        )


def tell(streamer: Any, answers: Sequence[Answer]) -> None:
    """Hand finished answers to a streamer, token by token, a row per question; rows that ended repeat their last id."""
    if streamer is None:
        return
    rows = [answer.token_ids for answer in answers]
    streamer.put(torch.empty(len(rows), 0, dtype=torch.long))  # streamers take what comes first for the prompt
    for step in range(max(map(len, rows))):
        streamer.put(torch.tensor([row[min(step, len(row) - 1)] for row in rows]))


def canonical(passages: Sequence[str]) -> list[int]:
    """Return the places of passages in an order that their texts decide: by SHA-256, so no alphabet comes first."""
    return sorted(range(len(passages)), key=lambda place: hashlib.sha256(passages[place].encode()).digest())


@torch.no_grad()
def write_drafts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[SourcePrompts],
    options: GenerateOptions,
    *,
    ends: Sequence[int],
    vocab_size: int | None,
    instead: Sequence[tuple[int, Sequence[int]] | None] = (),
) -> list[SourceAnswer]:
    """Let every source of every question write its answer, and read those of the question's other sources.

    Args:
        model: Writes and reads; sources with a model of their own are read by it.
        tokenizer: Of all of them.
        prompts: One per question; of a question with another model among its sources, that one alone.
        options: How tokens are drawn and when to stop. With a seed, every source of a question draws with it.
        ends: End tokens.
        vocab_size: Number of ids the tokenizer knows; the others are never said.
        instead: Of each question, the place of a source and the answer that is read as its draft; None: as it wrote it.

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
        ids, finals = _write(streams, tokenizer, prompts, table, options, ends, vocab_size)
        found = []
        for row, one in enumerate(prompts):
            own = [slot for slot, places in enumerate(table) if places[row] is not None]
            drafts = [ids[slot][row] for slot in own]
            if instead and (other := instead[row]) is not None:
                drafts[other[0]] = list(other[1])
            distinct = list(dict.fromkeys(map(tuple, drafts)))
            read = streams.score(row, distinct)
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
) -> tuple[list[list[list[int]]], list[list[list[float]]]]:
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


def sourced(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Mapping[str, Any]],
    passages: Sequence[Sequence[Any]],
    controls: Sequence[Control],
    options: GenerateOptions,
    *,
    sources: Any,
    how: Mapping[str, Any],
    plain: Callable[[int], Answer],
) -> list[Answer]:
    """Answer questions by drafts of whole answers, weighed across their sources.

    Args:
        model: Answers.
        tokenizer: Its own.
        asked: What is asked, as keywords of `build_sources`: a question, or messages.
        passages: Of each question.
        controls: One per question, whose methods choose between whole answers.
        options: Of all of them.
        sources: As in `build_sources`, for all questions.
        how: What `build_sources` is told beside: template, limit, truncate, ends and the others.
        plain: Answers a question, by its place, without sources: where there is one source, and at alpha 0.5 and 1,
            which then are bit for bit what they are without sources.

    Returns:
        An answer per question. A method with a single draft (alpha 0.5, 1) gives it, and sources are told all the same.
    """
    ends = sorted({*eos_ids(model, tokenizer), *options.stop_token_ids})
    policies = [check_answers(control.policy()) for control in controls]
    built = [_prompts(tokenizer, one, given, sources, how) for one, given in zip(asked, passages, strict=True)]
    several = [place for place, one in enumerate(built) if one.prompts.several]
    check_room(model, [built[place].prompts for place in several], options.max_new_tokens)
    answers = {
        place: plain(place) for place in range(len(asked)) if place not in several or len(policies[place].drafts) == 1
    }
    for place in set(answers) - set(several):
        answers[place] = replace(answers[place], sources=_told_pair(answers[place], built[place].prompts))
    if not several:
        return [answers[place] for place in range(len(asked))]
    known = check_tokenizer(model, tokenizer)
    # A stream has one model: questions with another one among their sources are read by themselves.
    alone = [place for place in several if any(built[place].prompts.models)]
    for places in [[place for place in several if place not in alone], *([place] for place in alone)]:
        made = write_drafts(
            model,
            tokenizer,
            [built[place].prompts for place in places],
            options,
            ends=ends,
            vocab_size=known,
            instead=[
                (0 if policies[place].position == 1 else -1, answers[place].token_ids) if place in answers else None
                for place in places
            ],
        )
        for place, found in zip(places, made, strict=True):
            answers[place] = _answer(
                tokenizer, found, built[place], controls[place], policies[place], options, ends, answers.get(place)
            )
    return [answers[place] for place in range(len(asked))]


@dataclass(frozen=True)
class _Asked:
    """A question's prompts, whose places are canonical; `order` are those of the caller, `kept` what is in all's."""

    prompts: SourcePrompts
    order: Sequence[int]
    kept: Sequence[str]


def _prompts(
    tokenizer: PreTrainedTokenizerBase,
    asked: Mapping[str, Any],
    passages: Sequence[Any],
    sources: Any,
    how: Mapping[str, Any],
) -> _Asked:
    """Return the prompts of a question, with its passages and its sources in an order that does not depend on theirs.

    Where not all passages fit into one prompt, those at the end of the caller's order are cut there, as they are
    without sources; each still speaks for itself.
    """
    texts = [passage_text(f"passage {i + 1}", one) for i, one in enumerate(passage_list("passages", passages))]
    order = canonical(texts)
    wanted = [
        Source(sorted(map(order.index, one.passages or ())), one.model, one.name)
        for one in read_sources(sources, len(texts))
    ]
    wanted.sort(key=lambda one: (one.model is not None, list(one.passages or ())))
    rows = [texts[place] for place in order]
    prompts = build_sources(tokenizer, passages=rows, sources=wanted, **asked, **how)
    held = prompts.pair.passages
    kept = [held[order.index(place)] for place in range(len(texts))] if len(held) == len(texts) else []
    if how.get("truncate") and [" ".join(text.split()) for text in kept] != [" ".join(text.split()) for text in texts]:
        kept = list(build_pair(tokenizer, passages=texts, **asked, **how).passages)
        places = [place for place in order if place < len(kept)]
        whole = build_pair(tokenizer, passages=[kept[place] for place in places], **asked, **how)
        inside = tuple(order.index(place) for place in range(len(kept)))
        prompts = replace(
            prompts, pairs=(*prompts.pairs[:-1], whole), places=(*prompts.places[:-1], tuple(sorted(inside)))
        )
    return _Asked(prompts, order, kept)


def _told_pair(answer: Answer, prompts: SourcePrompts) -> tuple[SourceTold, ...]:
    """Return what memory and the only passage say of an answer, as far as its method had them write; () without one."""
    drafts = {draft.name: draft for draft in answer.drafts}
    given = next((draft for draft in answer.drafts if draft.given), None)
    found = []
    for name, own, told in zip(prompts.names, prompts.places, told_sources(prompts), strict=True):
        draft = drafts.get("memory" if name == "memory" else "unmodified")
        if draft is None or given is None or not prompts.pair.passages:
            found.append(told)
            continue
        same = merged([given.text, draft.text], prompts.pair.question) == [0, 0]
        stance = SILENT if silent(draft.text, prompts.pair.question) else SUPPORTS if same else CONTRADICTS
        figures = [one.surprise_par if name == "memory" else one.surprise_ctx for one in (given, draft)]
        found.append(SourceTold(name, tuple(own), stance, draft.text, *figures))
    return tuple(found) if prompts.pair.passages else ()


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    found: SourceAnswer,
    asked: _Asked,
    control: Control,
    policy: Dial,
    options: GenerateOptions,
    ends: Sequence[int],
    plain: Answer | None,
) -> Answer:
    """Return the answer of one question; with `plain`, that one, and what its sources say of it."""
    prompts = asked.prompts
    sources, question = found.told(prompts), prompts.pair.question
    weighed = weigh(sources, question, policy)
    given = weighed.given
    places = [tuple(sorted(asked.order[place] for place in own)) for own in prompts.places]
    told = [
        SourceTold(name, own, stance, source.text, source.surprises[given], source.surprises[place])
        for place, (name, own, stance, source) in enumerate(
            zip(prompts.names, places, weighed.stances, sources, strict=True)
        )
    ]
    told[1:-1] = sorted(told[1:-1], key=lambda source: source.passages)
    if plain is not None:
        return replace(plain, sources=tuple(told), disputed=weighed.disputed)
    ids, ctx, par = found.ids[given], found.readings[-1][given], found.readings[0][given]
    rows = zip(ids, pieces(tokenizer, ids), found.finals[given], *_columns(par), *_columns(ctx), strict=True)
    tokens = [
        TokenTrace(token, text, final, float(given > 0), given < len(sources) - 1, h_par, h_ctx, h_par - h_ctx, *more)
        for token, text, final, l_par, h_par, r_par, l_ctx, h_ctx, r_ctx in rows
        for more in [(r_par, r_ctx, l_par, l_ctx)]
    ]
    answer = said(tokenizer, ids, stop=options.stop, ends=ends, thinking=prompts.pair.thinking)
    stopped = ids[-1] in ends or len(ids) < options.max_new_tokens
    return Answer(
        text=answer.text,
        tokens=tuple(tokens) if options.trace else (),
        token_ids=tuple(ids),
        question=question,
        passages=tuple(asked.kept),
        control=control,
        finish_reason="stop" if stopped or answer.stopped else "length",
        context_tokens=len(prompts.ids[-1]),
        parametric_tokens=len(prompts.ids[0]),
        drafts=tuple(
            Draft(
                name,
                tuple(found.ids[place]),
                sources[-1].surprises[place],
                sources[0].surprises[place],
                place == given,
                text=source.text,
                evidence=weighed.support[place],
                idle=weighed.answers[place] is None,
            )
            for place, (name, source) in enumerate(zip(prompts.names, sources, strict=True))
        ),
        thinking=answer.thinking,
        sources=tuple(told),
        disputed=weighed.disputed,
    )


def _columns(reading: Reading) -> tuple[Sequence[float], Sequence[float], Sequence[int]]:
    return reading.logp, reading.h, reading.rank
