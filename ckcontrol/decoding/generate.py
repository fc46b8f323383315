"""The front door: `generate`, questions and passages in, `Answer`s out.

It prepares a `DecodingPlan` and hands it to the one loop in loop.py. Knows prompts, options and batching; the
arithmetic is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from ..answer import Answer, Draft
from ..control import Control, controls_for
from ..errors import NonFiniteLogits, PromptError
from ..policies.off import OFF
from .drafts import Drafts
from .endings import ends_streamer
from .inputs import processors_for, stream_of
from .loop import DecodingPlan, decode
from .options import GenerateOptions
from .prompts import PromptPair, PromptTemplate, build_pair, passage_list
from .recorder import Recorder
from .refusals import check_model, check_tokenizer, eos_ids, position_limit
from .token_texts import Said, StopTexts, pieces, said

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

__all__ = ["generate"]


@overload
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    passages: Sequence[Any] | None = None,
    *,
    control: Control | None = None,
    template: PromptTemplate | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    truncate: str | None = None,
    streamer: BaseStreamer | None = None,
    options: GenerateOptions | None = None,
    **keywords: Any,
) -> Answer: ...


@overload
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Sequence[str],
    passages: Sequence[Sequence[Any]] | None = None,
    *,
    control: Control | Sequence[Control] | None = None,
    template: PromptTemplate | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    truncate: str | None = None,
    streamer: BaseStreamer | None = None,
    options: GenerateOptions | None = None,
    **keywords: Any,
) -> list[Answer]: ...


@ends_streamer
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str | Sequence[str],
    passages: Sequence[Any] | None = None,
    *,
    control: Control | Sequence[Control] | None = None,
    template: PromptTemplate | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    truncate: str | None = None,
    streamer: BaseStreamer | None = None,
    options: GenerateOptions | None = None,
    **keywords: Any,
) -> Answer | list[Answer]:
    """Answer one question or a batch of them, steered between passages and memory.

    Args:
        model: A decoder-only transformers model. It is used as it is and left as it was.
        tokenizer: The model's own tokenizer.
        question: A question, or a list of them (one batch).
        passages: For one question its passages; for a list one list each. None or empty: closed book. A passage is a
            text, or a document of LangChain, LlamaIndex or Haystack, or a hit of a search.
        control: Which policy and how far; for a list of questions optionally one control each. None is
            ``Control()``, the unmodified model.
        template: Wording of the prompts.
        template_kwargs: Variables of the chat template, e.g. ``{"enable_thinking": False}``; beside the template's own.
        truncate: ``"passages"`` cuts passages that do not fit; None raises `PromptTooLong`.
        streamer: transformers streamer; gets the prompt and every token, then ``end()`` exactly once, also if
            the question is refused.
        options: How tokens are drawn and when to stop, as one value.
        **keywords: The same as single fields of `GenerateOptions`, instead of `options`: ``max_new_tokens``,
            ``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``seed``, ``repetition_penalty``,
            ``penalty_scope``, ``stop_token_ids``, ``stop``, ``trace``. Giving both is refused.

    Returns:
        An `Answer`, or a list of them for a list of questions.

    Raises:
        ControlError: A control or option that cannot be honoured, or keywords beside `options`.
        PromptError: Empty or malformed input; `PromptTooLong` if it does not fit.
        TokenizerMismatch: The tokenizer is not the model's.
        UnsupportedMode: The model cannot be decoded in two streams.
        NonFiniteLogits: The model broke down; ``error.partial`` holds what was generated until then.
    """
    chosen = GenerateOptions.one_of(options, keywords)
    single = isinstance(question, str)
    questions, passage_lists = _batch(question, passages)
    controls = controls_for(control, len(questions))
    check_model(model)
    vocab_size = check_tokenizer(model, tokenizer)
    limit, model_ends = position_limit(model), eos_ids(model)
    pairs = [
        build_pair(
            tokenizer,
            text,
            given,
            template=template,
            template_kwargs=template_kwargs,
            limit=None if limit is None else max(0, limit - chosen.max_new_tokens),
            max_new_tokens=chosen.max_new_tokens,
            truncate=truncate,
            ends=model_ends,
        )
        for text, given in zip(questions, passage_lists, strict=True)
    ]

    from transformers import StoppingCriteriaList
    from transformers.generation import EosTokenCriteria, MaxLengthCriteria

    ends = sorted({*eos_ids(model, tokenizer), *chosen.stop_token_ids})
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    # Without passages the streams are one: nothing to steer, and rounding must not look like a conflict.

    def text_of(ids: Sequence[int]) -> str:
        return said(tokenizer, ids, stop=chosen.stop, ends=ends, thinking=pairs[0].thinking).text

    policies = [c.policy() if p.passages else OFF for c, p in zip(controls, pairs, strict=True)]
    drafts = Drafts(policies, questions, text_of, [p.passages for p in pairs])
    contextual = stream_of(model, [p.contextual for p in pairs], pad)
    longest = contextual.input_ids.shape[1] + chosen.max_new_tokens
    criteria = StoppingCriteriaList([MaxLengthCriteria(longest)])
    if ends:
        criteria.append(EosTokenCriteria(ends))
    if chosen.stop:
        criteria.append(StopTexts(tokenizer, chosen.stop, contextual.input_ids.shape[1]))
    recorder = Recorder() if chosen.trace else None
    plan = DecodingPlan(
        drafts=drafts,
        shortlist=controls[0].shortlist,
        contextual=contextual,
        parametric=lambda: stream_of(model, [p.parametric for p in pairs], pad),
        processors=processors_for(chosen, contextual.keep),
        criteria=criteria,
        max_new_tokens=chosen.max_new_tokens,
        sample=chosen.do_sample,
        seed=chosen.seed,
        pad_token_id=pad,
        vocab_size=vocab_size,
        recorder=recorder,
        streamer=streamer,
        penalise=chosen.penalty_scope,
    )

    def answers(ids: list[list[int]]) -> list[Answer]:
        told = drafts.made or [[] for _ in pairs]
        return [
            _answer(tokenizer, *row, ends, chosen, recorder, i)
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


def _batch(question: Any, passages: Any) -> tuple[list[str], list[list[Any]]]:
    if isinstance(question, str):
        return [question], [passage_list("passages", passages)]
    if isinstance(question, (bytes, bytearray, Mapping, set, frozenset)) or not isinstance(question, Iterable):
        raise PromptError(f"question is {type(question).__name__}, not text.", "Pass a string, or a list of them.")
    questions = list(question)
    if not questions:
        raise PromptError("the list of questions is empty.", "Pass at least one question.")
    lists = [[]] * len(questions) if passages is None else passage_list("passages", passages)
    if len(lists) != len(questions):
        raise PromptError(
            f"{len(questions)} questions but {len(lists)} lists of passages.", "Pass one list per question."
        )
    return questions, [passage_list(f"passages[{i}]", given) for i, given in enumerate(lists)]


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    pair: PromptPair,
    control: Control,
    ids: list[int],
    drafts: Sequence[Draft],
    ends: list[int],
    chosen: GenerateOptions,
    recorder: Recorder | None,
    row: int,
) -> Answer:
    def read(token_ids: Sequence[int]) -> Said:
        return said(tokenizer, token_ids, stop=chosen.stop, ends=ends, thinking=pair.thinking)

    answer = read(ids)
    stopped = bool(ids) and (ids[-1] in ends or len(ids) < chosen.max_new_tokens)
    return Answer(
        text=answer.text,
        tokens=() if recorder is None else recorder.traces(row, pieces(tokenizer, ids)),
        token_ids=tuple(ids),
        question=question,
        passages=pair.passages,
        control=control,
        finish_reason="stop" if stopped or answer.stopped else "length",
        context_tokens=len(pair.contextual),
        parametric_tokens=len(pair.parametric),
        drafts=tuple(replace(d, text=read(d.token_ids).text) for d in drafts),
        thinking=answer.thinking,
    )
