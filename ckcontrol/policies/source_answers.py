"""dial over sources: every source wrote an answer and has read every other; which answer do the sources support?

Sources:   memory, each passage (or group of passages) i, and all passages together.
Answers:   drafts that say the same are one answer g (`merged`); S_s(g) is the least surprise of source s at a draft of g.
Reading:   p_s(g) = exp(-S_s(g)) / sum over answers of exp(-S_s)          what source s makes of the answers, as shares
Bearing:   w_i = 1 where passage i bears on the question (its names stand in it) and its draft follows it (its own words
           stand there, and it is not idle); else 0: the passage is silent. The same passage twice counts once.
Support:   T(g) = sum_i w_i p_i(g)              in passages: two that say the same are two
           E(g) = T(g) + p_all(g) / 2 + p_memory(g) / 2      what reads them together, and memory, decide between equals
Choice:    y_all is the unmodified model's answer to all passages, in an order that their texts decide.
           alpha < 0.5: the g of greatest E, among those with T(g) >= T(y_all), iff
                        E(g) - E(y_all) > 2 alpha * (W + 1), W = sum_i w_i; else y_all.
           alpha > 0.5: memory's iff its evidence > -log(2 alpha - 1), as in `dial` (dial.py), where the other stream is
                        the mean over the passages that bear; else y_all.
           adaptive:    the g of greatest E, or memory's where its evidence against g is above 1.5.

alpha = 0.5 is the unmodified model with the passages as they were given, and alpha = 1 the closed book: neither is chosen
here. Everything is a sum over passages, so their order does not matter. On either side of 0.5 an answer changes once
at most, and T of the answer given never rises as alpha does. Where no passage bears, y_all stands below 0.5.

Knows what was written and how it surprised; knows no model. decoding/source_drafts.py writes and reads the drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum

from ..word_spans import wanted
from .dial import Dial
from .dial import evidence as dial_evidence
from .idle_drafts import FUNCTION_WORDS, bears, follows, sentence_end, silent

__all__ = ["CONTRADICTS", "SILENT", "SUPPORTS", "SourceDraft", "Weighed", "merged", "weigh"]

SUPPORTS, CONTRADICTS, SILENT = "supports", "contradicts", "silent"
VOICE = 0.5  # what memory, and all passages read together, count beside a passage's 1


@dataclass(frozen=True)
class SourceDraft:
    """What one source wrote, and how the drafts of all surprised it.

    Attributes:
        text: Its draft.
        surprises: `surprise` of this source at each source's draft, in their order, nats.
        own: `surprise` at the first sentence of its own draft, nats.
        passages: What it had read; empty for memory.
    """

    text: str
    surprises: Sequence[float]
    own: float
    passages: Sequence[str] = ()


@dataclass(frozen=True)
class Weighed:
    """What came of it. Sources go by their place; answers by the first source that gave them.

    Attributes:
        given: The source whose draft is given.
        answers: Of each source, which answer its draft is; None where it says nothing.
        support: E of each source's draft; a passage counts 1 at most.
        stances: Of each source, what it says of the answer given: `SUPPORTS`, `CONTRADICTS` or `SILENT`.
        evidence: Of memory's answer against the one it would replace, as in `dial`.
        disputed: A passage that bears on the question, or memory where it is given or weighed against one, says another answer
            than the one given.
    """

    given: int
    answers: Sequence[int | None]
    support: Sequence[float]
    stances: Sequence[str]
    evidence: float
    disputed: bool
