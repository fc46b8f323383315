"""Answers of questions with several sources, weighed by whole drafts: from prompts to an `Answer` with who says what.

Prompts are built here in an order that their texts decide, so that the order they came in does not matter; drafts are
written and read by source_drafts.py, and policies/source_answers.py knows which is given. `weighing` is one question
for who runs others beside it, a forward at each turn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..answer import Answer, Draft, SourceTold, TokenTrace
from ..control import Control
from ..errors import UnsupportedMode
from ..policies import Dial, Policy, weigh
from ..policies.idle_drafts import silent
from ..policies.source_answers import CONTRADICTS, SILENT, SUPPORTS, merged
from .options import GenerateOptions
from .prompts import build_pair, passage_list, passage_text
from .refusals import check_tokenizer, eos_ids
from .source_drafts import SourceAnswer, canonical, through, writing
from .source_step import told as told_sources
from .source_streams import Reading
from .sources import Source, SourcePrompts, build_sources, check_room, read_sources
from .token_texts import pieces, said

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Asked",
    "ask_sources",
    "check_answers",
    "check_beside",
    "sourced",
    "tell",
    "told_pair",
    "weighing",
]


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
    built = [ask_sources(tokenizer, one, given, sources, how) for one, given in zip(asked, passages, strict=True)]
    several = [place for place, one in enumerate(built) if one.prompts.several]
    check_room(model, [built[place].prompts for place in several], options.max_new_tokens)
    answers = {
        place: plain(place) for place in range(len(asked)) if place not in several or len(policies[place].drafts) == 1
    }
    for place in set(answers) - set(several):
        answers[place] = replace(answers[place], sources=told_pair(answers[place], built[place].prompts))
    if not several:
        return [answers[place] for place in range(len(asked))]
    known = check_tokenizer(model, tokenizer)
    # A stream has one model: questions with another one among their sources are read by themselves.
    alone = [place for place in several if any(built[place].prompts.models)]
    for places in [[place for place in several if place not in alone], *([place] for place in alone)]:
        prompts = [built[place].prompts for place in places]
        instead = [_instead(policies[place], answers.get(place)) for place in places]
        steps = writing(model, tokenizer, prompts, options, ends=ends, vocab_size=known, instead=instead)
        for place, found in zip(places, through(steps), strict=True):
            answers[place] = _answer(
                tokenizer, found, built[place], controls[place], policies[place], options, ends, answers.get(place)
            )
    return [answers[place] for place in range(len(asked))]


def weighing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
    control: Control,
    options: GenerateOptions,
    *,
    ends: Sequence[int],
    plain: Answer | None = None,
) -> Generator[None, None, Answer]:
    """Answer one question that has several sources as `sourced` does, a forward at each turn.

    Args:
        model: Answers.
        tokenizer: Its own.
        asked: From `ask_sources`; the caches were found to fit, see `check_room`.
        control: Of `Dial`.
        options: How tokens are drawn and when to stop.
        ends: End tokens.
        plain: Where the control has a single draft (alpha 0.5, 1): that answer, which is given.

    Returns:
        The answer, as the generator's value.

    Raises:
        NonFiniteLogits: Of a source, named as its stream.
    """
    policy, known = check_answers(control.policy()), check_tokenizer(model, tokenizer)
    instead = [_instead(policy, plain)]
    prompts = [asked.prompts]
    (found,) = yield from writing(model, tokenizer, prompts, options, ends=ends, vocab_size=known, instead=instead)
    return _answer(tokenizer, found, asked, control, policy, options, ends, plain)


def _instead(policy: Dial, plain: Answer | None) -> tuple[int, Sequence[int]] | None:
    """Return whose draft an answer without sources is, and its ids."""
    return None if plain is None else (0 if policy.position == 1 else -1, plain.token_ids)


@dataclass(frozen=True)
class Asked:
    """A question's prompts.

    Attributes:
        prompts: With their passages in canonical order.
        order: Of each place there, the caller's.
        kept: The passages that stand in the prompt with all, in the caller's order.
    """

    prompts: SourcePrompts
    order: Sequence[int]
    kept: Sequence[str]


def ask_sources(
    tokenizer: PreTrainedTokenizerBase,
    asked: Mapping[str, Any],
    passages: Sequence[Any],
    sources: Any,
    how: Mapping[str, Any],
) -> Asked:
    """Return the prompts of a question, with its passages and its sources in an order that does not depend on theirs.

    Where not all passages fit into one prompt, those at the end of the caller's order are cut there, as they are
    without sources; each still speaks for itself.

    Args:
        tokenizer: Of the model that will answer.
        asked: A question, or messages, as keywords of `build_sources`.
        passages: Of the question.
        sources: As in `build_sources`.
        how: What `build_sources` is told beside.

    Raises:
        PromptError: As `build_sources`.
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
    return Asked(prompts, order, kept)


def told_pair(answer: Answer, prompts: SourcePrompts) -> tuple[SourceTold, ...]:
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
    asked: Asked,
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
