"""AdaCAD (Wang et al., arXiv 2409.07394): CAD whose strength is the divergence of the streams, tau = 1 + JSD.

JSD is in nats, as the released code computes it, so tau lies in [1, 1.693]; reimplementations that divide by ln 2
reach 2. ``warmup`` is the paper's floor for long-form answers (0.3 for summaries, 0 for questions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..arguments import check_number
from ..fusion.signals import Signals
from .base import TAU_MAX, Decision, Policy, register

__all__ = ["AdaCAD"]


@register
@dataclass(frozen=True)
class AdaCAD(Policy):
    """Amplify the context as much as the streams disagree; it never moves toward memory.

    Attributes:
        warmup: Lower bound of the strength, in nats.
    """

    name: ClassVar[str] = "adacad"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_number("warmup", self.warmup, 0.0, TAU_MAX - 1)

    def decide(self, signals: Signals) -> Decision:
        """Return tau = 1 + max(JSD, warmup)."""
        tau = 1 + signals.jsd.clamp_min(self.warmup)
        return Decision(tau, tau != 1)
