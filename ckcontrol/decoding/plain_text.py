"""Text to token ids with nothing special among them: what callers supply stays text, whatever it contains.

A vocabulary that spells a special token in ordinary text is given that place in halves. Knows tokenizers; knows nothing
of prompts, templates or models.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

from ..errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LOCK", "check_text", "plain_ids"]

LOCK = threading.Lock()  # a tokenizer call sets state on the object it shares with other threads
_STAND_INS = ("\ufffd", "?")  # for a character that a vocabulary can only write as a reserved token
_CORES: WeakKeyDictionary[Any, Tokenizer] = WeakKeyDictionary()


def check_text(name: str, text: object, empty: str = "Pass text.") -> None:
    """Refuse what is no text, empty, or not Unicode.

    Args:
        name: What the error calls it.
        text: Any.
        empty: What to do about an empty one.

    Raises:
        PromptError: Naming `name`.
    """
    if not isinstance(text, str):
        raise PromptError(f"{name} is {type(text).__name__}, not text.", "Pass a string.")
    if not text.strip():
        raise PromptError(f"{name} is empty.", empty)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{name} holds half a character ({text[error.start]!r} at {error.start}).",
            "Decode its bytes with errors='replace'.",
        ) from error


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str, ends: Collection[int] = ()) -> list[int]:
    """Tokenise text in which nothing may become a special or added token, and no space is put before it.

    Where the vocabulary spells one all the same, that place is tokenised in halves, so it reads as before; a character
    that can only be written as a reserved token (one the tokenizer does not know, where unknown means end) becomes
    U+FFFD or "?". Line breaks and spaces stay what they are, and so does the token for the unknown that means only
    that.

    Args:
        tokenizer: A fast one.
        text: Any.
        ends: Further ids to keep out, unless they are a single character.

    Raises:
        PromptError: A slow tokenizer.
    """
    if not text:
        return []
    core = _plain_core(tokenizer)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    blank = {index for index, token in added.items() if token.content.isspace()}  # Gemma's "\n"
    meanings = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id)
    unknown = {tokenizer.unk_token_id} - {*meanings, tokenizer.mask_token_id}
    reserved = {*tokenizer.all_special_ids, *added} - unknown - blank
    return _fenced(core, text, reserved, set(ends) - unknown - blank)


def _fenced(core: Tokenizer, text: str, reserved: set[int], ends: set[int]) -> list[int]:
    """Tokenise text; what yields an id of `reserved` or `ends` again in halves, down to single characters."""
    coded = core.encode(text, add_special_tokens=False)
    if not (reserved | ends).intersection(coded.ids):
        return list(coded.ids)
    ids: list[int] = []
    for token, (start, stop) in zip(coded.ids, coded.offsets, strict=True):
        if stop - start > 1 and (token in reserved or token in ends):
            middle = (start + stop) // 2
            for half in (text[start:middle], text[middle:stop]):
                ids += _fenced(core, half, reserved, ends)
        elif token not in reserved:
            ids.append(token)
        else:
            stand_ins = (core.encode(other, add_special_tokens=False).ids for other in _STAND_INS)
            ids += next((written for written in stand_ins if not reserved.intersection(written)), [])
    return ids


def _plain_core(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizer's core without added tokens, post-processing and the space some put before a text.

    An object of its own: no state of the shared tokenizer is switched back and forth, so threads cannot see each
    other's setting, and no piece that stands inside a prompt starts with a stray space.
    """
    with LOCK:
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
