"""How a record becomes a prompt pair: styles, wordings, and the form of texts to complete.

- chat: the tokenizer's chat template around instruction, passages and question.
- completion: the same text without a template, ending in "Answer:".
- A record that is a text to complete follows its passages as it is, whatever the style.

Three wordings: "base" asks for a short answer, "context-only" and "memory-only" tell the model whom to believe (the
usual remedy by prompt). Few-shot examples are not used: whether the closed-book stream should see them is a choice that
moves results, and published protocols differ in it. Knows templates; knows no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckcontrol.decoding.prompts import PromptPair, PromptTemplate, build_pair
from ckcontrol.errors import EvalError, did_you_mean

from ..records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["STYLES", "Wording", "check_style"]

STYLES = ("auto", "chat", "completion")
_BASE = PromptTemplate().instruction
_CONTEXT_ONLY = (
    "Answer the question in a few words. Take the answer from the background alone, even where it contradicts what "
    "you know.\n\n"
)
_MEMORY_ONLY = (
    "Answer the question in a few words. Take the answer from what you know, even where the background contradicts "
    "it.\n\n"
)


def check_style(style: str) -> None:
    """Refuse a style that is none of `STYLES`.

    Raises:
        EvalError: Names it.
    """
    if style not in STYLES:
        raise EvalError(f"no prompt style {style!r}.", did_you_mean(style, STYLES))


class Wording:
    """The templates of one run.

    Args:
        style: One of `STYLES`; "auto" is chat where the tokenizer has a chat template.
        tokenizer: That of the model that answers.
        limit: Longest prompt, in tokens; None sets no limit.

    Raises:
        EvalError: Unknown style.
    """

    def __init__(self, style: str, tokenizer: PreTrainedTokenizerBase, limit: int | None = None) -> None:
        check_style(style)
        if style == "auto":
            style = "chat" if getattr(tokenizer, "chat_template", None) else "completion"
        self.style, self.tokenizer, self.limit = style, tokenizer, limit
        chat = style == "chat"
        self.templates = {
            "base": PromptTemplate(instruction=_BASE, chat=chat),
            "context-only": PromptTemplate(instruction=_CONTEXT_ONLY, chat=chat),
            "memory-only": PromptTemplate(instruction=_MEMORY_ONLY, chat=chat),
        }

    def pair(self, record: Record, prompt: str = "base") -> PromptPair:
        """Return the prompts of a record; passages that do not fit are cut from the end.

        Raises:
            PromptError: The question alone does not fit, or the text cannot be put into a prompt.
        """
        template = raw(record) if record.cloze else self.templates[prompt]
        return build_pair(
            self.tokenizer, record.question, record.passages, template=template, limit=self.limit, truncate="passages"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the templates' fields, by wording."""
        return {name: template.to_dict() for name, template in self.templates.items()}


def raw(record: Record) -> PromptTemplate:
    """Return the form of a text to complete: each passage on a line of its own, unless ``meta["join"]`` says how.

    With a join, passage and question are what the source has in one piece; the white space between them opens the
    question, so that both streams end in the same tokens.
    """
    if "join" not in record.meta:
        return PromptTemplate(
            instruction="", intro="", passage="{text}\n", question="{question}", answer="", chat=False
        )
    last = record.passages[-1] if record.passages else ""
    gap = last[len(last.rstrip()) :] + str(record.meta["join"])
    opening = gap.replace("{", "{{").replace("}", "}}")
    return PromptTemplate(
        instruction="", intro="", passage="{text}", question=opening + "{question}", answer="", chat=False, fold=False
    )
