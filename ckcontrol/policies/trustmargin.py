"""TrustMargin (Xu et al., arXiv 2606.08397): give the answer with the passages, unless memory's own wins by a margin.

y_R is the unmodified model's answer with the passages, y_D memory's without; log p is a mean over an answer's tokens.
    M_prior = log p(y_R | q) - log p(y_D | q)                                 what memory makes of both answers
    M_bind  = [log p(y_R | q, P) - log p(y_R | P)] - [log p(y_D | q, P) - log p(y_D | P)]
    y_R iff M_prior + lambda_bind * M_bind > margin,  else y_D.
p(. | P) reads the answers after the passages with the question removed: what the passages make likely by themselves.
So M_bind is what an answer gains from the question over the passages alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ..arguments import check_number
from ..errors import UnsupportedMode
from .answer_policy import AnswerPolicy, Evidence
from .base import Policy, register
from .cad import CAD
from .off import UNMODIFIED

__all__ = ["TrustMargin"]

_LEAST = -1e6  # nats; an impossible token must not make a difference of two infinities


@register
@dataclass(frozen=True)
class TrustMargin(AnswerPolicy):
    """A margin between two finished answers.

    Attributes:
        lambda_bind: Weight of the binding.
        margin: The paper's tau, in nats per token: how far memory's answer must be ahead to be given, negative.
    """

    name: ClassVar[str] = "trustmargin"
    alone: ClassVar[bool] = True
    lambda_bind: float = 0.5
    margin: float = -1.5

    def __post_init__(self) -> None:
        check_number("lambda_bind", self.lambda_bind, 0.0, 100.0)
        check_number("margin", self.margin, -100.0, 100.0)

    @cached_property
    def drafts(self) -> Mapping[str, Policy]:
        """The unmodified model, and memory alone."""
        return {"unmodified": UNMODIFIED, "memory": CAD(cad_alpha=-1.0)}

    def choose(self, drafts: Sequence[Evidence]) -> int:
        """Return 0, the answer with the passages, where M is above the margin.

        Raises:
            UnsupportedMode: The drafts were not read after the passages alone.
        """
        return int(not self._m(drafts) > self.margin)

    def weighed(self, drafts: Sequence[Evidence]) -> Sequence[float | None]:
        """Return -M for memory's draft, nats per token: it is given where this is at least ``-margin``."""
        return [None, -self._m(drafts)]

    def weigh(self, logp_ctx: Sequence[float], logp_par: Sequence[float]) -> float:
        """Return an ending's share of M, without p(. | P): endings that are given are not read after passages alone."""
        return _mean(logp_par) + self.lambda_bind * _mean(logp_ctx)

    def _m(self, drafts: Sequence[Evidence]) -> float:
        rag, direct = drafts
        if rag.logp_alone is None or direct.logp_alone is None:
            raise UnsupportedMode(
                "method 'trustmargin' reads drafts after the passages alone, which was not done here.",
                "Use ckcontrol.generate.",
            )
        prior = _mean(rag.logp_par) - _mean(direct.logp_par)
        bind = _mean(rag.logp_ctx) - _mean(rag.logp_alone) - (_mean(direct.logp_ctx) - _mean(direct.logp_alone))
        return prior + self.lambda_bind * bind


def _mean(logp: Sequence[float]) -> float:
    return math.fsum(max(value, _LEAST) for value in logp) / max(len(logp), 1)
