"""Makes the prompt pair of a request for a model in this process, and says how long its answer may be.

Knows requests, tokenizers and wordings; knows nothing of HTTP, engines or indexes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..decoding.plain_text import LOCK
from ..decoding.prompts import PromptPair, PromptTemplate, build_pair
from ..decoding.sourced import Asked, ask_sources, check_answers
from ..errors import PromptTooLong, ServingError, UnsupportedMode
from .read_request import CHAT, Steered
from .read_texts import BUILT, PLAIN, tools_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BARE", "Room", "make_pair", "make_sources"]

BARE = PromptTemplate(instruction="", intro="", passage="{text}", question="{question}", answer="")


class Room(NamedTuple):
    """What prompts and answers have to fit.

    Attributes:
        positions: Longest prompt and answer together; None if the model has no limit.
        tokens: Longest answer.
        vocabulary: Token ids there are.
        ends: End tokens that no text may yield, see `plain_ids`.
    """

    positions: int | None
    tokens: int
    vocabulary: int
    ends: Collection[int]


def make_pair(request: Steered, tokenizer: PreTrainedTokenizerBase, room: Room) -> tuple[PromptPair, int]:
    """Return both prompts, and the most tokens that the answer may have.

    A chat without ``ck`` is laid out by the chat template; what its turns say stays text, as everywhere.

    Raises:
        PromptError: Texts or wording cannot become prompts; `PromptTooLong` if they do not fit.
        ServingError: A token id that does not exist.
    """
    asked = request.body.get("max_completion_tokens")
    asked = request.body.get("max_tokens") if asked is None else asked
    least = 1 if asked is None else asked
    limit = None if room.positions is None else max(0, room.positions - least)
    pair = _make(request, tokenizer, limit, least, room)
    longest = max(len(pair.contextual), len(pair.parametric))
    if limit is not None and longest > limit:
        raise PromptTooLong(longest, min(len(pair.contextual), len(pair.parametric)), limit, least)
    if asked is None:
        asked = room.tokens if room.positions is None else min(room.tokens, room.positions - longest)
    return pair, asked


def make_sources(
    request: Steered, tokenizer: PreTrainedTokenizerBase, room: Room, most: int
) -> tuple[Asked | None, int]:
    """Return the prompts of a request's sources, and the most tokens that the answer may have; None without passages.

    An override of the index stands alone.

    Args:
        request: What was asked for.
        tokenizer: Of the model that will answer.
        room: What prompts and answers have to fit.
        most: The most tokens that the answer of its pair may have, from `make_pair`.

    Raises:
        ServingError: The method does not weigh whole answers of several sources.
        PromptError: As `ask_sources`.
    """
    texts = request.texts
    if request.sources is None or not texts.passages or texts.override:
        return None, most
    try:
        check_answers(request.control.policy())
    except UnsupportedMode as error:
        what = f"ck.method={request.control.method!r} does not choose among whole answers of several sources."
        raise ServingError(what, 'Send "method": "dial" in ck, or leave ck.sources out.') from error
    asked = {"question": texts.question} if texts.messages is None else {"messages": texts.messages}
    wanted = request.body.get("max_completion_tokens") or request.body.get("max_tokens")
    limit = None if room.positions is None else max(0, room.positions - (wanted or 1))
    how = _how(request, limit, wanted or 1, room)
    made = ask_sources(tokenizer, asked, texts.passages, request.sources, how)
    if room.positions is not None and wanted is None:
        most = min(most, room.positions - max(map(len, made.prompts.ids)))
    return made, most


def _how(request: Steered, limit: int | None, tokens: int, room: Room) -> dict[str, Any]:
    """Return what `build_pair` is told of prompts with passages."""
    return {
        "tools": tools_of(request.body),
        "template": request.template,
        "truncate": "passages" if request.texts.source == "retrieve" else None,
        "limit": limit,
        "max_new_tokens": tokens,
        "ends": room.ends,
    }


def _make(
    request: Steered, tokenizer: PreTrainedTokenizerBase, limit: int | None, tokens: int, room: Room
) -> PromptPair:
    texts, body = request.texts, request.body
    how: dict[str, Any] = {"limit": limit, "max_new_tokens": tokens, "ends": room.ends}
    if texts.source in BUILT:
        how = _how(request, limit, tokens, room)
        return build_pair(tokenizer, texts.question, texts.passages, messages=texts.messages, **how)
    if request.path == CHAT:
        how |= {"template": BARE, "template_kwargs": body.get("chat_template_kwargs")}
        how["tools"] = tools_of(body)
        pair = build_pair(tokenizer, messages=body["messages"], **how)
        if texts.source == PLAIN:
            return pair
        return replace(pair, parametric=build_pair(tokenizer, messages=texts.parametric, **how).contextual)
    contextual = _ids("prompt", body["prompt"], tokenizer, room)
    other = contextual if texts.source == PLAIN else _ids("ck.prompt", texts.parametric, tokenizer, room)
    return PromptPair(contextual, other, (0, 0), ())


def _ids(name: str, prompt: Any, tokenizer: PreTrainedTokenizerBase, room: Room) -> tuple[int, ...]:
    if isinstance(prompt, str):
        with LOCK:
            ids = list(tokenizer(prompt)["input_ids"])
        if len(ids) > 1 and len(ids) > len(prompt) and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
        return tuple(ids)
    largest = max(prompt)
    if largest >= room.vocabulary:
        raise ServingError(f"{name} holds token {largest}.", f"The model knows 0 to {room.vocabulary - 1}.")
    return tuple(prompt)
