"""No control: the model with its passages, exactly as it is (tau = 1). What every other policy is read against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..fusion.signals import Signals
from .base import Decision, Policy, ones, register

__all__ = ["Off"]


@register
@dataclass(frozen=True)
class Off(Policy):
    """Plain context decoding; token-identical to ``model.generate``."""

    name: ClassVar[str] = "off"

    @property
    def neutral(self) -> bool:
        """Always."""
        return True

    @property
    def amplifies(self) -> bool:
        """Never."""
        return False

    def decide(self, signals: Signals) -> Decision:
        """Return tau = 1."""
        tau = ones(signals.logits_ctx)
        return Decision(tau, torch.zeros_like(tau, dtype=torch.bool))
