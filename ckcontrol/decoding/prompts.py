"""Prompt pairs: the same question, or conversation, with and without its passages.

Both prompts are built from the same pieces, so they differ by the passage block and by nothing else, and end in the
same tokens. Text that callers supply (every turn, passages) is tokenised as plain text: it can never yield a special
token, whatever it contains (plain_text.py). Knows tokenizers and wordings; conversation.py knows chat templates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import PromptError, PromptTooLong, did_you_mean
from .conversation import Frame, Turn, frame, question_of, read_tools, read_turns
from .plain_text import LOCK, check_text, plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "PromptPair",
    "PromptTemplate",
    "build_pair",
    "missing",
    "passage_list",
    "passage_text",
    "plain_ids",
    "shortened",
]

_MARK = "ckcontrolBODYckcontrol"
_MAX_CHARS = 20_000_000
_SMALLEST_CUT = 8  # a passage cut to fewer tokens than this is dropped instead
_TEXTS = ("page_content", "get_content", "text", "content")  # where LangChain, LlamaIndex, ours and Haystack keep it


@dataclass(frozen=True)
class PromptTemplate:
    """The wording around question and passages. Everything but the passage block is in both prompts.

    Attributes:
        instruction: Opens the prompt; say here how to answer, so that both streams keep the format.
        intro: Opens the passage block.
        passage: One passage; ``{number}`` and ``{text}`` are filled in. Plain wording is best: markup that only the
            contextual prompt holds (numbers, tags, quotes) is amplified with the rest when alpha < 0.5.
        question: Follows the passages; ``{question}`` is filled in.
        answer: Opens the answer in completion style; unused with a chat template.
        system: System message, for chat templates: text like any turn's.
        chat: Use the tokenizer's chat template; None uses it if there is one.
        fold: Fold the white space inside a passage, so that it stays on one line: that line is its fence, and no
            passage can open a line of its own ("Question: ..."). False keeps its layout, for code and tables.
        template_kwargs: Variables of the chat template, e.g. ``{"enable_thinking": False}`` for Qwen3.
    """

    instruction: str = "Answer the question in a few words.\n\n"
    intro: str = "Background:\n"
    passage: str = "{text}\n"
    question: str = "\nQuestion: {question}\n"
    answer: str = "Answer:"
    system: str | None = None
    chat: bool | None = None
    fold: bool = True
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "template_kwargs", _variables(self.template_kwargs))
        for name, fields in (("passage", {"number": 1, "text": _MARK}), ("question", {"question": _MARK})):
            form = getattr(self, name)
            try:
                placed = form.format(**fields).count(_MARK) == 1
            except (KeyError, IndexError, ValueError):
                placed = False
            if not placed:
                needed = "{text}, and perhaps {number}," if name == "passage" else "{question}"
                raise PromptError(
                    f"template.{name}={form!r} cannot be filled in.",
                    f"It must hold {needed} once; double other braces.",
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready; `template_kwargs` only where there are any."""
        data = asdict(self)
        return data if self.template_kwargs else {k: v for k, v in data.items() if k != "template_kwargs"}


@dataclass(frozen=True)
class PromptPair:
    """Token ids of one question with and without its passages.

    Attributes:
        contextual: Ids with the passages.
        parametric: Ids without; equal to `contextual` when there are no passages.
        span: First and last-plus-one position of the passage block in `contextual`.
        passages: The passages as they stand in the prompt, after any truncation.
        thinking: The chat template opened a thought (``<think>``) that the answer has to close.
        question: What was asked: of a conversation, what the user said last.
        alone: Ids with the passages and without the question's words; empty where there are no passages.
    """

    contextual: tuple[int, ...]
    parametric: tuple[int, ...]
    span: tuple[int, int]
    passages: tuple[str, ...]
    thinking: bool = False
    question: str = ""
    alone: tuple[int, ...] = ()


def build_pair(
    tokenizer: PreTrainedTokenizerBase,
    question: str | None = None,
    passages: Sequence[Any] = (),
    *,
    messages: Sequence[Mapping[str, Any]] | None = None,
    tools: Sequence[Any] | None = None,
    template: PromptTemplate | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    limit: int | None = None,
    max_new_tokens: int = 0,
    truncate: str | None = None,
    ends: Collection[int] = (),
) -> PromptPair:
    """Build the prompt pair of one question, or of one conversation, whose passages stand in its last user turn.

    Args:
        tokenizer: Of the model that will answer.
        question: Must hold a visible character.
        passages: Texts, or documents of LangChain, LlamaIndex and Haystack, or hits. May be empty: then both prompts
            are the closed-book prompt.
        messages: A conversation in the form of OpenAI's messages, instead of `question`, which is one of a single turn:
            see `read_turns`. The wording of `template` is around the words of the last user; every other turn is as
            it was. Needs a chat template, unless the user's is the only turn.
        tools: For the chat template, where it takes them: JSON schemas of functions, or functions.
        template: Wording; the default asks for a short answer.
        template_kwargs: Variables of the chat template, beside those of `template`.
        limit: Longest prompt, in tokens; None does not check.
        max_new_tokens: Only for the message of `PromptTooLong`.
        truncate: ``"passages"`` cuts passages from the end until the prompt fits; None refuses.
        ends: End tokens of the model that its tokenizer takes for ordinary ones. No text yields one of them either,
            unless it is a single character.

    Raises:
        PromptError: Empty question, message or passage, wrong types, over 20 million characters, a chat template that
            refuses a turn or does not place it once, or variables and tools that it does not use or that spell a
            special token.
        PromptTooLong: The prompts exceed `limit`.
    """
    template = _with_variables(template, template_kwargs)
    turns = _turns(question, messages, template)
    passages = [
        passage_text(f"passage {i + 1}", passage) for i, passage in enumerate(passage_list("passages", passages))
    ]
    if sum(map(len, passages)) + sum(len(turn.text) for turn in turns) > _MAX_CHARS:
        raise PromptError(f"question and passages exceed {_MAX_CHARS:,} characters.", "Split or shorten them.")
    if truncate not in (None, "passages"):
        raise PromptError(f"truncate={truncate!r}.", did_you_mean(str(truncate), ["passages"]) + " None refuses.")

    before, after, thinking = _frame(tokenizer, turns, template, read_tools(tools), ends)
    before += plain_ids(tokenizer, template.instruction, ends)
    asked = question_of(turns)
    opening = "" if _uses_chat(tokenizer, template) else template.answer
    ending, unasked = (
        plain_ids(tokenizer, template.question.format(question=words) + opening, ends) + after for words in (asked, "")
    )
    texts = [" ".join(text.split()) if template.fold else text.strip() for text in passages]
    blocks = [_block(tokenizer, template, i, text, ends) for i, text in enumerate(texts)]
    intro = plain_ids(tokenizer, template.intro, ends) if blocks else []
    fixed = len(before) + len(ending)
    total = fixed + len(intro) + sum(map(len, blocks))
    if limit is not None and total > limit:
        if truncate is None or fixed > limit:
            raise PromptTooLong(total, fixed, limit, max_new_tokens)
        blocks, texts = _cut(tokenizer, template, texts, blocks, limit - fixed - len(intro), ends)
        intro = intro if blocks else []
    block = intro + [token for ids in blocks for token in ids]
    pair = PromptPair(
        contextual=(*before, *block, *ending),
        parametric=(*before, *ending),
        span=(len(before), len(before) + len(block)),
        passages=tuple(texts),
        thinking=thinking,
        question=asked if question is None else question,
        alone=(*before, *block, *unasked) if block else (),
    )
    _check_bos(tokenizer, pair)
    return pair


def passage_list(name: str, passages: Any) -> list[Any]:
    """Return the passages of one question as a list, not yet looked into; None is no passages.

    Raises:
        PromptError: One passage instead of a list of them, or what has no order: a set, a mapping.
    """
    if passages is None:
        return []
    single = isinstance(passages, (str, bytes, bytearray)) or _holds_text(passages)
    if single or isinstance(passages, (Mapping, set, frozenset)) or not isinstance(passages, Iterable):
        what = "one string" if isinstance(passages, str) else f"{type(passages).__name__}, not a list of strings"
        raise PromptError(f"{name} is {what}.", "Pass a list: passages=[text].")
    return list(passages)


def _holds_text(thing: Any) -> bool:
    return not isinstance(thing, type) and any(hasattr(thing, name) for name in (*_TEXTS, "passage"))


def passage_text(name: str, passage: Any) -> str:
    """Return the text of a passage: a string, a document of another framework, a `Passage` or a `Hit`."""
    held = passage
    if not isinstance(passage, (str, bytes, bytearray)) and _holds_text(passage):
        owner = getattr(passage, "passage", passage)
        held = next((getattr(owner, attribute) for attribute in _TEXTS if hasattr(owner, attribute)), None)
        held = held() if callable(held) else held
        if not isinstance(held, str):
            raise PromptError(f"{name} is a {type(passage).__name__} whose text is {held!r:.40}.", "Leave it out.")
    check_text(name, held, "Pass text, or leave the passages out to answer closed-book.")
    return str(held)


def _uses_chat(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> bool:
    has = bool(getattr(tokenizer, "chat_template", None))
    if template.chat and not has:
        raise PromptError("template.chat=True, but the tokenizer has no chat template.", "Use chat=False.")
    return has if template.chat is None else template.chat


def _with_variables(template: PromptTemplate | None, more: Mapping[str, Any] | None) -> PromptTemplate:
    if template is not None and not isinstance(template, PromptTemplate):
        raise PromptError(f"template={template!r:.60} is not a PromptTemplate.", "Pass ckcontrol.PromptTemplate(...).")
    template = template or PromptTemplate()
    return replace(template, template_kwargs={**template.template_kwargs, **_variables(more)}) if more else template


def _variables(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise PromptError(f"template_kwargs={given!r:.60} does not name variables.", 'Like {"enable_thinking": False}.')
    return dict(given)


def _frame(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    template: PromptTemplate,
    tools: Sequence[Any] | None,
    ends: Collection[int],
) -> Frame:
    """Return the ids around the last user's words: what the chat template, or the plain BOS, puts there."""
    if _uses_chat(tokenizer, template):
        return frame(tokenizer, turns, variables=template.template_kwargs, tools=tools, ends=ends)
    if template.template_kwargs:
        raise PromptError("template_kwargs were given, but there is no chat template in use.", "Leave them out.")
    if tools:
        raise PromptError("tools were given, but there is no chat template in use.", "Leave them out.")
    if any(turn.role == "system" for turn in turns):
        raise PromptError("there is no chat template for the system message.", "Put its text into the question.")
    if len(turns) > 1:
        raise PromptError(
            f"a conversation of {len(turns)} turns needs a chat template, and there is none in use.",
            "Ask the last question alone, with what it needs of the others in it.",
        )
    with LOCK:
        opening = list(tokenizer("")["input_ids"])  # BOS where the tokenizer adds one, and perhaps a closing EOS
    return Frame([token for token in opening[:1] if token == tokenizer.bos_token_id], [], False)


def opens_with_thought(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> bool:
    """Whether the chat template, with these variables, ends a prompt in an open thought; False where it has none."""
    template = PromptTemplate(template_kwargs=variables)
    try:
        return _frame(tokenizer, _turns("?", None, template), template, None, ()).thinking
    except PromptError:
        return False


def _turns(question: Any, messages: Any, template: PromptTemplate) -> list[Turn]:
    """Return the conversation; a question is one of a single turn."""
    if messages is not None:
        if question is not None:
            raise PromptError("question and messages were both given.", "The question is the last user's message.")
        turns = read_turns(messages)
    else:
        check_text("question", question)
        turns = [Turn("user", question.strip(), "the user's message")]
    if template.system:
        if any(turn.role == "system" for turn in turns):
            raise PromptError("there are two system messages.", "Give one: in messages, or as template.system.")
        check_text("template.system", template.system)
        turns.insert(0, Turn("system", template.system.strip(), "the system message"))
    return turns


def _block(
    tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, index: int, text: str, ends: Collection[int]
) -> list[int]:
    return plain_ids(tokenizer, template.passage.format(number=index + 1, text=text), ends)


def _cut(
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    texts: list[str],
    blocks: list[list[int]],
    room: int,
    ends: Collection[int],
) -> tuple[list[list[int]], list[str]]:
    """Keep passages in order while they fit; cut the first that does not, drop the rest."""
    kept: list[list[int]] = []
    for i, block in enumerate(blocks):
        if len(block) <= room:
            kept.append(block)
            room -= len(block)
            continue
        ids = plain_ids(tokenizer, texts[i], ends)
        size = min(len(ids), room)
        while size >= _SMALLEST_CUT:
            text = tokenizer.decode(ids[:size], skip_special_tokens=True).strip().rstrip("�")
            shorter = _block(tokenizer, template, i, text, ends)
            if text and len(shorter) <= room:
                return [*kept, shorter], [*texts[:i], text]
            size -= max(1, len(shorter) - room)
        return kept, texts[:i]
    return kept, texts


def missing(found: Sequence[tuple[int, str]], kept: Sequence[str]) -> str | None:
    """Return a sentence where the prompt does not hold everything that was found; None where it does.

    Args:
        found: Rank and text of each passage, best first.
        kept: Those that stand in the prompt: the first of them, perhaps shortened.
    """
    if not found:
        return "Nothing was found: answered closed book, from memory alone."
    if not kept:
        return "No passage fitted the prompt: answered closed book, from memory alone."
    parts = [f"passage {found[place][0]} was cut" for place in shortened([text for _, text in found], kept)]
    left = [rank for rank, _ in found[len(kept) :]]
    if left:
        which = f"passage {left[0]} was" if len(left) == 1 else f"passages {left[0]} to {left[-1]} were"
        parts.append(f"{which} left out")
    return f"Not everything fitted the prompt: {', '.join(parts)}." if parts else None


def shortened(found: Sequence[str], kept: Sequence[str]) -> list[int]:
    """Return the places of passages that stand in the prompt shortened; arguments as for `missing`, without ranks."""
    pairs = enumerate(zip(found, kept, strict=False))
    return [place for place, (text, short) in pairs if short.split() != text.split()]


def _check_bos(tokenizer: PreTrainedTokenizerBase, pair: PromptPair) -> None:
    bos = tokenizer.bos_token_id
    for name, ids in (("contextual", pair.contextual), ("parametric", pair.parametric)):
        if not ids:
            raise PromptError(f"the {name} prompt is empty.", "Give the template an instruction or an answer opening.")
        if bos is not None and list(ids[:2]) == [bos, bos]:
            raise PromptError(f"the {name} prompt begins with two BOS tokens.", "Remove BOS from the chat template.")
