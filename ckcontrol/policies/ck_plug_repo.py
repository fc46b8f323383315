"""CK-PLUG as its released code computes it (byronBBL/CK-PLUG at 4af30ea), for reproduction; prefer ``ck-plug``.

What differs from the paper and from ``ck-plug``:
  1. every step is cut to the union of both shortlists, gated or not, so "off" is not off under sampling;
  2. entropies are of the cut, renormalised distributions, with 1e-9 inside the logarithm;
  3. the gate is H_par < gate * H_ctx with gate = 2 (the code's ``e = -1.0``);
  4. the blend keeps its outer factor: s = alpha, a temperature of 1/alpha (2 at alpha = 0.5). Greedily that changes
     nothing;
  5. adaptive carries s = 2 H_ctx / (H_ctx + H_par * nf), nf = 1 + |H_ctx - H_par| / (H_ctx + H_par).
Written from the published description; no line of that repository is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..fusion.signals import Signals
from .base import TAU_MAX, Decision, ones, register, tau_from_alpha
from .ck_plug import CKPlug

__all__ = ["CKPlugRepo"]


def _cut_entropy(logits: Tensor, shortlisted: Tensor) -> Tensor:
    """Entropy in nats of the distribution renormalised over the shortlist, with the code's 1e-9, [B]."""
    p = logits.masked_fill(~shortlisted, -math.inf).softmax(-1)
    return -(p * (p + 1e-9).log()).sum(-1)


@register
@dataclass(frozen=True)
class CKPlugRepo(CKPlug):
    """The released arithmetic. ``alpha = 0.5`` keeps plain RAG's greedy tokens but samples at temperature 2.

    Attributes:
        alpha: As in ``ck-plug``.
        gate: kappa = 1 - e of the code; 2 as released, 4 as in the first upload.
        adaptive: The code's adaptive mixture instead of alpha.
    """

    name: ClassVar[str] = "ck-plug-repo"
    gate: float = 2.0
    neutral = False  # every step is cut to the shortlist, so
    amplifies = True  # the shortlist is needed at every step

    def decide(self, signals: Signals) -> Decision:
        """Cut, gate on the cut entropies, blend with the coupled temperature."""
        h_ctx = _cut_entropy(signals.logits_ctx, signals.shortlisted)
        h_par = _cut_entropy(signals.logits_par, signals.shortlisted)
        switched = h_par < self.gate * h_ctx
        one = ones(h_ctx)
        if self.adaptive:
            total = (h_ctx + h_par).clamp_min(1e-12)
            nf = 1 + (h_ctx - h_par).abs() / total
            tau = (h_par / h_ctx.clamp_min(1e-12)).clamp(0.0, TAU_MAX)
            scale = 2 * h_ctx / (h_ctx + h_par * nf).clamp_min(1e-12)
        else:
            tau = one * tau_from_alpha(self.position)
            scale = one * max(self.position, 1 / (1 + TAU_MAX))
        return Decision(
            tau=torch.where(switched, tau, one),
            switched=switched,
            scale=torch.where(switched, scale, one),
            truncate=torch.ones_like(switched),
        )
