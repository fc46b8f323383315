"""One question on its way to an answer: what it was asked with, what its rows have become, and who is told.

Knows prompts, controls and rows of a running batch; who decodes them is the batcher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..answer import Answer, Draft, SourceTold
from ..control import Control
from ..decoding.drafts import Drafts
from ..decoding.options import GenerateOptions
from ..decoding.prompts import PromptPair
from ..decoding.recorder import Recorder, Scored
from ..decoding.running import Row
from ..decoding.sourced import Asked
from ..decoding.token_texts import StopTexts
from ..heads.mask import HeadMask
from ..policies.off import OFF
from .replies import Refusal

__all__ = ["End", "Job"]


@dataclass(frozen=True)
class End:
    """An answer has ended.

    Attributes:
        reason: ``stop`` or ``length``.
        rows: What was recorded per token, see `Recorder.rows`; empty if nothing was.
        drafts: Of the answer, without their texts.
        sources: What each says of the answer, where sources were asked for.
        disputed: As in `Answer`.
    """

    reason: str
    rows: Sequence[Sequence[float]] = ()
    drafts: Sequence[Draft] = ()
    sources: Sequence[SourceTold] = ()
    disputed: bool = False


@dataclass(eq=False)
class Job:
    """One question, on its way to an answer.

    Attributes:
        pair: Its prompts.
        control: Its control.
        options: How its tokens are drawn; with a seed where it samples.
        structured: What `structure_of` takes beside the model: ``json_schema``, ``grammar`` or ``regex``.
        mask: Of heads, for both streams; None changes nothing.
        direction: Alpha of the server's direction; None changes nothing.
        sources: Prompts of the sources that weigh the answer; None: it is weighed by its pair alone.
        favourites: Tokens to keep of each step, the likeliest, in `scored`; None keeps nothing there.
        tell: Called in the batcher's thread with each token id, at last with an `End` or an error.
        left: Set, by any thread, when nobody wants the answer any more.
        over: It has ended; `answered` if with an answer.
        counts: Of the batcher that took it, which hold it once it is `counted`.
        ids: What was generated.
        scored: Of each of them, before it is told: see `Recorder.scored`.
    """

    pair: PromptPair
    control: Control
    options: GenerateOptions
    structured: Mapping[str, Any] = field(default_factory=dict)
    mask: HeadMask | None = None
    direction: float | None = None
    favourites: int | None = None
    sources: Asked | None = None
    tell: Callable[[int | End | Exception], None] = print
    left: bool = False
    over: bool = False
    answered: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    counted: bool = False
    ids: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)

    def __post_init__(self) -> None:
        steered = self.pair.contextual != self.pair.parametric
        drafts = Drafts([self.control.policy() if steered else OFF])
        self.several = drafts.several
        neutral = drafts.policy.neutral
        # which streams run, whether in one forward, and what changes the model
        self.kind = (neutral, self.options.trace or not neutral, self.mask, self.direction)
        self.alone = False  # decoded once more, after a batch has failed
        self.rows: list[Row] = []
        self.plain: Answer | None = None  # of the pair, which its sources then read
        self.first: End | None = None  # likewise
        self.stop: StopTexts | None = None
        self._told: list[int] = []

    @property
    def dead(self) -> bool:
        """Whether no more tokens are to be computed: it has ended, or nobody waits for it."""
        return self.over or self.left

    @property
    def weighs(self) -> bool:
        """Whether its sources write, read and weigh whole answers next; those of one draft are a pair's before."""
        several = self.sources is not None and self.sources.prompts.several
        return several and (self.several or self.plain is not None)

    def take(self, tokens: Sequence[int], recorder: Recorder | None) -> None:
        """Take the next of these tokens. When they are decoded again, those that were told already only have to agree.

        Args:
            tokens: Of the answer so far.
            recorder: Of its row.
        """
        place = len(self.ids)
        token = tokens[place]
        self.ids.append(token)
        if place >= len(self._told):
            self._told.append(token)
            if self.favourites is not None and recorder is not None:
                self.scored.append(recorder.scored(place))
            self.tell(token)
        elif self._told[place] != token:
            self.fail(Refusal(503, "the answer was interrupted and came out differently.", "Try again."))

    def finish(self, end: End) -> None:
        """End with an answer, unless it has ended."""
        if not self.over:
            self.over = self.answered = True
            self.count()
            self.tell(end)

    def fail(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if not self.over:
            self.over = True
            self.count()
            self.tell(error)

    def count(self) -> None:
        """Enter it into the figures, once: before it is told, so that who reads them after an answer finds it there."""
        if not self.counted:
            self.counted = True
            self.counts["tokens"] += len(self.ids)
            self.counts["answers" if self.answered else "failures" if self.over else "left"] += 1
