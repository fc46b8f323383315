"""What a view needs of the records it draws, as protocols: whatever has these fields can be shown.

Knows names and types; knows no class that has them. `ckcontrol.Answer` has all of an `AnswerShape`, a sample of an
evaluation has what `RunningText` asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

__all__ = [
    "AnswerShape",
    "ControlShape",
    "DraftShape",
    "HitShape",
    "MarkedToken",
    "PassageShape",
    "PolicyShape",
    "RunningText",
    "SentenceShape",
    "SourceShape",
    "TokenShape",
]


class MarkedToken(Protocol):
    """A token in running text, and what its colour and its mark say."""

    @property
    def text(self) -> str:
        """The text it added to the answer."""

    @property
    def gain(self) -> float | None:
        """Confidence gain, in nats; None where it was not traced."""

    @property
    def tau(self) -> float:
        """Exponent of the contextual stream."""

    @property
    def switched(self) -> bool:
        """The policy acted on it."""


class TokenShape(MarkedToken, Protocol):
    """A token with every figure of a table row; None where a figure was not recorded."""

    @property
    def h_par(self) -> float | None:
        """Entropy without the passages, in nats."""

    @property
    def h_ctx(self) -> float | None:
        """Entropy with the passages, in nats."""

    @property
    def rank_par(self) -> int | None:
        """Rank in the parametric distribution, from 0."""

    @property
    def rank_ctx(self) -> int | None:
        """Rank in the contextual distribution, from 0."""

    @property
    def logp_par(self) -> float | None:
        """Log-probability in the parametric distribution."""

    @property
    def logp_ctx(self) -> float | None:
        """Log-probability in the contextual distribution."""

    @property
    def logp_final(self) -> float | None:
        """Log-probability in the distribution it was drawn from."""


MarkedCo = TypeVar("MarkedCo", bound=MarkedToken, covariant=True)


class RunningText(Protocol[MarkedCo]):
    """An answer as its tokens, in order."""

    @property
    def text(self) -> str:
        """The whole text, special tokens removed."""

    @property
    def tokens(self) -> Sequence[MarkedCo]:
        """One record per token, the end token included."""

    @property
    def finish_reason(self) -> str:
        """``"stop"`` where an end token closes it."""


class DraftShape(Protocol):
    """One of the whole answers that a method chose from."""

    @property
    def name(self) -> str:
        """Who wrote it."""

    @property
    def text(self) -> str:
        """What it says."""

    @property
    def given(self) -> bool:
        """It became the answer."""

    @property
    def surprise_par(self) -> float:
        """How it surprised the parametric stream, in nats."""

    @property
    def surprise_ctx(self) -> float:
        """How it surprised the contextual stream, in nats."""

    @property
    def evidence(self) -> float | None:
        """What is found for it against the first one; None where there is no such number."""

    @property
    def idle(self) -> bool:
        """It says nothing that counts."""

    @property
    def segment(self) -> int:
        """Which segment of the answer it is a draft of, from 0."""

    @property
    def stopped(self) -> bool:
        """It was not written to its end."""


class SourceShape(Protocol):
    """What one source says of an answer."""

    @property
    def name(self) -> str:
        """Memory, a passage or all of them."""

    @property
    def stance(self) -> str:
        """Whether its own answer supports, contradicts or, silent, does not count beside the one given."""

    @property
    def text(self) -> str:
        """What it answers by itself."""

    @property
    def surprise(self) -> float | None:
        """How the answer given surprised it, in nats; None where tokens were fused."""

    @property
    def surprise_own(self) -> float | None:
        """How its own did."""


class PolicyShape(Protocol):
    """What chooses tau."""

    @property
    def neutral(self) -> bool:
        """It never changes anything."""


class ControlShape(Protocol):
    """How an answer was steered."""

    @property
    def method(self) -> str:
        """The policy's name."""

    def to_dict(self) -> dict[str, Any]:
        """Return what was set."""

    def policy(self) -> PolicyShape:
        """Return the policy."""


class AnswerShape(RunningText[TokenShape], Protocol):
    """An answer with the reasons for it."""

    @property
    def question(self) -> str:
        """As asked."""

    @property
    def passages(self) -> Sequence[str]:
        """What the contextual prompt held."""

    @property
    def control(self) -> ControlShape:
        """How it was steered."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The generated ids."""

    @property
    def drafts(self) -> Sequence[DraftShape]:
        """What it was chosen from; else empty."""

    @property
    def sources(self) -> Sequence[SourceShape]:
        """What each source says of it; else empty."""

    @property
    def disputed(self) -> bool:
        """Sources that bear on the question give several answers."""

    @property
    def switched(self) -> int:
        """Tokens on which the policy acted."""

    def summary(self) -> Mapping[str, float | int | str | None]:
        """Return counts and shares over the answer."""


class SentenceShape(Protocol):
    """A sentence of an answer."""

    @property
    def text(self) -> str:
        """What it says."""

    @property
    def passages(self) -> Sequence[int]:
        """Places of the passages that support it; none is memory."""


class PassageShape(Protocol):
    """A passage and where it comes from."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def text(self) -> str:
        """Its text."""

    @property
    def source(self) -> str:
        """The file or name it is from."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What else is known of it."""


class HitShape(Protocol):
    """A passage that a search found."""

    @property
    def rank(self) -> int:
        """Its place, from 1."""

    @property
    def score(self) -> float:
        """How near it is."""

    @property
    def passage(self) -> PassageShape:
        """The passage."""
