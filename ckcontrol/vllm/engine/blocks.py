"""The pairs of one step, all at once: which rows, which policies, and their fused scores.

Steered pairs that share a shortlist are one `Block`; inside it those of one policy lie side by side, so that a policy
sees a slice and nothing is copied. The arithmetic is the library's own (fusion, policies, decoding/loop.py). Knows
tensors and policies; knows nothing of vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ...control import Control
from ...decoding.fused_step import fuse_scores
from ...fusion.distributions import Shortlist, nonfinite_rows
from ...fusion.signals import Signals
from ...policies.base import Decision, Policy
from ...policies.per_row import PerRow, runs

__all__ = ["Block", "Fused", "arrange", "fuse_blocks"]


@dataclass(frozen=True)
class Block:
    """Pairs with one shortlist; either all are steered or none is.

    Attributes:
        first: First pair.
        last: Last pair plus one.
        policy: Of all of them; all are neutral or none is.
        shortlist: Of all of them.
    """

    first: int
    last: int
    policy: PerRow
    shortlist: Shortlist


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
        controls: Of each pair, for its shortlist.
    """
    kinds = [(policy.neutral, control.shortlist) for policy, control in zip(policies, controls, strict=True)]
    rank = {policy: place for place, policy in enumerate(dict.fromkeys(policies))}
    order = sorted(range(len(kinds)), key=lambda i: (kinds[i], rank[policies[i]]))
    blocks: list[Block] = []
    for (_, shortlist), pairs in groupby(order, key=lambda i: kinds[i]):
        parts = runs([policies[i] for i in pairs])
        first = blocks[-1].last if blocks else 0
        blocks.append(Block(first, first + parts[-1][2], PerRow(parts), shortlist))
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
        signals = Signals(logits_ctx[rows], logits_par[rows], shortlist=block.shortlist)
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
