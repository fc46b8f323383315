"""Several controls in one batch: each row is decided by its own policy.

Knows how to split the signals by rows and put the decisions together again; `per_row` returns a plain policy when
all rows agree, so a uniform batch pays nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..fusion.signals import Signals
from .base import Decision, Policy, ones

__all__ = ["PerRow", "per_row"]


@dataclass(frozen=True)
class PerRow(Policy):
    """One policy per row. Not registered: it is built from a list of controls, never named.

    Attributes:
        groups: Pairs of a policy and the rows it decides; every row occurs once.
    """

    name: ClassVar[str] = "per-row"
    groups: tuple[tuple[Policy, tuple[int, ...]], ...] = ()

    @property
    def neutral(self) -> bool:
        """When every row is."""
        return all(policy.neutral for policy, _ in self.groups)

    @property
    def amplifies(self) -> bool:
        """When any row may."""
        return any(policy.amplifies for policy, _ in self.groups)

    def steered_rows(self, like: Tensor) -> Tensor | slice:
        """Rows of the groups that are not neutral."""
        rows = [row for policy, group in self.groups if not policy.neutral for row in group]
        return torch.tensor(sorted(rows), device=like.device)

    def decide(self, signals: Signals) -> Decision:
        """Decide each group on its rows and scatter the results."""
        tau = ones(signals.logits_ctx)
        switched = torch.zeros_like(tau, dtype=torch.bool)
        scale: Tensor | None = None
        truncate: Tensor | None = None
        for policy, rows in self.groups:
            index = torch.tensor(rows, device=tau.device)
            part = policy.decide(signals.rows(index))
            if part.tau.ndim == 2 and tau.ndim == 1:
                tau = tau[:, None].repeat(1, signals.logits_ctx.shape[-1])
            tau[index] = part.tau if part.tau.ndim == tau.ndim else part.tau[:, None].expand(-1, tau.shape[-1])
            switched[index] = part.switched
            if part.scale is not None:
                scale = ones(switched) if scale is None else scale
                scale[index] = part.scale
            if part.truncate is not None:
                truncate = torch.zeros_like(switched) if truncate is None else truncate
                truncate[index] = part.truncate
        return Decision(tau, switched, scale, truncate)


def per_row(policies: Sequence[Policy]) -> Policy:
    """Return a policy that applies ``policies[i]`` to row i; the policy itself when all are equal."""
    rows: dict[Policy, list[int]] = {}
    for row, policy in enumerate(policies):
        rows.setdefault(policy, []).append(row)
    if len(rows) == 1:
        return policies[0]
    return PerRow(tuple((policy, tuple(index)) for policy, index in rows.items()))
