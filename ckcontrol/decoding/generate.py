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
from ..errors import ControlError, NonFiniteLogits, PromptError
from ..policies import AnswerPolicy, draft_policies
from .conversation import conversations
from .endings import ends_streamer
from .inputs import plan_of, with_sources
from .loop import decode
from .options import GenerateOptions
from .prompts import PromptPair, PromptTemplate, build_pair, passage_list
from .recorder import Recorder
from .refusals import check_model, check_tokenizer, eos_ids, input_device, output_width, position_limit
from .source_step import SourceRun
from .source_step import told as told_sources
from .sourced import check_beside, sourced, tell
from .sources import SourcePrompts, build_sources
from .structured import structure_of
from .token_texts import Said, pieces, said

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

__all__ = ["generate"]


@overload
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str | None = None,
    passages: Sequence[Any] | None = None,
    *,
    messages: Sequence[Mapping[str, Any]] | None = None,
    control: Control | None = None,
    template: PromptTemplate | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    truncate: str | None = None,
    sources: Any = None,
    combine: Any = None,
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
    sources: Any = None,
    combine: Any = None,
    streamer: BaseStreamer | None = None,
    options: GenerateOptions | None = None,
    **keywords: Any,
) -> list[Answer]: ...


@overload
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    passages: Sequence[Sequence[Any]] | None = None,
    messages: Sequence[Sequence[Mapping[str, Any]]],
    control: Control | Sequence[Control] | None = None,
    template: PromptTemplate | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    truncate: str | None = None,
    sources: Any = None,
    combine: Any = None,
    streamer: BaseStreamer | None = None,
    options: GenerateOptions | None = None,
    **keywords: Any,
) -> list[Answer]: ...


@ends_streamer
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str | Sequence[str] | None = None,
    passages: Sequence[Any] | None = None,
    *,
    messages: Sequence[Any] | None = None,
    tools: Sequence[Any] | None = None,
    control: Control | Sequence[Control] | None = None,
    template: PromptTemplate | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    truncate: str | None = None,
    processors: Sequence[Any] = (),
    criteria: Sequence[Any] = (),
    sources: Any = None,
    combine: Any = None,
    json_schema: Any = None,
    grammar: str | None = None,
    regex: str | None = None,
    streamer: BaseStreamer | None = None,
    options: GenerateOptions | None = None,
    **keywords: Any,
) -> Answer | list[Answer]:
    """Answer one question or conversation, or a batch of them, steered between passages and memory.

    Args:
        model: A decoder-only transformers model. It is used as it is and left as it was.
        tokenizer: The model's own tokenizer.
        question: A question, or a list of them (one batch).
        passages: For one question its passages; for a list one list each. None or empty: closed book. A passage is a
            text, or a document of LangChain, LlamaIndex or Haystack, or a hit of a search.
        messages: Instead of a question: a conversation in the form of OpenAI's messages, or a list of them (one
            batch). The passages stand in its last user turn, see `build_pair`.
        tools: JSON schemas of functions, or functions, where the chat template takes them; for all of a batch. A call
            comes back as the text that the model wrote.
        control: Which policy and how far; for a list of questions optionally one control each. None is
            ``Control()``, the unmodified model.
        template: Wording of the prompts.
        template_kwargs: Variables of the chat template, e.g. ``{"enable_thinking": False}``; beside the template's own.
        truncate: ``"passages"`` cuts passages that do not fit; None raises `PromptTooLong`.
        processors: transformers logits processors, or functions of ids [B, L] and scores [B, V] like them. They see
            the fused scores once, after the penalty and before temperature, top-k and top-p; row i is question i.
        criteria: transformers stopping criteria, beside the end tokens; row i is question i.
        sources: ``"each"``: memory, every passage and all of them together are sources that run side by side; or a list
            with the places of each group's passages, from 0, and `Source`s. With a method of whole answers each writes
            its own and reads the others', the order of passages does not matter but at alpha 0.5, and what each says is
            told in `Answer.sources`; with a method of tokens their distributions are fused at every step.
        combine: How distributions are fused, instead of by `control`: ``"replug"``, ``"min-entropy"``,
            ``"avg-entropy"``, or weights by the sources' names, which sum to 1. ``"scores"``: by `control`, with
            passages that were retrieved with a higher score counting more. None: by `control`, passages alike.
        json_schema: The answer is JSON that meets this schema: a mapping, a text or a pydantic class. Of two streams
            and of every draft alike, nothing else can be said. Needs the extra ``[grammar]``.
        grammar: The answer is derived from ``root`` of this EBNF grammar (xgrammar's form of GBNF) instead.
        regex: The answer is a full match of this regular expression instead.
        streamer: transformers streamer; gets the prompt and every token, then ``end()`` exactly once, also if
            the question is refused.
        options: How tokens are drawn and when to stop, as one value.
        **keywords: The same as single fields of `GenerateOptions`, instead of `options`: ``max_new_tokens``,
            ``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``seed``, ``repetition_penalty``,
            ``penalty_scope``, ``stop_token_ids``, ``stop``, ``trace``, ``compile``. Giving
            both is refused.

    Returns:
        An `Answer`, or a list of them for a list of questions or conversations.

    Raises:
        ControlError: A control or option that cannot be honoured, or keywords beside `options`.
        PromptError: Empty or malformed input; `PromptTooLong` if it does not fit.
        TokenizerMismatch: The tokenizer is not the model's.
        UnsupportedMode: The model cannot be decoded in two streams.
        MissingExtra: A schema or grammar, without the package that reads it.
        NonFiniteLogits: The model broke down; ``error.partial`` holds what was generated until then.
    """
    chosen = GenerateOptions.one_of(options, keywords)
    asked, passage_lists, single = _batch(question, passages, messages)
    controls = controls_for(control, len(asked))
    check_model(model)
    check_tokenizer(model, tokenizer)
    limit = position_limit(model)
    how: dict[str, Any] = {
        "tools": tools,
        "template": template,
        "template_kwargs": template_kwargs,
        "limit": None if limit is None else max(0, limit - chosen.max_new_tokens),
        "max_new_tokens": chosen.max_new_tokens,
        "truncate": truncate,
        "ends": eos_ids(model),
    }
    prompts = _prompts_of(tokenizer, asked, passage_lists, sources, combine, controls, how)
    if sources is not None and prompts is None:
        check_beside(processors, criteria, chosen, json_schema, grammar, regex)

        def plain(place: int) -> Answer:
            one: dict[str, Any] = {**asked[place], "passages": passage_lists[place], "control": controls[place]}
            one |= {name: how[name] for name in ("tools", "template", "template_kwargs", "truncate")}
            whole = replace(chosen, trace=chosen.trace or len(draft_policies(controls[place].policy())) > 1)
            answer: Answer = generate(model, tokenizer, **one, options=whole)  # its drafts are told as sources
            return answer if chosen.trace else replace(answer, tokens=())

        weighed = sourced(
            model, tokenizer, asked, passage_lists, controls, chosen, sources=sources, how=how, plain=plain
        )
        tell(streamer, weighed)
        return weighed[0] if single else weighed
    if prompts is not None:
        pairs = [one.pair for one in prompts]
    else:
        pairs = [
            build_pair(tokenizer, passages=given, **one, **how) for one, given in zip(asked, passage_lists, strict=True)
        ]

    ends = sorted({*eos_ids(model, tokenizer), *chosen.stop_token_ids})
    structure = structure_of(
        tokenizer,
        output_width(model),
        ends,
        input_device(model),
        json_schema=json_schema,
        grammar=grammar,
        regex=regex,
    )
    if structure is not None and any(pair.thinking for pair in pairs):
        raise ControlError(
            "the chat template opened a thought, and a thought is no structured answer.",
            'Where the template can do without, pass template_kwargs={"enable_thinking": False} or its like.',
        )
    plan = plan_of(
        model,
        tokenizer,
        pairs,
        controls,
        chosen,
        ends=ends,
        processors=processors,
        criteria=criteria,
        structure=structure,
        streamer=streamer,
    )
    if prompts is not None:
        plan = with_sources(plan, model, tokenizer, prompts, combine, control)
    drafts, recorder = plan.drafts, plan.recorder

    def answers(ids: list[list[int]]) -> list[Answer]:
        told = drafts.made or [[] for _ in pairs]
        return [
            _answer(tokenizer, *row, ends, chosen, recorder, i, plan.sources, None if prompts is None else prompts[i])
            for i, row in enumerate(zip(pairs, controls, ids, told, strict=True))
        ]

    try:
        made = decode(plan)
    except NonFiniteLogits as error:
        if recorder is not None:
            recorder.keep([drafts.rows(i)[0] for i in range(len(pairs))])
            error.partial = answers([recorder.token_ids(i) for i in range(len(pairs))])
        raise
    generated = made.sequences[:, plan.contextual.input_ids.shape[1] :].tolist()
    result = answers([ids[:length] for ids, length in zip(generated, made.lengths, strict=True)])
    return result[0] if single else result


def _prompts_of(
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Mapping[str, Any]],
    passages: Sequence[Sequence[Any]],
    sources: Any,
    combine: Any,
    controls: Sequence[Control],
    how: Mapping[str, Any],
) -> list[SourcePrompts] | None:
    """Return the prompts of questions whose sources are fused token by token; None where that is not asked for."""
    if sources is None:
        if combine is not None:
            raise ControlError(f"combine={combine!r:.60} without sources.", "Pass sources='each' too.")
        return None
    if combine is None and any(isinstance(control.policy(), AnswerPolicy) for control in controls):
        return None  # whole answers are weighed
    each = zip(asked, passages, strict=True)
    return [build_sources(tokenizer, passages=given, sources=sources, **one, **how) for one, given in each]


def _batch(question: Any, passages: Any, messages: Any) -> tuple[list[dict[str, Any]], list[list[Any]], bool]:
    """Return what is asked, as keywords of `build_pair`; the passages of each; and whether it was a single one."""
    if question is not None and messages is not None:
        raise PromptError("question and messages were both given.", "The question is the last user's message.")
    kind = "question" if messages is None else "messages"
    if messages is not None:
        batch, single = conversations(messages)
    elif isinstance(question, str):
        batch, single = [question], True
    elif isinstance(question, (bytes, bytearray, Mapping, set, frozenset)) or not isinstance(question, Iterable):
        what = "missing" if question is None else f"{type(question).__name__}, not text"
        raise PromptError(f"question is {what}.", "Pass a string, or a list of them.")
    else:
        batch, single = list(question), False
    if not batch:
        raise PromptError("the list of questions is empty.", "Pass at least one question.")
    asked = [{kind: one} for one in batch]
    if single:
        return asked, [passage_list("passages", passages)], True
    lists = [[]] * len(asked) if passages is None else passage_list("passages", passages)
    if len(lists) != len(asked):
        raise PromptError(
            f"lists of passages: {len(lists)}, but questions: {len(asked)}.", "Pass one list per question."
        )
    return asked, [passage_list(f"passages[{i}]", given) for i, given in enumerate(lists)], False


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    pair: PromptPair,
    control: Control,
    ids: list[int],
    drafts: Sequence[Draft],
    ends: list[int],
    chosen: GenerateOptions,
    recorder: Recorder | None,
    row: int,
    sources: SourceRun | None = None,
    prompts: SourcePrompts | None = None,
) -> Answer:
    def read(token_ids: Sequence[int]) -> Said:
        return said(tokenizer, token_ids, stop=chosen.stop, ends=ends, thinking=pair.thinking)

    answer = read(ids)
    tokens = () if recorder is None else recorder.traces(row, pieces(tokenizer, ids))
    stopped = bool(ids) and (ids[-1] in ends or len(ids) < chosen.max_new_tokens)
    return Answer(
        text=answer.text,
        tokens=tokens if sources is None else sources.traces(row, tokens),
        token_ids=tuple(ids),
        question=pair.question,
        passages=pair.passages,
        control=control,
        finish_reason="stop" if stopped or answer.stopped else "length",
        context_tokens=len(pair.contextual),
        parametric_tokens=len(pair.parametric),
        drafts=tuple(replace(d, text=read(d.token_ids).text) for d in drafts),
        thinking=answer.thinking,
        sources=told_sources(prompts) if prompts is not None and pair.passages else (),
    )
