"""What the loop is given: padded streams, transformers' processors for our options, and the plan that holds both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..control import Control
from ..errors import ControlError, UnsupportedMode
from ..policies import check_drafts, per_row
from ..policies.off import OFF
from ..policies.sources import Lifted, combination
from .drafts import Drafts
from .options import GenerateOptions
from .pair_cache import can_share_forward
from .plan import DecodingPlan
from .processing import unpadded
from .prompts import PromptPair
from .recorder import Recorder
from .refusals import check_tokenizer, input_device
from .segments import Segments, check_segments
from .source_step import SourceRun, check_models
from .source_streams import slots
from .sources import SourcePrompts, check_room
from .streams import Stream
from .token_texts import StopTexts, said
from .weight_rows import adapters_of

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

    from .structured import Structure

__all__ = ["functions", "passages_alone", "plan_of", "processors_for", "stream_of", "with_sources"]


def functions(name: str, given: Any) -> list[Callable[..., Tensor]]:
    """Return a caller's processors or criteria as a list.

    Raises:
        ControlError: One alone, or something that cannot be called.
    """
    if not isinstance(given, (list, tuple)) or not all(callable(one) and not isinstance(one, type) for one in given):
        raise ControlError(
            f"{name}={given!r:.60} is no list of functions.", f"Pass {name}=[...], as transformers does."
        )
    return list(given)


def stream_of(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Stream:
    """Return the stream of some prompts, padded on the left with `pad` to the longest."""
    longest = max(map(len, prompts))
    device = input_device(model)
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return Stream(model, ids, mask)


def passages_alone(
    model: PreTrainedModel, pairs: Sequence[PromptPair], vocab_size: int | None
) -> Callable[[int, Sequence[Sequence[int]]], list[list[float]]]:
    """Return what reads answers after a question's passages without the question, see `Evidence.logp_alone`.

    Args:
        model: Reads: one forward per question, a row per distinct answer.
        pairs: Of the questions.
        vocab_size: Number of ids the tokenizer knows; the others have no probability. None: the model's width.

    Returns:
        A function of a question's place and of its answers, which gives the log-probability of each token, in nats.
    """

    def read(item: int, answers: Sequence[Sequence[int]]) -> list[list[float]]:
        prompt, distinct = pairs[item].alone, list(dict.fromkeys(map(tuple, answers)))
        longest = max(map(len, distinct))
        # Filled on the right, where nothing that is read can see it.
        rows = [[*prompt, *answer, *[prompt[-1]] * (longest - len(answer))] for answer in distinct]
        stream = Stream(model, torch.tensor(rows, device=input_device(model)), None)
        logits = stream.read(longest + 1)[:, :-1]
        logits[..., vocab_size:] = -torch.inf
        tokens = stream.input_ids[:, len(prompt) :, None].to(logits.device)
        logp = logits.log_softmax(-1).gather(-1, tokens)[..., 0].tolist()
        known = {answer: row[: len(answer)] for answer, row in zip(distinct, logp, strict=True)}
        return [known[tuple(answer)] for answer in answers]

    return read


def processors_for(
    options: GenerateOptions, keep: Tensor | None, given: Sequence[Callable[..., Tensor]] = ()
) -> LogitsProcessorList:
    """Return transformers' processors and warpers for these options, in transformers' order.

    Args:
        options: How tokens are drawn.
        keep: [B, L] bool over the prompts, False where they are padded; None if nothing is.
        given: The caller's own, which see scores that are penalised but not yet warped.

    Raises:
        ControlError: `given` is no list of functions.
    """
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as lp

    processors = LogitsProcessorList()
    if options.repetition_penalty != 1:
        penalty = lp.RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty))
        processors.append(penalty if options.penalty_scope == "generated" else unpadded(penalty, keep))
    processors += functions("processors", given)
    if options.do_sample:
        if options.temperature != 1:
            processors.append(lp.TemperatureLogitsWarper(options.temperature))
        if options.top_k:
            processors.append(lp.TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            processors.append(lp.TopPLogitsWarper(options.top_p))
    return processors


def plan_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    controls: Sequence[Control],
    options: GenerateOptions,
    *,
    ends: Sequence[int],
    processors: Sequence[Any] = (),
    criteria: Sequence[Any] = (),
    structure: Structure | None = None,
    streamer: Any = None,
) -> DecodingPlan:
    """Return the plan of a batch.

    Args:
        model: Decodes it.
        tokenizer: The model's own.
        pairs: Prompts, one pair per question.
        controls: One per question, with one shortlist.
        options: Of all of them.
        ends: End tokens.
        processors: The caller's own, see `processors_for`.
        criteria: The caller's own, beside the end tokens, stop texts and longest answer.
        structure: What holds all answers to a grammar.
        streamer: transformers streamer.

    Raises:
        ControlError: Processors or criteria are no list of functions.
        TokenizerMismatch: The tokenizer is not the model's.
        UnsupportedMode: A method needs the passages without the question, and ready prompts came.
    """
    from transformers import StoppingCriteriaList
    from transformers.generation import EosTokenCriteria, MaxLengthCriteria

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    # Without passages the streams are one: nothing to steer, and rounding must not look like a conflict.
    steered = [pair.contextual != pair.parametric for pair in pairs]
    contextual = stream_of(model, [pair.contextual for pair in pairs], pad)
    length = contextual.input_ids.shape[1]
    ending = StoppingCriteriaList(
        [MaxLengthCriteria(length + options.max_new_tokens), *functions("criteria", criteria)]
    )
    if ends:
        ending.append(EosTokenCriteria(list(ends)))
    if options.stop:
        ending.append(StopTexts(tokenizer, options.stop, length))

    def text_of(ids: Sequence[int]) -> str:
        return said(tokenizer, ids, stop=options.stop, ends=ends, thinking=pairs[0].thinking).text

    given = [c.policy() for c in controls]
    policies = [p if two or p.in_weights else OFF for p, two in zip(given, steered, strict=True)]
    adapters = contextual.adapters = adapters_of(model, policies, options.compile)

    def parametric() -> Stream:
        stream = stream_of(model, [pair.parametric for pair in pairs], pad)
        stream.adapters = adapters
        return stream

    vocab_size = check_tokenizer(model, tokenizer)
    unread = (p for p, pair in zip(policies, pairs, strict=True) if not pair.alone and getattr(p, "alone", False))
    check_drafts(unread, "a pair of ready prompts")
    by_segments = check_segments(
        policies,
        shared=can_share_forward(model),
        thinking=pairs[0].thinking,
        penalty=options.repetition_penalty != 1,
        processors=processors,
        criteria=criteria,
        structured=structure is not None,
    )
    anywhere = StopTexts(tokenizer, options.stop, 0) if options.stop else None
    segments = Segments(
        lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
        frozenset(ends),
        lambda ids: anywhere is not None and bool(anywhere(torch.tensor([ids]))),
    )
    return DecodingPlan(
        drafts=Drafts(
            policies,
            [pair.question for pair in pairs],
            text_of,
            [pair.passages for pair in pairs],
            passages_alone(model, pairs, vocab_size),
        ),
        shortlist=controls[0].shortlist,
        contextual=contextual,
        parametric=parametric,
        processors=processors_for(options, contextual.keep, processors),
        criteria=ending,
        max_new_tokens=options.max_new_tokens,
        sample=options.do_sample,
        seed=options.seed,
        pad_token_id=pad,
        vocab_size=vocab_size,
        recorder=Recorder() if options.trace else None,
        streamer=streamer,
        penalise=options.penalty_scope,
        compile=options.compile,
        structure=structure,
        segments=segments if by_segments else None,
    )


def with_sources(
    plan: DecodingPlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[SourcePrompts],
    combine: Any,
    control: Any,
) -> DecodingPlan:
    """Return the plan of a batch decoded from several sources; as it was where no question has more than a pair.

    Args:
        plan: Of the pairs with all passages.
        model: Decodes it.
        tokenizer: The model's own.
        prompts: Of each question.
        combine: As in `generate`.
        control: As the caller gave it.

    Raises:
        ControlError: As `combination`; or both a control and another way to put sources together were given.
        UnsupportedMode: Answers are to be chosen between, caches do not fit, or steps compiled.
        TokenizerMismatch: As `check_models`.
    """
    if combine is not None and control is not None and combine != "scores":
        raise ControlError(f"combine={combine!r:.60} puts the sources together; control would be ignored.", "Drop one.")
    by_score = combine in ("scores", "replug") if isinstance(combine, str) else False
    check_drafts(plan.drafts.each, "decoding from several sources")
    lifted = None if isinstance(combine, str) and combine == "scores" else combine
    policy = combination(lifted, per_row(plan.drafts.each), [one.names for one in prompts])
    for one in prompts:
        check_models(one, policy, model, tokenizer)
    most = max(len(one.names) for one in prompts)
    if most == 1 or (most == 2 and isinstance(policy, Lifted)):
        return plan  # a control of two streams
    if plan.drafts.several:
        chosen = next(p for p, row in zip(plan.drafts.policies, plan.drafts.items, strict=False) if p)
        raise UnsupportedMode(
            f"method {chosen.name!r} chooses between whole answers, which is not done across sources here.",
            "Take a method of tokens, such as ckcontrol.Control('ck-plug', alpha=...), or combine='min-entropy'.",
        )
    if plan.compile:
        raise UnsupportedMode("compile=True is not done for several sources.", "Leave compile out.")
    check_room(model, prompts, plan.max_new_tokens)
    streams = []
    for places in slots(prompts)[:-1]:
        rows = [one.ids[place or 0] for one, place in zip(prompts, places, strict=True)]
        others = [one.models[place] for one, place in zip(prompts, places, strict=True) if place is not None]
        other = next((each for each in others if each is not None), None)
        streams.append(stream_of(model if other is None else other, rows, plan.pad_token_id))
    return replace(plan, sources=SourceRun(prompts, policy, [*streams, plan.contextual], by_score))
