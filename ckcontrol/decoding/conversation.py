"""Conversations: messages to turns, and turns to the ids that a chat template puts around the last user's words.

The template is rendered with a mark in place of every turn's text, so each text can be tokenised as plain text and the
template's own markers stay special. What a template reads as data (tools, tool calls, variables) is rendered as it is,
and refused where it spells a special token. Knows tokenizers and chat templates; knows nothing of passages or models.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import PromptError, did_you_mean
from .plain_text import LOCK, check_text, plain_ids
from .token_texts import opens_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Frame", "Turn", "conversations", "frame", "question_of", "read_tools", "read_turns"]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_KEYS = {
    "system": ("content",),
    "user": ("content",),
    "assistant": ("content", "tool_calls"),
    "tool": ("content", "tool_call_id", "name"),
}
_MARK = re.compile(r"ckcontrolTURN(\d+)ckcontrol")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        text: What was said; empty only beside the calls of an assistant.
        name: What errors call the turn.
        more: Further keys that the chat template reads: ``tool_calls``, ``tool_call_id``, ``name``.
    """

    role: str
    text: str
    name: str
    more: Mapping[str, Any] = field(default_factory=dict)


class Frame(NamedTuple):
    """Ids around the words of the last user.

    Attributes:
        before: What stands before them, earlier turns included.
        after: What follows them, up to where the answer begins.
        thinking: They leave a thought open.
    """

    before: list[int]
    after: list[int]
    thinking: bool


def conversations(messages: Any) -> tuple[list[Any], bool]:
    """Return a batch of conversations, not yet looked into, and whether `messages` was a single one of them.

    Raises:
        PromptError: Neither a list of messages nor a list of such lists.
    """
    if not isinstance(messages, (list, tuple)):
        raise PromptError(f"messages is {type(messages).__name__}, not a list.", _EXAMPLE)
    if not messages:
        raise PromptError("messages is empty.", _EXAMPLE)
    if all(isinstance(one, (list, tuple)) for one in messages):
        return list(messages), False
    return [messages], True


_EXAMPLE = 'Like messages=[{"role": "user", "content": "Who wrote it?"}], or a list of such lists.'


def read_turns(messages: Any, name: str = "messages") -> list[Turn]:
    """Return the turns of one conversation, in the form of OpenAI's messages.

    A message has a ``role`` (``developer`` is ``system``) and a ``content``, text or a list of text parts, taken
    without outer white space; an assistant's may have ``tool_calls``, a tool's ``tool_call_id`` and ``name``. A key
    whose value is None or empty says nothing and is passed over.

    Args:
        messages: A list of mappings that ends with a user's message, or with a tool's that a user caused.
        name: What errors call it.

    Raises:
        PromptError: Naming the message that is wrong, and how.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise PromptError(f"{name} is {type(messages).__name__ if messages else 'empty'}.", _EXAMPLE)
    turns = [_read(f"{name}[{place}]", message) for place, message in enumerate(messages)]
    question_of(turns, name)
    if turns[-1].role in ("assistant", "system"):
        raise PromptError(
            f"{name} ends with the turn of {'an assistant' if turns[-1].role == 'assistant' else 'the system'}.",
            "End with the user's; an answer cannot be continued.",
        )
    return turns


def question_of(turns: Sequence[Turn], name: str = "messages") -> str:
    """Return what the user said last.

    Raises:
        PromptError: There is no turn of a user.
    """
    said = [turn.text for turn in turns if turn.role == "user"]
    if not said:
        raise PromptError(f"{name} holds no turn of a user.", "Passages stand in the last one; add it.")
    return said[-1]


def _read(name: str, message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise PromptError(f"{name} is {type(message).__name__}, not a message.", _EXAMPLE)
    role = message.get("role")
    if role not in _ROLES:
        raise PromptError(f"{name}: role is {role!r:.40}.", did_you_mean(str(role)[:40], _ROLES))
    role = "system" if role == "developer" else str(role)
    known = _KEYS[role]
    more = {key: value for key, value in message.items() if key != "role" and value is not None and value != []}
    for key in more:
        if key not in known:
            raise PromptError(f"{name}: a turn of {role} has no {key!r:.40}.", did_you_mean(str(key)[:40], known))
    text = _content(name, more.pop("content", None))
    if "tool_calls" in more:
        more["tool_calls"] = [_call(f"{name}: tool_calls[{i}]", call) for i, call in enumerate(_calls(name, more))]
    if text or "tool_calls" not in more:
        check_text(f"{name}.content", text, "Give its text, or leave the turn out.")
    return Turn(role, text.strip(), name, more)


def _content(name: str, content: Any) -> str:
    """Return the text of a message; a part that is not text (an image, a file) is refused."""
    if not isinstance(content, (list, tuple)):
        return "" if content is None else content  # what is no text is named by the check that follows
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise PromptError(f"{name} holds a part that is not text.", "Both streams take texts alone.")
    return "".join(part["text"] for part in content)


def _calls(name: str, more: Mapping[str, Any]) -> Sequence[Any]:
    calls = more["tool_calls"]
    if not isinstance(calls, (list, tuple)):
        raise PromptError(f"{name}: tool_calls is {type(calls).__name__}, not a list.", "As an OpenAI client gives it.")
    return calls


def _call(name: str, call: Any) -> dict[str, Any]:
    """Return a call as chat templates read it: OpenAI's arguments are JSON in a text."""
    function: Any = call.get("function") if isinstance(call, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if not isinstance(arguments, Mapping):
        raise PromptError(f"{name} is no call.", 'Like {"function": {"name": "...", "arguments": {...}}}.')
    return {**call, "function": {**function, "arguments": dict(arguments)}}


def read_tools(tools: Any) -> list[Any] | None:
    """Return the tools as a list; None for none.

    Raises:
        PromptError: What is neither a JSON schema of a function nor a function.
    """
    if not tools:
        return None
    if not isinstance(tools, (list, tuple)) or not all(isinstance(t, Mapping) or callable(t) for t in tools):
        raise PromptError(f"tools={tools!r:.60} is no list of tools.", "As an OpenAI client gives them, or functions.")
    return list(tools)


def frame(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    *,
    variables: Mapping[str, Any],
    tools: Sequence[Any] | None = None,
    ends: Collection[int] = (),
) -> Frame:
    """Lay a conversation out in the tokenizer's chat template.

    Args:
        tokenizer: With a chat template.
        turns: One of them a user's.
        variables: Of the chat template.
        tools: For the chat template.
        ends: End tokens that no text may yield, see `plain_ids`.

    Raises:
        PromptError: The template refuses the turns, does not place each of them once, has no use for a variable, for
            tools or for calls, or something of these spells a special token.
    """
    called = [turn for turn in turns if "tool_calls" in turn.more]
    _check_used(tokenizer, variables, tools, called)
    text = _render(tokenizer, turns, variables, tools)
    pieces = _MARK.split(text)  # template, number of a turn, template, ..., template
    placed = Counter(map(int, pieces[1::2]))
    for number, turn in enumerate(turns):
        if turn.text and placed[number] != 1:
            only = "Use template chat=False." if len(turns) == 1 else "It has no place for such a turn; leave it out."
            raise PromptError(f"the chat template places {turn.name} {placed[number]} times.", only)
    if variables or tools or called:
        _check_inert(tokenizer, turns, variables, tools, pieces)
    last = max(number for number, turn in enumerate(turns) if turn.role == "user")
    before: list[int] = []
    ids = before
    for place, piece in enumerate(pieces):
        if not place % 2:
            ids += _special(tokenizer, piece)
        elif int(piece) == last:
            ids = []
        else:
            ids += plain_ids(tokenizer, turns[int(piece)].text, ends)
    return Frame(before, ids, opens_thought(pieces[-1]))


def _render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    variables: Mapping[str, Any],
    tools: Sequence[Any] | None,
) -> str:
    messages = [
        {"role": turn.role, "content": f"ckcontrolTURN{number}ckcontrol" if turn.text else "", **turn.more}
        for number, turn in enumerate(turns)
    ]
    given: dict[str, Any] = {**variables, **({"tools": tools} if tools else {})}
    try:
        with LOCK:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **given))
    except Exception as error:  # templates raise what they like, e.g. on a system message
        hint = "Drop system, or use chat=False." if len(turns) < 3 else "Give the turns it takes."
        raise PromptError(f"the chat template refused the messages: {error}.", hint) from error


def _check_used(
    tokenizer: PreTrainedTokenizerBase, names: Collection[str], tools: Sequence[Any] | None, called: Sequence[Turn]
) -> None:
    """Refuse what the chat template does not use: a misspelt variable would change nothing, and say nothing."""
    if not (names or tools or called):
        return
    from jinja2 import Environment, TemplateError
    from jinja2.meta import find_undeclared_variables

    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) - {"kwargs"} | {"messages"}
    source = tokenizer.get_chat_template(tools=tools)
    try:
        known = find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source))
    except TemplateError:  # an extension of its own: then it cannot be told which it uses
        known = {*names, "tools"}
    for name in names:
        if name in taken:
            raise PromptError(f"template_kwargs: {name!r} is set by ckcontrol.", "Leave it out.")
        if name not in known:
            proposal = did_you_mean(name, known - taken - {"bos_token", "eos_token", "raise_exception", "strftime_now"})
            raise PromptError(f"template_kwargs: the chat template has no variable {name!r}.", proposal)
    if tools and "tools" not in known:
        raise PromptError("the chat template has no variable 'tools'.", "This model takes none; leave tools out.")
    if called and "tool_calls" not in source:
        raise PromptError(f"{called[0].name}: the chat template takes no tool_calls.", "Leave that turn out.")


def _check_inert(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    variables: Mapping[str, Any],
    tools: Sequence[Any] | None,
    pieces: Sequence[str],
) -> None:
    """Refuse data in which a special token is spelt, alone or together with the template's text beside it.

    A template compares such data with names ("object", "function"), so no mark can stand for it. It is rendered again
    without the punctuation that special tokens are made of: a marker that is gone then was not the template's.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    spelt = {sign for token in added.values() for sign in token.content if not (sign.isalnum() or sign.isspace())}
    drop = str.maketrans("", "", "".join(spelt - {"_"}))

    def bare(value: Any) -> Any:
        if isinstance(value, str):
            return value.translate(drop)
        if isinstance(value, Mapping):
            return {bare(key): bare(one) for key, one in value.items()}
        return [bare(one) for one in value] if isinstance(value, (list, tuple)) else value

    def specials(parts: Sequence[str]) -> Counter[int]:
        reserved = {*tokenizer.all_special_ids, *added}
        return Counter(token for part in parts for token in _special(tokenizer, part) if token in reserved)

    plain = [Turn(turn.role, turn.text, turn.name, bare(turn.more)) for turn in turns]
    without = _MARK.split(_render(tokenizer, plain, bare(variables), bare(_schemas(tools))))
    if specials(pieces[::2]) - specials(without[::2]):
        raise PromptError("a tool, a call or a variable spells a special token of the tokenizer.", "Take it out.")


def _schemas(tools: Sequence[Any] | None) -> list[Any] | None:
    from transformers.utils import get_json_schema

    return None if tools is None else [t if isinstance(t, Mapping) else get_json_schema(t) for t in tools]


def _special(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise the template's own text, in which special tokens are meant."""
    with LOCK:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
