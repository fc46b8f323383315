"""GRD (code of Jiang et al., arXiv 2606.10298): decide whom to trust where the streams first disagree, once.

Up to the first token on which the favourites differ, emit it. There:
    trust memory iff  p_par(best) > 0.5  and  H_par < H_ctx,  else the context   (`gate_mode`: both, or one of them).
Context trusted: its favourite at every token, which is plain greedy decoding. Memory trusted: wherever the favourites
a_c and a_p differ, with m_c = log p_ctx(a_c) - log p_ctx(a_p) and m_p = log p_par(a_p) - log p_par(a_c),
    tau = (1 - `relax`) * m_p / (m_c + m_p):  the exponent at which the two would tie, moved towards memory.

The paper's first version has another method, ARR (arr.py), which the code dropped for this one on 2026-07-29. GRD is
greedy; under sampling the same distributions are drawn from. Both continuations are drafts here, and the gate chooses
one afterwards: the same answer as deciding on the way, for greedy decoding.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from ..arguments import check_number
from ..errors import ControlError, did_you_mean
from ..fusion.signals import Signals
from .answer_policy import AnswerPolicy, Evidence
from .base import Decision, Policy, register
from .off import UNMODIFIED

__all__ = ["GRD"]

_MODES = ("full", "conf_only", "ent_only")


@dataclass(frozen=True)
class _Memory(Policy):
    """Past the tie on memory's side, wherever the favourites differ. Not registered: a draft of `GRD`."""

    name: ClassVar[str] = "grd-memory"
    relax: float = 0.75
    amplifies = False

    def decide(self, signals: Signals) -> Decision:
        apart = signals.margin_ctx + signals.margin_par
        tie = torch.where(apart > 1e-9, signals.margin_par / apart, 1.0)  # both indifferent: the middle of nothing is 1
        return Decision(torch.where(signals.disagree, (1 - self.relax) * tie, 1.0), signals.disagree)


@register
@dataclass(frozen=True)
class GRD(AnswerPolicy):
    """A gate at the first conflict.

    Attributes:
        relax: The paper's lambda: how far past the tie memory is taken.
        sure: Least probability of memory's favourite.
        gate_mode: What must speak for memory: ``"full"``, or ``"conf_only"`` (its favourite is likely) or
            ``"ent_only"`` (its entropy is the lower one) alone.
    """

    name: ClassVar[str] = "grd"
    relax: float = 0.75
    sure: float = 0.5
    gate_mode: str = "full"

    def __post_init__(self) -> None:
        if self.gate_mode not in _MODES:
            raise ControlError(f"gate_mode={self.gate_mode!r:.40}.", did_you_mean(str(self.gate_mode)[:40], _MODES))
        check_number("relax", self.relax, 0.0, 1.0)
        check_number("sure", self.sure, 0.0, 1.0)

    @cached_property
    def drafts(self) -> Mapping[str, Policy]:
        """The unmodified model, and memory past the tie."""
        return {"unmodified": UNMODIFIED, "memory": _Memory(self.relax)}

    def choose(self, drafts: Sequence[Evidence]) -> int:
        """Gate on the first token of the unmodified answer that is not memory's favourite."""
        return self._gate(drafts[0]) or 0

    def hopeless(self, drafts: Sequence[Evidence]) -> Collection[int]:
        """Return the draft that is not given, from the first disagreement on."""
        given = self._gate(drafts[0])
        return () if given is None or drafts[1 - given].whole else (1 - given,)

    def _gate(self, first: Evidence) -> int | None:
        """Return which draft is given; None as long as memory's favourites are those of the unmodified answer."""
        for rank, best, h_par, h_ctx in zip(first.rank_par, first.best_par, first.h_par, first.h_ctx, strict=True):
            if rank != 0:
                confident = self.gate_mode == "ent_only" or math.exp(best) > self.sure
                return int(confident and (self.gate_mode == "conf_only" or h_par < h_ctx))
        return None

    def weigh(self, logp_ctx: Sequence[float], logp_par: Sequence[float]) -> float:
        """Return ``log p_ctx``, the unmodified model's: a given ending has no first conflict to decide at."""
        return math.fsum(logp_ctx)
