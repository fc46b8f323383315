"""ACD, adaptive contrastive decoding (Kim et al., 2024): interpolate by the share of uncertainty that memory holds.

tau = H_par / (H_par + H_ctx), always in [0, 1]: it can only move toward memory, most where the passages leave the
model unsure. Built for noisy passages. Where both entropies are 0 the context is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..fusion.signals import Signals
from .base import Decision, Policy, register

__all__ = ["ACD"]


@register
@dataclass(frozen=True)
class ACD(Policy):
    """Entropy-weighted interpolation; no parameters."""

    name: ClassVar[str] = "acd"
    amplifies = False

    def decide(self, signals: Signals) -> Decision:
        """Return tau = H_par / (H_par + H_ctx)."""
        total = signals.h_par + signals.h_ctx
        tau = torch.where(total > 1e-9, signals.h_par / total.clamp_min(1e-9), 1.0).clamp(0.0, 1.0)
        return Decision(tau, tau != 1)
