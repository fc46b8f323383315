"""ARR (Jiang et al., arXiv 2606.10298): amplify the surer stream by the divergence of the two.

J = JSD / ln 2 in [0, 1];  tau = 1 + J if max p_ctx > max p_par, else 1 - J. Moves either way by itself, no knob.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..fusion.signals import Signals
from .base import Decision, Policy, register

__all__ = ["ARR"]


@register
@dataclass(frozen=True)
class ARR(Policy):
    """Divergence-weighted move toward the more confident stream; no parameters."""

    name: ClassVar[str] = "arr"

    def decide(self, signals: Signals) -> Decision:
        """Compare the two peaks, then move by J."""
        j = signals.jsd / math.log(2)
        surer = signals.peak_ctx > signals.peak_par
        tau = torch.where(surer, 1 + j, 1 - j).clamp_min(0.0)
        return Decision(tau, tau != 1)
