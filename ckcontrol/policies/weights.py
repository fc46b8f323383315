"""The dial in the weights: an adapter chosen by alpha moves the model, so one stream is decoded and tau stays 1.

Nothing is fused. Which adapter stands for an alpha is the loaded dial's matter (ckcontrol/weights); that rows of one
batch take different adapters is decoding/weight_rows.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..fusion.signals import Signals
from .base import Decision, OnDial, ones, register

__all__ = ["Weights"]


@register
@dataclass(frozen=True)
class Weights(OnDial):
    """The adapter nearest to alpha, of the dial that was loaded onto the model; 0.5 is the model without any."""

    name: ClassVar[str] = "weights"
    in_weights: ClassVar[bool] = True
    neutral = True
    amplifies = False

    def decide(self, signals: Signals) -> Decision:
        """Return tau = 1."""
        tau = ones(signals.logits_ctx)
        return Decision(tau, tau != 1)
