"""dial: the one equation on whole answers. The streams write drafts; the one that surprises both least is given.

Drafts:    y_ctx, the unmodified model's answer; beside it
           alpha > 0.5: y_par, the answer without the passages;
           alpha < 0.5: y_amp, the answer with the context amplified (CAD, tau = 1 + `amplify`).
Surprise:  S_x(y) = sqrt(sum over tokens of (log p_x(y_t | ...))^2) in stream x, nats.
Choice:    argmin over y of  tau * S_ctx(y) + (1 - tau) * S_par(y),    tau = (1 - alpha) / alpha.
           Memory's draft is given iff, with its stake in it against the context's stake in its own,
               (1 - tau) * [S_par(y_ctx) - S_par(y_par)] > tau * [S_ctx(y_par) - S_ctx(y_ctx)];
           likewise y_amp for tau > 1. A draft that does not lean its own way is never taken, and a tie goes to y_ctx.
Adaptive:  tau = 1/2 between y_ctx and y_par: both streams count alike.

With -log p(y), the sum of surprises, in the place of their length this is the kernel's equation, unnormalised, on
whole answers. What follows from it: alpha = 0.5 is the unmodified model and alpha = 1 the closed book, bit for bit,
with a single draft each. Score differences are linear in tau, so an answer changes at most once on either side of
0.5, and S_ctx - S_par of the answer given never falls as alpha rises: the dial is monotone, question by question.
Every answer was written by one distribution from its first token to its last, so nothing breaks in the middle of a
name. The price: two answers are decoded, side by side, and nothing can be streamed before they are complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ..arguments import check_number
from .answer_policy import AnswerPolicy, Evidence, surprise
from .base import OnDial, Policy, register, tau_from_alpha
from .cad import CAD
from .off import OFF, UNMODIFIED

__all__ = ["Dial"]

_MEMORY = CAD(cad_alpha=-1.0)


@register
@dataclass(frozen=True)
class Dial(OnDial, AnswerPolicy):
    """The equation on whole answers.

    Attributes:
        alpha: 0 = context, 0.5 = the unmodified model, 1 = memory.
        amplify: CAD's alpha of the amplified draft.
        adaptive: Let both streams count alike; alpha must be left out.
    """

    name: ClassVar[str] = "dial"
    amplify: float = 0.5
    adaptive: bool = False

    def __post_init__(self) -> None:
        check_number("amplify", self.amplify, 0.01, 100.0)
        self._check_adaptive(self.adaptive)

    @property
    def tau(self) -> float:
        """Weight of the context's surprise."""
        return 0.5 if self.adaptive else tau_from_alpha(self.position)

    @property
    def neutral(self) -> bool:
        """At alpha = 0.5."""
        return self.position == 0.5 and not self.adaptive

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
        """Return the draft with the highest score."""
        if len(drafts) == 1:
            return 0
        first, other = drafts
        ctx = first.surprise_ctx - other.surprise_ctx  # how much less the other draft surprises, by stream
        par = first.surprise_par - other.surprise_par
        leans = ctx > par if self.tau > 1 else par > ctx
        return int(leans and self.tau * ctx + (1 - self.tau) * par > 0)

    def weigh(self, logp_ctx: Sequence[float], logp_par: Sequence[float]) -> float:
        """Return ``-(tau * S_ctx + (1 - tau) * S_par)``."""
        if self.tau in (0, 1):  # no product with an infinity
            return -surprise(logp_ctx if self.tau else logp_par)
        return -(self.tau * surprise(logp_ctx) + (1 - self.tau) * surprise(logp_par))
