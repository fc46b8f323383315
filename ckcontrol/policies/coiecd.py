"""COIECD (Yuan et al., arXiv 2402.11893): amplify only the tokens that break a bound on contextual information.

The bound as released reduces to ``p_ctx(x) > max p_ctx / coiecd_ratio``, because the entropy in it is removed by the
log-softmax that follows. Tokens above it get tau = 1 + coiecd_alpha, the others tau = coiecd_alpha; if only one token
is above, all get the latter. With coiecd_alpha = 1 that is 2 and 1. The code's second branch, which also amplifies
the very rarest tokens (p < 4 min p), is an artefact and left out; the shortlist would remove them anyway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..arguments import check_number
from ..fusion.signals import Signals
from .base import TAU_MAX, Decision, Policy, register

__all__ = ["COIECD"]


@register
@dataclass(frozen=True)
class COIECD(Policy):
    """A tau that differs between the tokens of one step, [B, V].

    Attributes:
        coiecd_alpha: The paper's alpha; 1 as released.
        coiecd_ratio: 1/lambda of the paper; 4 as released.
    """

    name: ClassVar[str] = "coiecd"
    coiecd_alpha: float = 1.0
    coiecd_ratio: float = 4.0

    def __post_init__(self) -> None:
        check_number("coiecd_alpha", self.coiecd_alpha, 0.0, TAU_MAX - 1)
        check_number("coiecd_ratio", self.coiecd_ratio, 1.0, 1e6)

    def decide(self, signals: Signals) -> Decision:
        """Split the vocabulary at the bound."""
        logp = signals.logp_ctx
        above = logp > signals.peak_ctx[:, None] - math.log(self.coiecd_ratio)
        contested = above.sum(-1, keepdim=True) >= 2
        tau = torch.where(above & contested, 1 + self.coiecd_alpha, self.coiecd_alpha)
        return Decision(tau.float(), (tau != 1).any(-1))
