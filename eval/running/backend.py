"""What answers questions for an evaluation: `Ask` in, `Reply` out, over any engine behind the `Backend` protocol.

Plain records; knows no engine, no model and no data set. A failed item is a `Reply` that says why, so that one bad
question, or one bad minute of a server, never costs the answers already paid for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ckcontrol.control import Control
from ckcontrol.errors import PromptError

if TYPE_CHECKING:
    from ckcontrol.decoding.prompts import PromptTemplate

__all__ = ["Ask", "Backend", "Reply"]


@dataclass(frozen=True)
class Ask:
    """One question as an engine gets it.

    Attributes:
        question: The question, or the text to complete; the engine puts it into the prompt.
        passages: May be empty: closed book.
        control: Policy and dial; ``Control()`` is the unmodified model.
        max_new_tokens: Longest answer, in tokens.
        template: Wording of the prompts; None is the engine's default, `PromptTemplate()`.

    Raises:
        PromptError: `passages` is one string.
    """

    question: str
    passages: tuple[str, ...] = ()
    control: Control = field(default_factory=Control)
    max_new_tokens: int = 64
    template: PromptTemplate | None = None

    def __post_init__(self) -> None:
        if isinstance(self.passages, str):
            raise PromptError("passages is one string.", "Pass a list: passages=[text].")
        object.__setattr__(self, "passages", tuple(self.passages))


@dataclass(frozen=True)
class Reply:
    """One answer, or the reason why there is none.

    Attributes:
        text: The answer, stripped; empty when `error` is set.
        finish: ``"stop"`` or ``"length"``; empty when `error` is set.
        tokens: Tokens generated, the end token included; None where the engine does not say.
        error: What went wrong, for people to read; None when nothing did. Such a reply is counted, never averaged.
    """

    text: str = ""
    finish: str = ""
    tokens: int | None = None
    error: str | None = None


class Backend(Protocol):
    """An engine: a local model, or a server."""

    def answer(self, requests: Sequence[Ask]) -> list[Reply]:
        """Return one reply per request, in order. Failures of single items are replies, not exceptions."""
