"""Finds the passages that a chain has written into its messages, so that a prompt without them can be built.

By the time a chain asks its model, the documents are text inside a message. What stands after a line such as
"Context:", between two rules of dashes or between ``<context>`` tags is taken for them; the rest of that message stays
around them, in both prompts alike. Knows texts and OpenAI's messages; knows no framework and no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..decoding.prompts import PromptTemplate, passage_list

__all__ = ["CONTEXT", "Parted", "part"]

# In this order; each names the passages ``passages``. A rule and a tag end at the last of their kind, so that a passage
# which holds one ends nothing; a label ends at the last label of a question, where that was not written before it, else
# of an answer.
_LABEL = r"^[^\n:]*\b(?:context|documents|passages|information|sources)\b[^\n:]*:[ \t]*\n?"
_QUESTION = r"[^\n:]{0,20}\b(?:question|query)\b[^\n:]{0,20}:"
_ANSWER = r"(?:helpful )?answer:"
CONTEXT = (
    r"^-{5,}[ \t]*\n(?P<passages>.*)\n-{5,}[ \t]*$",
    r"<(?P<tag>context|documents|passages)>\s*(?P<passages>.*)</(?P=tag)>",
    rf"(?<!.)(?P<before>(?:(?!{_QUESTION}).)*?){_LABEL}(?P<passages>.*)(?=^[ \t]*{_QUESTION})",
    rf"{_LABEL}(?P<passages>.*)(?=^[ \t]*{_ANSWER}\s*\Z)",
    rf"{_LABEL}(?P<passages>.*)\Z",
)
BARE = PromptTemplate(instruction="", intro="", passage="{text}", question="{question}", answer="")
PLAIN = PromptTemplate(instruction="", intro="Context:\n", passage="{text}\n", question="\n{question}", answer="")


class Parted(NamedTuple):
    """What `ckcontrol.generate` is asked.

    Attributes:
        messages: The conversation without passages, in the form of OpenAI's messages.
        passages: Texts or documents; none is closed book.
        template: What stands around them.
    """

    messages: list[dict[str, Any]]
    passages: list[Any]
    template: PromptTemplate


def part(messages: Sequence[Mapping[str, Any]], given: Any, context: Sequence[str]) -> Parted:
    """Return the messages of a chain without their passages, and the passages.

    Args:
        messages: As the chain wrote them, in the form of OpenAI's messages.
        given: Passages of this call; then the messages are left as they are. None looks for them: in the last user
            turn first, then in the system message, from where they move to that turn.
        context: Patterns of `re` with a group ``passages``; the first that finds something counts.
    """
    told = [dict(message) for message in messages]
    if given is not None:
        passages = passage_list("passages", given)
        return Parted(told, passages, PLAIN if passages else BARE)
    last = max((place for place, one in enumerate(told) if one.get("role") == "user"), default=None)
    systems = [place for place, one in enumerate(told) if one.get("role") in ("system", "developer")]
    for place in [*([] if last is None else [last]), *systems]:
        text = told[place].get("content")
        found = _find(text, context) if isinstance(text, str) else None
        if found is None:
            continue
        before, passages, after = found
        if place != last:
            told[place]["content"] = f"{before.rstrip()}\n\n{after.lstrip()}".strip() or "Answer from the context."
            return Parted(told, passages, PLAIN)
        if after.strip():
            told[place]["content"] = after.strip()
            opening = PromptTemplate(
                instruction=before, intro="", passage="{text}\n", question="\n{question}", answer=""
            )
            return Parted(told, passages, opening)
        told[place]["content"] = before.strip()
        return Parted(told, passages, PLAIN)
    return Parted(told, [], BARE)


def _find(text: str, context: Sequence[str]) -> tuple[str, list[str], str] | None:
    for pattern in context:
        found = re.search(pattern, text, re.DOTALL | re.MULTILINE | re.IGNORECASE)
        if found is None:
            continue
        start, end = found.span("passages")
        passages = [block.strip() for block in re.split(r"\n\s*\n", found["passages"]) if block.strip()]
        if passages and (text[:start].strip() or text[end:].strip()):
            return text[:start], passages, text[end:]
    return None
