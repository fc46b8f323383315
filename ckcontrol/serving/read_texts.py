"""Reads the texts of a steered request: conversation and passages, or a hand-made parametric prompt; and the wording.

The wordings of ``ck.template`` are texts with the placeholders ``{text}``, ``{number}`` and ``{question}``; other
format fields are refused, since Python's would reach attributes or ask for a gigabyte of spaces. Knows JSON values and
limits; knows nothing of HTTP, tokenizers or vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from string import Formatter
from typing import Any

from ..decoding.conversation import Turn, question_of, read_turns
from ..decoding.prompts import PromptTemplate
from ..errors import PromptError, ServingError, did_you_mean
from .json_values import in_ck, integer, kind, shown
from .limits import Limits

__all__ = ["BUILT", "PLAIN", "Texts", "Wanted", "read_template", "read_texts", "tools_of"]

BUILT = ("passages", "retrieve")  # sources of which both prompts are built here
PLAIN = "plain"  # the source of a request without ck

_PLACES = {"passage": {"text", "number"}, "question": {"question"}}


@dataclass(frozen=True)
class Wanted:
    """A search.

    Attributes:
        k: Passages.
        mode: How to search; None leaves it to the index.
        min_score: Leave out passages below it; None takes all.
        where: A filter; what its names and conditions are is for the index to say.
        query: What to search by; None is the question.
    """

    k: int = 4
    mode: str | None = None
    min_score: float | None = None
    where: Mapping[str, Any] | None = None
    query: str | None = None


@dataclass(frozen=True)
class Texts:
    """What both prompts are made of.

    Attributes:
        source: ``passages``, ``retrieve``, ``messages``, ``prompt`` or, of a request without ``ck``, `PLAIN`.
        question: With ``passages`` and a prompt: the question. Else what was asked last, or the end of a prompt.
        messages: With ``passages`` and messages: the conversation; its last user turn gets the passages.
        passages: With ``passages``: the passages; none is closed book.
        parametric: With ``messages`` or ``prompt``: that, to stand where the contextual one stands.
        wanted: With ``retrieve``: what to search for; the passages are what was found.
        hits: Likewise: each passage as `Hit.to_dict` tells it.
        override: Likewise: the id of the override that the question asked for, whose statement is the passage.
    """

    source: str
    question: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    passages: tuple[str, ...] = ()
    parametric: Any = None
    wanted: Wanted | None = None
    hits: tuple[Mapping[str, Any], ...] = ()
    override: str = ""

    @property
    def asked(self) -> str:
        """What was asked, to compare drafts with; empty where it is not known."""
        return self.question or (question_of(read_turns(self.messages)) if self.messages else "")


def read_texts(source: str, chat: bool, body: Mapping[str, Any], limits: Limits) -> Texts:
    """Return the texts of a body whose ``ck`` holds `source`.

    Raises:
        ServingError: Wrong types, a part that is not text, or more than the limits allow.
        PromptError: Messages beside passages that are no conversation, see `read_turns`.
    """
    if source == PLAIN:
        return _plain(chat, body, limits)
    given = body["ck"][source]
    wanted = None
    if source == "retrieve":
        wanted, given = _wanted(given, limits), []
    if source == "messages":
        if not isinstance(given, list) or not given:
            raise ServingError(f"ck.messages is {kind(given)}.", "Give a list of messages, as in messages.")
        parts = [_content(f"ck.messages[{i}]", message) for i, message in enumerate(given)]
        _bound(sum(map(len, parts)), limits)
        return Texts(source, parts[-1], parametric=given)
    if source == "prompt":
        _prompt("ck.prompt", given, limits)
        _prompt("prompt", body.get("prompt"), limits)
        return Texts(source, given if isinstance(given, str) else "", parametric=given)
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise ServingError("ck.passages is not a list of texts.", 'Like "passages": ["first", "second"].')
    if len(given) > limits.passages:
        raise ServingError(f"ck holds {len(given)} passages.", f"At most {limits.passages} are taken.")
    sizes = sum(map(len, given))
    if chat:
        turns = _turns(body, limits)
        more = sum(len(json.dumps(turn.more)) for turn in turns) + len(json.dumps(tools_of(body)))
        _bound(sizes + more + sum(len(turn.text) for turn in turns), limits)
        return Texts(source, messages=tuple(body["messages"]), passages=tuple(given), wanted=wanted)
    question = body.get("prompt")
    if not isinstance(question, str):
        raise ServingError("prompt is not one text.", "With ck.passages it is the question, as text.")
    _bound(sizes + len(question), limits)
    return Texts(source, question, passages=tuple(given), wanted=wanted)


def _plain(chat: bool, body: Mapping[str, Any], limits: Limits) -> Texts:
    """Return the texts of a request without ``ck``."""
    if not chat:
        _prompt("prompt", body.get("prompt"), limits)
        return Texts(PLAIN)
    turns = _turns(body, limits)
    tools = len(json.dumps(tools_of(body)))
    _bound(tools + sum(len(json.dumps(turn.more)) + len(turn.text) for turn in turns), limits)
    return Texts(PLAIN)


def _turns(body: Mapping[str, Any], limits: Limits) -> list[Turn]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ServingError(
            "messages is not a list of messages.", 'Like "messages": [{"role": "user", "content": "Who wrote it?"}].'
        )
    if len(messages) > limits.messages:
        raise ServingError(f"there are {len(messages)} messages.", f"At most {limits.messages} are taken.")
    return read_turns(messages)


def tools_of(body: Mapping[str, Any]) -> list[Any]:
    """Return the tools that the chat template of a body is to be told of: none where ``tool_choice`` is ``none``.

    Raises:
        ServingError: No list of objects, or a choice that would have to be forced on the model.
    """
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    if choice not in (None, "none", "auto"):
        hint = "Send auto, or hold the answer to the call's schema by response_format."
        raise ServingError(f"tool_choice={shown(choice)}: nothing here makes a model call a tool.", hint)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ServingError(f"tools is {kind(tools)}.", 'Like [{"type": "function", "function": {"name": "..."}}].')
    return [] if choice == "none" else tools


def _wanted(given: Any, limits: Limits) -> Wanted:
    if not isinstance(given, dict):
        raise ServingError(
            f"ck.retrieve is {kind(given)}.", 'Like {"k": 4}, with mode, min_score, where and query if you like.'
        )
    known = [field.name for field in fields(Wanted)]
    for name, value in given.items():
        if name not in known:
            raise ServingError(f"ck.retrieve.{name[:64]} is unknown.", did_you_mean(name[:64], known))
        wrong = value is not None and not isinstance(value, {"where": dict}.get(name, str))
        if name == "min_score":
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ServingError(f"ck.retrieve.min_score={shown(value)}.", "Give a number.")
        elif name != "k" and (wrong or (name == "query" and value is not None and not value.strip())):
            raise ServingError(f"ck.retrieve.{name}={shown(value)}.", "Give text." if name != "where" else "An object.")
    _bound(len(json.dumps(given)), limits)
    kept = {name: value for name, value in given.items() if value is not None}
    if "k" in kept:
        integer("ck.retrieve.k", kept["k"], 1, limits.passages)
    return Wanted(**kept)


def read_template(value: Any, texts: Texts, limits: Limits, variables: Any = None) -> PromptTemplate:
    """Return the wording: of ``ck.template``, with the request's variables of the chat template.

    Raises:
        ServingError: A name that is unknown, a value of the wrong type or length, an unknown placeholder.
        PromptError: A placeholder is missing.
    """
    if value is not None and texts.source not in BUILT:
        raise ServingError(
            f"ck.template stands beside ck.{texts.source}.", "It is the wording around passages; drop it."
        )
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ServingError(f"ck.template is {kind(value)}, not an object.", "It holds wordings, never a name.")
    known = {field.name: field for field in fields(PromptTemplate) if field.name != "template_kwargs"}
    for name, given in value.items():
        if name not in known:
            raise ServingError(f"ck.template.{name[:64]} is unknown.", did_you_mean(name[:64], known))
        if name in ("chat", "fold"):
            if not isinstance(given, bool) and not (name == "chat" and given is None):
                raise ServingError(f"ck.template.{name}={shown(given)}.", "Give true or false.")
        elif isinstance(given, str):
            if len(given) > limits.template_characters:
                size, most = f"{len(given):,}", f"{limits.template_characters:,}"
                raise ServingError(f"ck.template.{name} holds {size} characters.", f"At most {most} are taken.")
            _check_places(name, given)
        elif not (name == "system" and given is None):
            raise ServingError(f"ck.template.{name} is {kind(given)}.", "Give text.")
    try:
        template = PromptTemplate(**value)
    except PromptError as error:
        raise in_ck(error, ("template",)) from None
    if variables and texts.source in (*BUILT, PLAIN):  # vLLM's own chat endpoint makes the other prompts, with them
        template = replace(template, template_kwargs=_variables(variables))
    return template


def _variables(given: Any) -> dict[str, Any]:
    """Return the variables of the chat template: a few plain, short values."""
    if not isinstance(given, dict) or len(given) > 16:
        raise ServingError(f"chat_template_kwargs is {kind(given)}.", 'Like {"enable_thinking": false}.')
    for name, value in given.items():
        if not (
            value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 64)
        ):
            raise ServingError(f"chat_template_kwargs.{name[:64]}={shown(value)}.", "Give a plain, short value.")
    return given


def _content(name: str, message: Any) -> str:
    """Return the text of a message; a part that is not text (an image, a file) is refused."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ServingError(f"{name} is not a message.", 'Like {"role": "user", "content": "..."}.')
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ServingError(f"{name}.content is {kind(content)}.", "Give text.")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ServingError(f"{name} holds a part that is not text.", "Steered requests take texts alone.")
    return "".join(part["text"] for part in content)


def _prompt(name: str, prompt: Any, limits: Limits) -> None:
    if isinstance(prompt, list) and prompt and all(type(token) is int and 0 <= token < 2**31 for token in prompt):
        if len(prompt) < 2:
            raise ServingError(f"{name} is one token.", "A row of a pair needs at least two; begin with BOS.")
        return _bound(len(prompt), limits)
    if not isinstance(prompt, str) or not prompt:
        raise ServingError(f"{name} is {kind(prompt)}.", "Give one text, or one list of token ids.")
    return _bound(len(prompt), limits)


def _bound(size: int, limits: Limits) -> None:
    if size > limits.characters:
        raise ServingError(f"the texts hold {size:,} characters.", f"At most {limits.characters:,} are taken.")


def _check_places(name: str, form: str) -> None:
    if name not in _PLACES:
        return
    try:
        parts = list(Formatter().parse(form))
    except ValueError as error:
        raise ServingError(f"ck.template.{name}={shown(form)}: {error}.", "Double the braces that are text.") from error
    for _, place, spec, conversion in parts:
        if place is not None and (place not in _PLACES[name] or spec or conversion):
            allowed = " and ".join("{" + one + "}" for one in sorted(_PLACES[name]))
            raise ServingError(
                f"ck.template.{name}={shown(form)} holds another placeholder.", f"It may hold {allowed}."
            )
