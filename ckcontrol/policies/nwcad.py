"""NWCAD (Tao & Agrawal, arXiv 2604.16686): copy a stream where that does no harm, blend only where neither is sure.

    D = JSD(p_ctx, p_par);  margin_x = p_x(best) - p_x(second best)
    1. D <= `js` and margin_par >= `k_par`   ->  tau = 0, the parametric distribution as it is
    2. else margin_ctx >= `k_ctx`            ->  tau = 1
    3. else                                  ->  tau = `fallback`

The paper takes the divergence over the 50 likeliest tokens and falls back to CoCoA; here the divergence is over the
full vocabulary and the fallback is an even mixture. Its three thresholds, tuned on one model, could not be verified:
these are ours, so the results are those of a method in its style.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..arguments import check_number
from ..fusion.signals import Signals
from .base import Decision, Policy, ones, register

__all__ = ["NWCAD"]


@register
@dataclass(frozen=True)
class NWCAD(Policy):
    """A choice of stream in three stages.

    Attributes:
        js: Largest divergence, in nats, at which memory may be copied.
        k_par: Least margin of memory's favourite, as a probability.
        k_ctx: The same for the context's favourite.
        fallback: tau where neither is sure.
    """

    name: ClassVar[str] = "nwcad"
    js: float = 0.1
    k_par: float = 0.5
    k_ctx: float = 0.3
    fallback: float = 0.5
    amplifies = False

    def __post_init__(self) -> None:
        for name in ("js", "k_par", "k_ctx", "fallback"):
            check_number(name, getattr(self, name), 0.0, 1.0)

    def decide(self, signals: Signals) -> Decision:
        """Take the first stage that applies."""
        one = ones(signals.logits_ctx)
        memory = (signals.jsd <= self.js) & (signals.lead_par >= self.k_par)
        context = signals.lead_ctx >= self.k_ctx
        tau = torch.where(memory, 0.0, torch.where(context, one, one * self.fallback))
        return Decision(tau, tau != 1)
