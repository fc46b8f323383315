"""Several policies in one batch: each row is decided by its own.

Knows how to split the signals by rows and join the decisions again. Where the rows of each policy lie side by side, a
policy sees a slice and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

from ..fusion.signals import Signals
from .base import Decision, Policy

__all__ = ["PerRow", "per_row", "runs"]


@dataclass(frozen=True)
class PerRow(Policy):
    """One policy per row. Not registered: it is built from a list of policies, never named.

    Attributes:
        parts: A policy, its first row and its last row plus one; the runs follow each other without gaps.
        order: The row of the batch that lies at each place of `parts`; None where the batch lies in that order.
    """

    name: ClassVar[str] = "per-row"
    parts: tuple[tuple[Policy, int, int], ...] = ()
    order: tuple[int, ...] | None = None

    @property
    def neutral(self) -> bool:
        """True when every row is."""
        return all(policy.neutral for policy, _, _ in self.parts)

    @property
    def amplifies(self) -> bool:
        """True when any row may."""
        return any(policy.amplifies for policy, _, _ in self.parts)

    def steered_rows(self, like: Tensor) -> Tensor | slice:
        """Rows of the policies that are not neutral."""
        places = [place for policy, a, b in self.parts if not policy.neutral for place in range(a, b)]
        rows = places if self.order is None else sorted(self.order[place] for place in places)
        return torch.tensor(rows, dtype=torch.long, device=like.device)

    def decide(self, signals: Signals) -> Decision:
        """Let each policy decide its run and join the results."""
        if len(self.parts) == 1:
            return self.parts[0][0].decide(signals)
        order = None if self.order is None else torch.tensor(self.order, device=signals.logits_ctx.device)
        made: list[tuple[Decision, int]] = []
        for policy, a, b in self.parts:
            rows = slice(a, b) if order is None else order[a:b]
            made.append((policy.decide(signals.rows(rows)), b - a))
        wide = any(d.tau.ndim == 2 for d, _ in made)
        size = signals.logits_ctx.shape[-1]
        taus = [d.tau[:, None].expand(-1, size) if wide and d.tau.ndim == 1 else d.tau for d, _ in made]
        scale = truncate = None
        if any(d.scale is not None for d, _ in made):
            scale = torch.cat([taus[0].new_ones(n) if d.scale is None else d.scale for d, n in made])
        if any(d.truncate is not None for d, _ in made):
            none = torch.zeros_like(made[0][0].switched[:1])
            truncate = torch.cat([none.expand(n) if d.truncate is None else d.truncate for d, n in made])
        joined = Decision(torch.cat(taus), torch.cat([d.switched for d, _ in made]), scale, truncate)
        return joined if order is None else joined.rows(order.argsort())


def runs(policies: Sequence[Policy]) -> tuple[tuple[Policy, int, int], ...]:
    """Return `PerRow.parts` of rows that lie in this order: one part per run of equal policies."""
    parts: list[tuple[Policy, int, int]] = []
    for policy, run in groupby(policies):
        first = parts[-1][2] if parts else 0
        parts.append((policy, first, first + len(list(run))))
    return tuple(parts)


def per_row(policies: Sequence[Policy]) -> Policy:
    """Return a policy that applies ``policies[i]`` to row i; the policy itself when all are equal."""
    rank = {policy: place for place, policy in enumerate(dict.fromkeys(policies))}
    order = sorted(range(len(policies)), key=lambda row: rank[policies[row]])
    if len(rank) == 1:
        return policies[0]
    return PerRow(runs([policies[row] for row in order]), None if order == list(range(len(order))) else tuple(order))
