"""CK-PLUG (Bi et al., arXiv 2503.15888): re-weight the streams only where the passages lower the model's confidence.

Gate (Eq. 7):     switch iff  CG = H_par - H_ctx < 0, here generalised to  H_par < gate * H_ctx  (gate = 1).
                  The released code tests H_par < 2 * H_ctx (Llama-3, Mistral), 3 (Llama-2), 4 (Qwen): ``gate=2``...
                  The paper's Eq. 11 prints the sign of that constant wrongly and could never fire.
Blend (Eq. 8):    F = alpha * log p_par + (1 - alpha) * (log p_ctx - log p_par)
                    = alpha * [tau * log p_ctx + (1 - tau) * log p_par],   tau = (1 - alpha) / alpha.
Adaptive (Eq. 10): alpha = H_ctx / (H_par + H_ctx), that is tau = H_par / H_ctx.

Two deliberate differences from the paper: entropies are over the full vocabulary, and the outer factor alpha (a
temperature of 1/alpha in disguise) is dropped, so that alpha = 0.5 is the unmodified model under sampling too.
``ck-plug-repo`` keeps both as released. Where the gate stays closed the contextual distribution is untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..arguments import check_number
from ..fusion.signals import Signals
from .base import TAU_MAX, Decision, OnDial, ones, register, tau_from_alpha

__all__ = ["CKPlug"]


@register
@dataclass(frozen=True)
class CKPlug(OnDial):
    """The published gate and blend, at temperature 1.

    Attributes:
        alpha: 0 = context (the pure contrast, tau capped at 1e4), 0.5 = the unmodified model, 1 = memory.
        gate: kappa; a token is re-weighted iff ``H_par < gate * H_ctx``. ``inf`` is not needed: use ``cad``.
        adaptive: Ignore alpha and set ``tau = H_par / H_ctx`` where the gate opens.
    """

    name: ClassVar[str] = "ck-plug"
    gate: float = 1.0
    adaptive: bool = False

    def __post_init__(self) -> None:
        check_number("gate", self.gate, 0.0, 1e6)
        self._check_adaptive(self.adaptive)

    @property
    def neutral(self) -> bool:
        """At alpha = 0.5."""
        return self.position == 0.5 and not self.adaptive

    @property
    def amplifies(self) -> bool:
        """Below alpha = 0.5; adaptively when the gate admits H_par > H_ctx."""
        return self.gate > 1 if self.adaptive else self.position < 0.5

    def decide(self, signals: Signals) -> Decision:
        """Gate on the entropies, then set tau."""
        switched = signals.h_par < self.gate * signals.h_ctx
        if self.adaptive:
            tau = (signals.h_par / signals.h_ctx.clamp_min(1e-12)).clamp(0.0, min(self.gate, TAU_MAX))
        else:
            tau = ones(signals.logits_ctx) * tau_from_alpha(self.position)
        return Decision(torch.where(switched, tau, 1.0), switched & (tau != 1))
