"""CAD, context-aware decoding (Shi et al., arXiv 2305.14739): log q = (1 + cad_alpha) log p_ctx - cad_alpha log p_par.

That is tau = 1 + cad_alpha at every step, with no gate. alpha maps by ``cad_alpha = 1/alpha - 2`` (alpha 1/3 = CAD 1,
0.4 = CAD 0.5, 0.5 = off), and beyond 0.5 continues as the interpolation tau = (1 - alpha)/alpha down to memory.
Published CAD has no shortlist: ``candidate_ratio=0`` reproduces it, and equals transformers' ``guidance_scale = tau``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..arguments import check_number
from ..errors import ControlError
from ..fusion.signals import Signals
from .base import TAU_MAX, Decision, OnDial, ones, register, tau_from_alpha

__all__ = ["CAD"]


@register
@dataclass(frozen=True)
class CAD(OnDial):
    """A constant tau.

    Attributes:
        alpha: 0 is the pure contrast, which CAD reaches only in the limit (tau capped at 1e4), 1 is memory.
        cad_alpha: The paper's own parameter, tau = 1 + cad_alpha; -1 is memory, 0 is off. Give this or alpha.
    """

    name: ClassVar[str] = "cad"
    cad_alpha: float | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and self.cad_alpha is not None:
            raise ControlError(
                f"alpha={self.alpha!r} and cad_alpha={self.cad_alpha!r} set the same thing.", "Drop one."
            )
        if self.cad_alpha is not None:
            check_number("cad_alpha", self.cad_alpha, -1.0, TAU_MAX - 1)

    @property
    def tau(self) -> float:
        """The constant exponent."""
        if self.cad_alpha is not None:
            return 1 + self.cad_alpha
        return tau_from_alpha(self.position)

    @property
    def neutral(self) -> bool:
        """At alpha = 0.5, cad_alpha = 0."""
        return self.tau == 1

    @property
    def amplifies(self) -> bool:
        """Below alpha = 0.5."""
        return self.tau > 1

    def decide(self, signals: Signals) -> Decision:
        """Return the same tau for every row."""
        tau = ones(signals.logits_ctx) * self.tau
        return Decision(tau, torch.full_like(tau, self.tau != 1, dtype=torch.bool))
