"""The front doors: `generate` (questions and passages in, `Answer`s out) and `decoding_loop` (transformers-native).

Both prepare a `Plan` and hand it to the one loop in decode.py. Knows prompts, options and batching; the arithmetic is
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from .checks import check_mode, check_model, check_tokenizer, eos_ids, position_limit
from .config import Control, GenerateOptions, controls_for
from .decode import Draw, Generated, Plan, decode
from .drafts import Drafts
from .errors import ControlError, NonFiniteLogits, PromptError, PromptTooLong, UnsupportedMode
from .policies import Off
from .prompts import PromptPair, PromptTemplate, build_pair
from .recorder import Recorder
from .streams import Stream
from .text import pieces
from .trace import Answer, Draft

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        StoppingCriteriaList,
    )
    from transformers.generation.streamers import BaseStreamer

__all__ = ["decoding_loop", "generate", "processors_for", "stream_of"]


@overload
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    passages: Sequence[str] | None = None,
    *,
    control: Control | None = None,
    template: PromptTemplate | None = None,
    truncate: str | None = None,
    streamer: BaseStreamer | None = None,
    **options: Any,
) -> Answer: ...


@overload
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Sequence[str],
    passages: Sequence[Sequence[str]] | None = None,
    *,
    control: Control | Sequence[Control] | None = None,
    template: PromptTemplate | None = None,
    truncate: str | None = None,
    streamer: BaseStreamer | None = None,
    **options: Any,
) -> list[Answer]: ...


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str | Sequence[str],
    passages: Sequence[str] | Sequence[Sequence[str]] | None = None,
    *,
    control: Control | Sequence[Control] | None = None,
    template: PromptTemplate | None = None,
    truncate: str | None = None,
    streamer: BaseStreamer | None = None,
    **options: Any,
) -> Answer | list[Answer]:
    """Answer one question or a batch of them, steered between passages and memory.

    Args:
        model: A decoder-only transformers model. It is used as it is and left as it was.
        tokenizer: The model's own tokenizer.
        question: A question, or a list of them (one batch).
        passages: For one question its passages; for a list one list each. None or empty: closed book.
        control: Policy and dial; for a list of questions optionally one control each. None is ``Control()``, the
            unmodified model.
        template: Wording of the prompts.
        truncate: ``"passages"`` cuts passages that do not fit; None raises `PromptTooLong`.
        streamer: transformers streamer; gets the prompt and every token, then ``end()`` exactly once.
        **options: The fields of `GenerateOptions`: ``max_new_tokens``, ``do_sample``, ``temperature``, ``top_k``,
            ``top_p``, ``seed``, ``repetition_penalty``, ``penalty_scope``, ``stop_token_ids``, ``trace``.

    Returns:
        An `Answer`, or a list of them for a list of questions.

    Raises:
        ControlError: A control or option that cannot be honoured.
        PromptError: Empty or malformed input; `PromptTooLong` if it does not fit.
        TokenizerMismatch: The tokenizer is not the model's.
        UnsupportedMode: The model cannot be decoded in two streams.
        NonFiniteLogits: The model broke down; ``error.partial`` holds what was generated until then.
    """
    chosen = GenerateOptions.from_kwargs(options)
    single = isinstance(question, str)
    questions, passage_lists = _batch(question, passages)
    controls = controls_for(control, len(questions))
    check_model(model)
    vocab_size = check_tokenizer(model, tokenizer)
    limit = position_limit(model)
    pairs = [
        build_pair(
            tokenizer,
            text,
            given,
            template=template,
            limit=None if limit is None else max(0, limit - chosen.max_new_tokens),
            max_new_tokens=chosen.max_new_tokens,
            truncate=truncate,
        )
        for text, given in zip(questions, passage_lists, strict=True)
    ]

    from transformers import StoppingCriteriaList
    from transformers.generation import EosTokenCriteria, MaxLengthCriteria

    ends = sorted({*eos_ids(model, tokenizer), *chosen.stop_token_ids})
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    # Without passages the streams are one: nothing to steer, and rounding must not look like a conflict.
    drafts = Drafts([c.policy() if p.passages else Off() for c, p in zip(controls, pairs, strict=True)])
    policy = drafts.policy
    contextual = stream_of(model, [p.contextual for p in pairs], pad)
    parametric = None
    if chosen.trace or not policy.neutral:
        parametric = stream_of(model, [p.parametric for p in pairs], pad)
    longest = contextual.input_ids.shape[1] + chosen.max_new_tokens
    criteria = StoppingCriteriaList([MaxLengthCriteria(longest)])
    if ends:
        criteria.append(EosTokenCriteria(ends))
    recorder = Recorder() if chosen.trace else None
    seeds = None if chosen.seed is None else [chosen.seed] * len(drafts.items)
    plan = Plan(
        policy=policy,
        contextual=contextual,
        parametric=parametric,
        processors=processors_for(chosen),
        criteria=criteria,
        max_new_tokens=chosen.max_new_tokens,
        draw=Draw(chosen.do_sample, seeds, contextual.input_ids.device),
        pad_token_id=pad,
        vocab_size=vocab_size,
        candidates=controls[0].candidates,
        candidate_ratio=controls[0].candidate_ratio,
        share=_share(model),
        drafts=drafts if drafts.several else None,
        recorder=recorder,
        streamer=streamer,
        penalise=chosen.penalty_scope,
    )

    def answers(ids: list[list[int]]) -> list[Answer]:
        told = drafts.made or [[] for _ in pairs]
        return [
            _answer(tokenizer, *row, ends, chosen.max_new_tokens, recorder, i)
            for i, row in enumerate(zip(questions, pairs, controls, ids, told, strict=True))
        ]

    try:
        made = decode(plan)
    except NonFiniteLogits as error:
        if recorder is not None:
            recorder.keep([drafts.rows(i)[0] for i in range(len(pairs))])
            error.partial = answers([recorder.token_ids(i) for i in range(len(pairs))])
        raise
    generated = made.sequences[:, contextual.input_ids.shape[1] :].tolist()
    result = answers([ids[:length] for ids, length in zip(generated, made.lengths, strict=True)])
    return result[0] if single else result


def decoding_loop(
    control: Control | Sequence[Control] | None = None,
    *,
    parametric_ids: Tensor,
    parametric_mask: Tensor | None = None,
    vocab_size: int | None = None,
    streamer: BaseStreamer | None = None,
    recorder: Recorder | None = None,
    seed: int | None = None,
    penalty_scope: str = "all",
) -> Callable[..., Any]:
    """Return a callable for ``model.generate(**contextual_inputs, custom_generate=...)``.

    transformers prepares everything it usually does (generation config, processors, stopping criteria); this loop
    replaces its sampling loop. The order is: fuse the raw logits, then transformers' processors and warpers, then one
    draw per pair.

    Args:
        control: Policy and dial; a list gives one per row.
        parametric_ids: The prompts without passages, left-padded, [B, L_par] int64: one row per row of `input_ids`.
            With ``num_return_sequences=n`` pass B rows; they are repeated.
        parametric_mask: Their attention mask, [B, L_par]; None means nothing is padded.
        vocab_size: ``len(tokenizer)``: higher ids can never win. None trusts the model's width.
        streamer: transformers streamer. It must be given here: transformers drops ``generate(streamer=...)`` for
            callables, without ending it.
        recorder: A `Recorder` to be filled with the trace.
        seed: As in `GenerateOptions`; None uses torch's global generator like ``model.generate``.
        penalty_scope: As in `GenerateOptions`.

    Returns:
        The callable. It returns what ``model.generate`` would: ids, or a `GenerateDecoderOnlyOutput` with
        ``return_dict_in_generate=True`` (scores are the fused, processed scores; logits the raw contextual ones).

    Raises:
        UnsupportedMode: From within generate, before the first forward: see `checks.REFUSED`.
        ControlError: Row counts of the two prompts differ, or an option is out of range.
    """
    GenerateOptions(seed=seed, penalty_scope=penalty_scope)  # checked here, not at the first token

    def loop(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,  # an input named here would be taken from transformers before it prepares the rest
    ) -> Any:
        check_model(model)
        check_mode(generation_config)
        attention_mask = model_kwargs.pop("attention_mask", None)
        _check_inputs(model_kwargs)
        rows = input_ids.shape[0]
        ids, mask = _repeat(parametric_ids.to(input_ids.device), parametric_mask, rows, generation_config)
        controls = controls_for(control, rows)
        drafts = Drafts([c.policy() for c in controls])
        policy = drafts.policy
        longest = stopping_criteria.max_length or generation_config.max_length
        budget = int(longest) - input_ids.shape[1]
        limit = position_limit(model)
        widths = (input_ids.shape[1], ids.shape[1])
        if limit is not None and max(widths) + budget > limit:
            raise PromptTooLong(*widths, limit - budget, budget)
        pad = getattr(generation_config, "_pad_token_tensor", None)
        seeds = None if seed is None else [seed] * len(drafts.items)
        draw = Draw(bool(generation_config.do_sample), seeds, input_ids.device)
        plan = Plan(
            policy=policy,
            contextual=Stream(model, input_ids, attention_mask),
            parametric=Stream(model, ids, mask) if recorder is not None or not policy.neutral else None,
            processors=logits_processor,
            criteria=stopping_criteria,
            max_new_tokens=budget,
            draw=draw,
            pad_token_id=int(pad) if pad is not None else int(generation_config.pad_token_id or 0),
            vocab_size=vocab_size,
            candidates=controls[0].candidates,
            candidate_ratio=controls[0].candidate_ratio,
            share=_share(model),
            drafts=drafts if drafts.several else None,
            recorder=recorder,
            streamer=streamer,
            penalise=penalty_scope,
            keep_scores=bool(generation_config.output_scores),
            keep_logits=bool(generation_config.output_logits),
        )
        return _native_result(plan, decode(plan), generation_config)

    return loop


def _native_result(plan: Plan, made: Generated, config: GenerationConfig) -> Any:
    if not config.return_dict_in_generate:
        return made.sequences
    from transformers.generation import GenerateDecoderOnlyOutput

    return GenerateDecoderOnlyOutput(
        sequences=made.sequences,
        scores=tuple(plan.scores) if config.output_scores else None,
        logits=tuple(plan.logits) if config.output_logits else None,
    )


def _check_inputs(model_kwargs: dict[str, Any]) -> None:
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise UnsupportedMode("past_key_values is already filled.", "Pass the whole prompt instead.")
    known = {"past_key_values", "position_ids", "use_cache", "logits_to_keep", "cache_position"}
    if unknown := sorted(k for k, v in model_kwargs.items() if k not in known and v is not None):
        raise UnsupportedMode(f"model inputs {unknown} have no parametric counterpart.", "Pass token ids only.")


def _repeat(ids: Tensor, mask: Tensor | None, rows: int, config: GenerationConfig) -> tuple[Tensor, Tensor | None]:
    copies = config.num_return_sequences or 1
    if ids.ndim != 2 or ids.shape[0] * copies != rows:
        raise ControlError(
            f"parametric_ids has shape {tuple(ids.shape)} for {rows // copies} contextual prompts.",
            "Give one parametric row per contextual row.",
        )
    if mask is not None and mask.shape != ids.shape:
        raise ControlError(
            f"parametric_mask has shape {tuple(mask.shape)}, parametric_ids {tuple(ids.shape)}.",
            "Make them equal.",
        )
    return ids.repeat_interleave(copies, 0), None if mask is None else mask.repeat_interleave(copies, 0)


def _batch(
    question: str | Sequence[str], passages: Sequence[str] | Sequence[Sequence[str]] | None
) -> tuple[list[str], list[Sequence[str]]]:
    if isinstance(question, str):
        if isinstance(passages, str):
            raise PromptError("passages is one string.", "Pass a list: passages=[text].")
        return [question], [list(passages or [])]  # type: ignore[arg-type]
    questions = list(question)
    if not questions:
        raise PromptError("the list of questions is empty.", "Pass at least one question.")
    lists: list[Any] = [[]] * len(questions) if passages is None else list(passages)
    if len(lists) != len(questions):
        raise PromptError(
            f"{len(questions)} questions but {len(lists)} lists of passages.", "Pass one list per question."
        )
    for i, given in enumerate(lists):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise PromptError(f"passages[{i}] is {type(given).__name__}, not a list of strings.", "Wrap it in a list.")
    return questions, lists


def _share(model: PreTrainedModel) -> bool:
    from .cache import can_share_forward

    return can_share_forward(model)


def stream_of(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Stream:
    """Return the stream of some prompts, padded on the left with `pad` to the longest."""
    longest = max(map(len, prompts))
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return Stream(model, ids, mask)


def processors_for(options: GenerateOptions) -> LogitsProcessorList:
    """Return transformers' processors and warpers for these options, in transformers' order."""
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as lp

    processors = LogitsProcessorList()
    if options.repetition_penalty != 1:
        processors.append(lp.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.do_sample:
        if options.temperature != 1:
            processors.append(lp.TemperatureLogitsWarper(options.temperature))
        if options.top_k:
            processors.append(lp.TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            processors.append(lp.TopPLogitsWarper(options.top_p))
    return processors


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    pair: PromptPair,
    control: Control,
    ids: list[int],
    drafts: Sequence[Draft],
    ends: list[int],
    max_new_tokens: int,
    recorder: Recorder | None,
    row: int,
) -> Answer:
    stopped = bool(ids) and (ids[-1] in ends or len(ids) < max_new_tokens)
    return Answer(
        text=_text(tokenizer, ids),
        tokens=() if recorder is None else recorder.traces(row, pieces(tokenizer, ids)),
        token_ids=tuple(ids),
        question=question,
        passages=pair.passages,
        control=control,
        finish_reason="stop" if stopped else "length",
        context_tokens=len(pair.contextual),
        parametric_tokens=len(pair.parametric),
        drafts=tuple(replace(d, text=_text(tokenizer, d.token_ids)) for d in drafts),
    )


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
