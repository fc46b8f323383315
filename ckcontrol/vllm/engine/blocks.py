"""The pairs of one step, all at once: which rows, which policies, and their fused scores.

Steered pairs that share a shortlist are one `Block`; inside it those of one policy lie side by side, so that a policy
sees a slice and nothing is copied. The arithmetic is that of `ckcontrol.generate`: signals, policies, kernel and
`decoding.loop.fuse_scores`. Knows tensors and policies; knows nothing of vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...control import Control
from ...decoding.loop import fuse_scores
from ...fusion.distributions import nonfinite_rows
from ...fusion.signals import Signals
from ...policies import Decision, Policy

__all__ = ["Block", "Fused", "Sliced", "arrange", "fuse_blocks"]


@dataclass(frozen=True)
class Sliced(Policy):
    """Several policies, each for a run of rows. Not registered: it is built by `arrange`, never named.

    Attributes:
        parts: A policy, its first row and its last row plus one; the runs follow each other without gaps.
    """

    name: ClassVar[str] = "sliced"
    parts: tuple[tuple[Policy, int, int], ...] = ()

    @property
    def neutral(self) -> bool:
        """When every row is."""
        return all(policy.neutral for policy, _, _ in self.parts)

    @property
    def amplifies(self) -> bool:
        """When any row may."""
        return any(policy.amplifies for policy, _, _ in self.parts)

    def decide(self, signals: Signals) -> Decision:
        """Let each policy decide its run and join the results."""
        made = [(policy.decide(signals.rows(slice(a, b))), b - a) for policy, a, b in self.parts]
        if len(made) == 1:
            return made[0][0]
        wide = any(d.tau.ndim == 2 for d, _ in made)
        size = signals.logits_ctx.shape[-1]
        taus = [d.tau[:, None].expand(-1, size) if wide and d.tau.ndim == 1 else d.tau for d, _ in made]
        like = taus[0]
        scale = truncate = None
        if any(d.scale is not None for d, _ in made):
            scale = torch.cat([like.new_ones(n) if d.scale is None else d.scale for d, n in made])
        if any(d.truncate is not None for d, _ in made):
            none = torch.zeros_like(made[0][0].switched[:1])
            truncate = torch.cat([none.expand(n) if d.truncate is None else d.truncate for d, n in made])
        return Decision(torch.cat(taus), torch.cat([d.switched for d, _ in made]), scale, truncate)


@dataclass(frozen=True)
class Block:
    """Pairs with one shortlist; either all are steered or none is.

    Attributes:
        first: First pair.
        last: Last pair plus one.
        policy: Of all of them; all are neutral or none is.
        candidates: k of the head set.
        candidate_ratio: r of the head set.
    """

    first: int
    last: int
    policy: Sliced
    candidates: int
    candidate_ratio: float


@dataclass(frozen=True)
class Fused:
    """The fused step.

    Attributes:
        scores: In the gauge of the contextual logits, [P, V] float32.
        broken: 0; 1 where the contextual logits hold NaN, +inf or nothing finite, 2 where the parametric ones do, [P]
            uint8.
        parts: Block, signals and decision of each block, for the trace; the decision is None where all are neutral.
    """

    scores: Tensor
    broken: Tensor
    parts: list[tuple[Block, Signals, Decision | None]]


def arrange(policies: Sequence[Policy], controls: Sequence[Control]) -> tuple[list[int], tuple[Block, ...]]:
    """Return the order in which pairs should lie, as indices, and the blocks of that order.

    Args:
        policies: Of each pair.
        controls: Of each pair, for its head set.
    """
    heads = [(p.neutral, c.candidates, c.candidate_ratio) for p, c in zip(policies, controls, strict=True)]
    rank: dict[Policy, int] = {}
    for policy in policies:
        rank.setdefault(policy, len(rank))
    order = sorted(range(len(controls)), key=lambda i: (heads[i], rank[policies[i]]))
    blocks: list[Block] = []
    at = 0
    while at < len(order):
        first, head = at, heads[order[at]]
        parts: list[tuple[Policy, int, int]] = []
        while at < len(order) and heads[order[at]] == head:
            policy, start = policies[order[at]], at
            while at < len(order) and heads[order[at]] == head and policies[order[at]] == policy:
                at += 1
            parts.append((policy, start - first, at - first))
        blocks.append(Block(first, at, Sliced(tuple(parts)), *head[1:]))
    return order, tuple(blocks)


def fuse_blocks(
    logits_ctx: Tensor, logits_par: Tensor, blocks: Sequence[Block], vocab_size: int | None = None
) -> Fused:
    """Fuse both streams of all pairs.

    Args:
        logits_ctx: With the passages, in the order of `arrange`, [P, V] float32; spare ids are masked in place.
        logits_par: Without them.
        blocks: From `arrange`.
        vocab_size: Number of ids the tokenizer knows; higher ids can never win in steered rows. None: all may.
    """
    scores: list[Tensor] = []
    parts: list[tuple[Block, Signals, Decision | None]] = []
    for block in blocks:
        rows = slice(block.first, block.last)
        signals = Signals(logits_ctx[rows], logits_par[rows], block.candidates, block.candidate_ratio)
        if block.policy.neutral:
            scores.append(signals.logits_ctx)
            parts.append((block, signals, None))
            continue
        if vocab_size is not None:
            for logits in (signals.logits_ctx, signals.logits_par):
                logits[:, vocab_size:] = -torch.inf
        if len(block.policy.parts) > 1:
            _ = signals.h_ctx, signals.h_par  # computed once for all, then sliced
        decision = block.policy.decide(signals)
        scores.append(fuse_scores(block.policy, signals, decision))
        parts.append((block, signals, decision))
    broken = nonfinite_rows(logits_par).to(torch.uint8) * 2
    broken = torch.where(nonfinite_rows(logits_ctx), 1, broken)
    return Fused(scores[0] if len(scores) == 1 else torch.cat(scores), broken, parts)
