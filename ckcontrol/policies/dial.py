"""dial: choose between whole answers. Both sides write a draft, both streams read both, and the evidence decides.

Drafts:    y_ctx, the unmodified model's answer; beside it
           alpha > 0.5: y_par, the answer without the passages;
           alpha < 0.5: y_amp, the answer with the context amplified (CAD, tau = 1 + `amplify`).
Surprise:  S_x(y) = sqrt(sum over tokens of (log p_x(y_t | ...))^2) in stream x, nats.
Evidence:  of stream m for its draft y against y_ctx, o the other stream:
               gain = S_m(y_ctx) - S_m(y)       how much rather m would say y
               cost = S_o(y) - S_o(y_ctx)       how much o minds
               own  = S_m(first sentence of y)   how sure m is of what it says
               E = sqrt(gain / cost) / own      of memory
               E = gain / (cost * own)          of the context; cost and own at least 0.05 in both
Choice:    y_par iff E of memory     > -log(2 * alpha - 1)          for alpha > 0.5;
           y_amp iff E of the context > 1/2 - log(1 - 2 * alpha)    for alpha < 0.5,
           where the context's gain is what memory minds, S_par(y_amp) - S_par(y_ctx), and its cost what it loses
           itself, S_ctx(y_amp) - S_ctx(y_ctx): an amplified draft is never the context's own favourite.
Adaptive:  E of memory > 2.

`gain` alone measures how rare the passage's name is; what tells knowledge from fluency is a stream's surprise at its
own words: those of the first sentence, in which the answer stands; what a model rambles after it says nothing of it.
Under the root memory's own counts twice (E^2 = gain / (cost * own^2)): a plain answer that restates a passage is long,
which raises the gain and says nothing of what memory knows. A draft that says nothing (idle_drafts.py: it names nothing
where y_ctx does, follows what is beside the point, or amplifies what y_ctx has followed already) is never taken, nor
one that does not lean its own way, and a tie goes to y_ctx. At alpha = 0 the context still needs evidence of 1/2:
amplified drafts with less are mostly broken. On mixed questions E falls off about exponentially, so equal steps of
alpha send equal shares of the answers to memory.

What follows: alpha = 0.5 is the unmodified model and alpha = 1 the closed book, bit for bit, with a single draft each.
E does not depend on alpha, so an answer changes at most once on either side of 0.5, and S_ctx - S_par of the answer
given never falls as alpha rises: the dial is monotone, question by question. Every answer was written by one
distribution from its first token to its last, so nothing breaks in the middle of a name. The price: two answers are
decoded, side by side, and none is streamed before both are complete.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ..arguments import check_number
from ..errors import ControlError
from .answer_policy import STAND_IN_TAU, AnswerPolicy, Evidence, surprise
from .base import OnDial, Policy, register, tau_from_alpha
from .cad import CAD
from .ck_plug import CKPlug
from .off import OFF, UNMODIFIED

__all__ = ["Dial", "evidence"]

ADAPTIVE = 2.0
LEAST = 0.05  # nats of cost and own, below which they are noise
_MEMORY = CAD(cad_alpha=-1.0)


@register
@dataclass(frozen=True)
class Dial(OnDial, AnswerPolicy):
    """Whole answers, weighed.

    Attributes:
        alpha: 0 = context, 0.5 = the unmodified model, 1 = memory.
        amplify: CAD's alpha of the amplified draft.
        adaptive: Give memory's answer where it is known rather than fluent; alpha must be left out.
        segments: Choose at the end of each sentence, and go on from what was chosen, instead of once. An answer whose
            drafts have one sentence is the same either way.
    """

    name: ClassVar[str] = "dial"
    amplify: float = 0.5
    adaptive: bool = False
    segments: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.segments, bool):
            raise ControlError(f"segments={self.segments!r} is not True or False.")
        check_number("amplify", self.amplify, 0.01, 100.0)
        self._check_adaptive(self.adaptive)

    @property
    def neutral(self) -> bool:
        """At alpha = 0.5."""
        return self.position == 0.5 and not self.adaptive

    @property
    def segmented(self) -> bool:
        """Whether it chooses at every sentence; with a single draft there is nothing to choose."""
        return self.segments and len(self.drafts) > 1

    @cached_property
    def drafts(self) -> Mapping[str, Policy]:
        """The unmodified model, and the side that alpha leans to; memory alone at alpha = 1."""
        if self.neutral:
            return {"unmodified": OFF}
        if self.position == 1:
            return {"memory": _MEMORY}
        if self.adaptive or self.position > 0.5:
            return {"unmodified": UNMODIFIED, "memory": _MEMORY}
        return {"unmodified": UNMODIFIED, "context": CAD(cad_alpha=self.amplify)}

    def choose(self, drafts: Sequence[Evidence]) -> int:
        """Return the draft that the evidence is enough for."""
        return int(len(drafts) > 1 and drafts[1].whole and self.takes(self.weighed(drafts)[-1], drafts[1].idle))

    def hopeless(self, drafts: Sequence[Evidence]) -> Collection[int]:
        """Return the other draft, once it is idle for certain or memory's E has fallen too low.

        Beside a plain draft that is whole, memory's gain can only fall as its own goes on, its cost and own only rise,
        and so do their rounded values: E of what there is bounds E in the end. The context's gain may rise again.
        """
        plain, other = drafts
        if other.whole or other.idle:
            return () if other.whole else (1,)
        if not plain.whole or "memory" not in self.drafts:
            return ()
        return () if self.takes(self._found(*_more(plain, other), other), False) else (1,)

    def takes(self, found: float | None, idle: bool) -> bool:
        """Whether the other draft is given, for its evidence E: never at alpha 0.5, always at 1.

        E does not depend on alpha, so one pair of drafts answers for every alpha on its side of 0.5.
        """
        if self.neutral or (self.position == 1 and not self.adaptive):
            return not self.neutral
        return found is not None and not idle and found > self._threshold

    def weighed(self, drafts: Sequence[Evidence]) -> Sequence[float | None]:
        """Return E of the other draft; 0 where it does not lean its own way."""
        if len(drafts) == 1:
            return [None]
        plain, other = drafts
        ctx, par = _more(plain, other)
        leans = ctx > par if "memory" in self.drafts else par > ctx
        return [None, self._found(ctx, par, other) if leans else 0.0]

    def _found(self, ctx: float, par: float, other: Evidence) -> float:
        """Return E of the other draft from `_more`, whichever way it leans."""
        if "memory" in self.drafts:
            return evidence(-par, ctx, other.own_par)
        return par / (max(ctx, LEAST) * max(other.own_ctx, LEAST))

    @property
    def stand_in(self) -> Policy:
        """ck-plug at the same alpha, its tau at most `STAND_IN_TAU`."""
        if self.adaptive:
            return CKPlug(adaptive=True)
        return CKPlug(max(self.position, 1 / (1 + STAND_IN_TAU)))

    @property
    def _threshold(self) -> float:
        if self.adaptive:
            return ADAPTIVE
        weight = math.log(abs(2 * self.position - 1))
        return -weight if self.position > 0.5 else 0.5 - weight

    @property
    def tau(self) -> float:
        """Weight of the context's surprise at given endings."""
        return ADAPTIVE / (1 + ADAPTIVE) if self.adaptive else tau_from_alpha(self.position)

    def weigh(self, logp_ctx: Sequence[float], logp_par: Sequence[float]) -> float:
        """Return ``-(tau * S_ctx + (1 - tau) * S_par)``: of given endings neither stream's own draft is known."""
        if self.tau in (0, 1):  # no product with an infinity
            return -surprise(logp_ctx if self.tau else logp_par)
        return -(self.tau * surprise(logp_ctx) + (1 - self.tau) * surprise(logp_par))


def _more(plain: Evidence, other: Evidence) -> tuple[float, float]:
    """Return how much more the other draft surprises the contextual and the parametric stream."""
    return other.surprise_ctx - plain.surprise_ctx, other.surprise_par - plain.surprise_par


def evidence(gain: float, cost: float, own: float) -> float:
    """Return E of memory from three differences in nats; not above 0 where it would not rather say its draft."""
    return math.copysign(math.sqrt(abs(gain) / max(cost, LEAST)) / max(own, LEAST), gain)
