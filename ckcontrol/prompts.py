"""Prompt pairs: the same question with and without its passages.

Both prompts are built from the same pieces, so they differ by the passage block and by nothing else, and end in the
same tokens. Text that callers supply (question, passages) is tokenised as plain text: it can never yield a special
token, whatever it contains. Knows tokenizers and templates; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import PromptError, PromptTooLong, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PromptPair", "PromptTemplate", "build_pair"]

_MARK = "ckcontrolBODYckcontrol"
_MAX_CHARS = 20_000_000
_SMALLEST_CUT = 8  # a passage cut to fewer tokens than this is dropped instead


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
        for name, needed in (("passage", "{text}"), ("question", "{question}")):
            if needed not in getattr(self, name):
                raise PromptError(f"template.{name}={getattr(self, name)!r} lacks {needed}.", "Add the placeholder.")


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
    for i, passage in enumerate(passages):
        _check_text(f"passage {i + 1}", passage)
    if sum(map(len, passages)) + len(question) > _MAX_CHARS:
        raise PromptError(f"question and passages exceed {_MAX_CHARS:,} characters.", "Split or shorten them.")
    if truncate not in (None, "passages"):
        raise PromptError(f"truncate={truncate!r}.", did_you_mean(str(truncate), ["passages"]) + " None refuses.")

    before, after = _frame(tokenizer, template)
    before += _plain(tokenizer, template.instruction)
    ending = template.question.format(question=question.strip())
    after = _plain(tokenizer, ending + ("" if _uses_chat(tokenizer, template) else template.answer)) + after
    texts = [" ".join(text.split()) if template.fold else text.strip() for text in passages]
    blocks = [_block(tokenizer, template, i, text) for i, text in enumerate(texts)]
    intro = _plain(tokenizer, template.intro) if blocks else []
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


def _uses_chat(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> bool:
    has = bool(getattr(tokenizer, "chat_template", None))
    if template.chat and not has:
        raise PromptError("template.chat=True, but the tokenizer has no chat template.", "Use chat=False.")
    return has if template.chat is None else template.chat


def _frame(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> tuple[list[int], list[int]]:
    """Return the ids around the user's message: what the chat template (or the plain BOS) puts before and after."""
    if not _uses_chat(tokenizer, template):
        opening = list(tokenizer("")["input_ids"])  # BOS where the tokenizer adds one, and perhaps a closing EOS
        bos = [token for token in opening[:1] if token == tokenizer.bos_token_id]
        return bos, []
    messages = [{"role": "system", "content": template.system}] if template.system else []
    messages.append({"role": "user", "content": _MARK})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if text.count(_MARK) != 1:
        raise PromptError(
            f"the chat template places the user's message {text.count(_MARK)} times.",
            "Use template chat=False.",
        )
    before, after = text.split(_MARK)
    return _special(tokenizer, before), _special(tokenizer, after)


def _special(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise the template's own text, in which special tokens are meant."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise text in which nothing may become a special token.

    A tokenizer that prefixes a space to every string (SentencePiece) would put one at each seam; encoding behind a
    newline and cutting the newline off again avoids it.
    """
    if not text:
        return []
    anchor = list(tokenizer("\n", add_special_tokens=False)["input_ids"])
    ids = list(tokenizer("\n" + text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    if ids[: len(anchor)] == anchor and len(ids) > len(anchor):
        ids = ids[len(anchor) :]
    else:  # the newline merged with the text's own first character
        ids = list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    if forbidden := set(ids) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}:
        raise PromptError(
            f"the text yields special tokens {sorted(forbidden)}.", "Use a fast tokenizer, or remove them."
        )
    return ids


def _block(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, index: int, text: str) -> list[int]:
    return _plain(tokenizer, template.passage.format(number=index + 1, text=text))


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
        ids = _plain(tokenizer, texts[i])
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
