"""No control: the model with its passages, exactly as it is (tau = 1). What every other policy is read against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..fusion.signals import Signals
from .base import Decision, Policy, ones, register

__all__ = ["OFF", "UNMODIFIED", "Off", "Unmodified"]


@register
@dataclass(frozen=True)
class Off(Policy):
    """Plain context decoding; token-identical to ``model.generate``."""

    name: ClassVar[str] = "off"
    neutral = True
    amplifies = False

    def decide(self, signals: Signals) -> Decision:
        """Return tau = 1."""
        tau = ones(signals.logits_ctx)
        return Decision(tau, tau != 1)


@dataclass(frozen=True)
class Unmodified(Off):
    """`Off` as a draft: ids that the tokenizer does not know are masked, as in the drafts beside it. Not registered."""

    name: ClassVar[str] = "unmodified"
    neutral = False


OFF, UNMODIFIED = Off(), Unmodified()
