"""Reads the texts of a steered request: question and passages, or a hand-made parametric prompt; and the wording.

The wordings of ``ck.template`` are texts with the placeholders ``{text}``, ``{number}`` and ``{question}``; other
format fields are refused, since Python's would reach attributes or ask for a gigabyte of spaces. Knows JSON values and
limits; knows nothing of HTTP, tokenizers or vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from string import Formatter
from typing import Any

from ...decoding.prompts import PromptTemplate
from ...errors import ServingError, did_you_mean
from ..contract.json_values import kind, shown
from .limits import Limits

__all__ = ["Texts", "read_template", "read_texts"]

_PLACES = {"passage": {"text", "number"}, "question": {"question"}}


@dataclass(frozen=True)
class Texts:
    """What both prompts are made of.

    Attributes:
        source: ``passages``, ``messages`` or ``prompt``.
        question: With ``passages``: the question. Else the end of the parametric prompt: its last message, or its text.
        passages: With ``passages``: the passages; none is closed book.
        system: With ``passages``: the system message beside the question, if there was one.
        parametric: With ``messages`` or ``prompt``: that, to stand where the contextual one stands.
    """

    source: str
    question: str = ""
    passages: tuple[str, ...] = ()
    system: str | None = None
    parametric: Any = None


def read_texts(source: str, chat: bool, body: Mapping[str, Any], limits: Limits) -> Texts:
    """Return the texts of a body whose ``ck`` holds `source`.

    Raises:
        ServingError: Wrong types, a part that is not text, or more than the limits allow.
    """
    given = body["ck"][source]
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
    system, question = _question(body.get("messages")) if chat else (None, body.get("prompt"))
    if not isinstance(question, str):
        raise ServingError("prompt is not one text.", "With ck.passages it is the question, as text.")
    _bound(sum(map(len, given)) + len(question) + len(system or ""), limits)
    return Texts(source, question, tuple(given), system)


def read_template(value: Any, texts: Texts, limits: Limits, variables: Any = None) -> PromptTemplate:
    """Return the wording: of ``ck.template``, with the request's system message and its chat template variables.

    Raises:
        ServingError: A name that is unknown, a value of the wrong type or length, an unknown placeholder.
        PromptError: A placeholder is missing.
    """
    if value is not None and texts.source != "passages":
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
    template = PromptTemplate(**value)
    if variables and texts.source == "passages":  # else vLLM's own chat endpoint makes the prompts, with them
        template = replace(template, template_kwargs=_variables(variables))
    if texts.system is not None:
        if template.system is not None:
            raise ServingError("there are two system messages.", "Give one: in messages, or as ck.template.system.")
        template = replace(template, system=texts.system)
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


def _question(messages: Any) -> tuple[str | None, str]:
    """Return system message and question; a conversation cannot be taken apart into question and passages."""
    roles = [message.get("role") if isinstance(message, dict) else None for message in _as_list(messages)]
    if roles not in (["user"], ["system", "user"], ["developer", "user"]):
        raise ServingError(
            "ck.passages needs messages to hold one user message, the question, and perhaps a system message first.",
            "For a conversation give both prompts: messages with the passages, ck.messages without.",
        )
    texts = [_content(f"messages[{i}]", message) for i, message in enumerate(messages)]
    return (texts[0] if len(texts) == 2 else None), texts[-1]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) and len(value) <= 2 else []


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
