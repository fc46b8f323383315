"""Prompt pairs: the same question with and without its passages.

Both prompts are built from the same pieces, so they differ by the passage block and by nothing else, and end in the
same tokens. Text that callers supply (question, passages) is tokenised as plain text: it can never yield a special
token, whatever it contains. Knows tokenizers and templates; knows nothing of models.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

from ..errors import PromptError, PromptTooLong, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PromptPair", "PromptTemplate", "build_pair", "plain_ids"]

_MARK = "ckcontrolBODYckcontrol"
_MAX_CHARS = 20_000_000
_SMALLEST_CUT = 8  # a passage cut to fewer tokens than this is dropped instead
_LOCK = threading.Lock()  # a tokenizer call sets state on the object it shares with other threads
_CORES: WeakKeyDictionary[Any, Tokenizer] = WeakKeyDictionary()


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
        system: System message, for chat templates.
        chat: Use the tokenizer's chat template; None uses it if there is one.
        fold: Fold the white space inside a passage, so that it stays on one line: that line is its fence, and no
            passage can open a line of its own ("Question: ..."). False keeps its layout, for code and tables.
    """

    instruction: str = "Answer the question in a few words.\n\n"
    intro: str = "Background:\n"
    passage: str = "{text}\n"
    question: str = "\nQuestion: {question}\n"
    answer: str = "Answer:"
    system: str | None = None
    chat: bool | None = None
    fold: bool = True

    def __post_init__(self) -> None:
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


@dataclass(frozen=True)
class PromptPair:
    """Token ids of one question with and without its passages.

    Attributes:
        contextual: Ids with the passages.
        parametric: Ids without; equal to `contextual` when there are no passages.
        span: First and last-plus-one position of the passage block in `contextual`.
        passages: The passages as they stand in the prompt, after any truncation.
    """

    contextual: tuple[int, ...]
    parametric: tuple[int, ...]
    span: tuple[int, int]
    passages: tuple[str, ...]


def build_pair(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    passages: Sequence[str],
    *,
    template: PromptTemplate | None = None,
    limit: int | None = None,
    max_new_tokens: int = 0,
    truncate: str | None = None,
) -> PromptPair:
    """Build the prompt pair of one question.

    Args:
        tokenizer: Of the model that will answer.
        question: Must hold a visible character.
        passages: May be empty: then both prompts are the closed-book prompt.
        template: Wording; the default asks for a short answer.
        limit: Longest prompt, in tokens; None does not check.
        max_new_tokens: Only for the message of `PromptTooLong`.
        truncate: ``"passages"`` cuts passages from the end until the prompt fits; None refuses.

    Raises:
        PromptError: Empty question or passage, wrong types, over 20 million characters, or a chat template that
            does not place the user's message once.
        PromptTooLong: The prompts exceed `limit`.
    """
    template = template or PromptTemplate()
    _check_text("question", question)
    if isinstance(passages, str):
        raise PromptError("passages is one string.", "Pass a list: passages=[text].")
    for i, passage in enumerate(passages):
        _check_text(f"passage {i + 1}", passage)
    if sum(map(len, passages)) + len(question) > _MAX_CHARS:
        raise PromptError(f"question and passages exceed {_MAX_CHARS:,} characters.", "Split or shorten them.")
    if truncate not in (None, "passages"):
        raise PromptError(f"truncate={truncate!r}.", did_you_mean(str(truncate), ["passages"]) + " None refuses.")

    before, after = _frame(tokenizer, template)
    before += plain_ids(tokenizer, template.instruction)
    ending = template.question.format(question=question.strip())
    after = plain_ids(tokenizer, ending + ("" if _uses_chat(tokenizer, template) else template.answer)) + after
    texts = [" ".join(text.split()) if template.fold else text.strip() for text in passages]
    blocks = [_block(tokenizer, template, i, text) for i, text in enumerate(texts)]
    intro = plain_ids(tokenizer, template.intro) if blocks else []
    fixed = len(before) + len(after)
    total = fixed + len(intro) + sum(map(len, blocks))
    if limit is not None and total > limit:
        if truncate is None or fixed > limit:
            raise PromptTooLong(total, fixed, limit, max_new_tokens)
        blocks, texts = _cut(tokenizer, template, texts, blocks, limit - fixed - len(intro))
        intro = intro if blocks else []
    block = intro + [token for ids in blocks for token in ids]
    pair = PromptPair(
        contextual=(*before, *block, *after),
        parametric=(*before, *after),
        span=(len(before), len(before) + len(block)),
        passages=tuple(texts),
    )
    _check_bos(tokenizer, pair)
    return pair


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise PromptError(f"{name} is {type(text).__name__}, not text.", "Pass a string.")
    if not text.strip():
        raise PromptError(f"{name} is empty.", "Pass text, or leave the passages out to answer closed-book.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{name} holds half a character ({text[error.start]!r} at {error.start}).",
            "Decode its bytes with errors='replace'.",
        ) from error


def _uses_chat(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> bool:
    has = bool(getattr(tokenizer, "chat_template", None))
    if template.chat and not has:
        raise PromptError("template.chat=True, but the tokenizer has no chat template.", "Use chat=False.")
    return has if template.chat is None else template.chat


def _frame(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> tuple[list[int], list[int]]:
    """Return the ids around the user's message: what the chat template (or the plain BOS) puts before and after."""
    if not _uses_chat(tokenizer, template):
        with _LOCK:
            opening = list(tokenizer("")["input_ids"])  # BOS where the tokenizer adds one, and perhaps a closing EOS
        bos = [token for token in opening[:1] if token == tokenizer.bos_token_id]
        return bos, []
    messages = [{"role": "system", "content": template.system}] if template.system else []
    messages.append({"role": "user", "content": _MARK})
    try:
        with _LOCK:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise what they like, e.g. on a system message
        raise PromptError(
            f"the chat template refused the messages: {error}.", "Drop system, or use chat=False."
        ) from error
    if text.count(_MARK) != 1:
        raise PromptError(
            f"the chat template places the user's message {text.count(_MARK)} times.",
            "Use template chat=False.",
        )
    before, after = text.split(_MARK)
    return _special(tokenizer, before), _special(tokenizer, after)


def _special(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise the template's own text, in which special tokens are meant."""
    with _LOCK:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise text in which nothing may become a special or added token, and no space is put before it.

    Raises:
        PromptError: A slow tokenizer, or text whose ordinary spelling is a reserved token.
    """
    if not text:
        return []
    ids: list[int] = _plain_core(tokenizer).encode(text, add_special_tokens=False).ids
    added = getattr(tokenizer, "added_tokens_decoder", {})
    blank = {index for index, token in added.items() if not token.special and token.content.isspace()}  # Gemma's "\n"
    reserved = {*tokenizer.all_special_ids, *added} - {tokenizer.unk_token_id} - blank
    if found := reserved.intersection(ids):
        names = tokenizer.convert_ids_to_tokens(sorted(found))
        raise PromptError(f"the text yields the reserved tokens {names}.", "Remove them from the text.")
    return ids


def _plain_core(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizer's core without added tokens, post-processing and the space some put before a text.

    An object of its own: no state of the shared tokenizer is switched back and forth, so threads cannot see each
    other's setting, and no piece that stands inside a prompt starts with a stray space.
    """
    with _LOCK:
        if tokenizer not in _CORES:
            backend = getattr(tokenizer, "backend_tokenizer", None)
            if backend is None:
                raise PromptError(
                    f"{type(tokenizer).__name__} is a slow tokenizer.", "Load the fast one (tokenizer.json)."
                )
            data = json.loads(backend.to_str())
            data |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
            data["normalizer"] = _without_prefix(data["normalizer"], "normalizers")
            data["pre_tokenizer"] = _without_prefix(data["pre_tokenizer"], "pretokenizers")
            _CORES[tokenizer] = Tokenizer.from_str(json.dumps(data))
        return _CORES[tokenizer]


def _without_prefix(part: dict[str, Any] | None, inner: str) -> dict[str, Any] | None:
    """Take the dummy-prefix space out of a normalizer or pre-tokenizer description."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        steps = [_without_prefix(step, inner) for step in part[inner]]
        return part | {inner: [step for step in steps if step is not None]}
    if part["type"] == "Metaspace":
        return part | {"prepend_scheme": "never"}
    return part | {"add_prefix_space": False} if "add_prefix_space" in part else part


def _block(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, index: int, text: str) -> list[int]:
    return plain_ids(tokenizer, template.passage.format(number=index + 1, text=text))


def _cut(
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    texts: list[str],
    blocks: list[list[int]],
    room: int,
) -> tuple[list[list[int]], list[str]]:
    """Keep passages in order while they fit; cut the first that does not, drop the rest."""
    kept: list[list[int]] = []
    for i, block in enumerate(blocks):
        if len(block) <= room:
            kept.append(block)
            room -= len(block)
            continue
        ids = plain_ids(tokenizer, texts[i])
        size = min(len(ids), room)
        while size >= _SMALLEST_CUT:
            text = tokenizer.decode(ids[:size], skip_special_tokens=True).strip().rstrip("�")
            shorter = _block(tokenizer, template, i, text)
            if text and len(shorter) <= room:
                return [*kept, shorter], [*texts[:i], text]
            size -= max(1, len(shorter) - room)
        return kept, texts[:i]
    return kept, texts


def _check_bos(tokenizer: PreTrainedTokenizerBase, pair: PromptPair) -> None:
    bos = tokenizer.bos_token_id
    for name, ids in (("contextual", pair.contextual), ("parametric", pair.parametric)):
        if not ids:
            raise PromptError(f"the {name} prompt is empty.", "Give the template an instruction or an answer opening.")
        if bos is not None and list(ids[:2]) == [bos, bos]:
            raise PromptError(f"the {name} prompt begins with two BOS tokens.", "Remove BOS from the chat template.")
