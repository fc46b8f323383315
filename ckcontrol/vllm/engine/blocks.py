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
from ...decoding.fused_step import fused_step
from ...fusion.distributions import Shortlist
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
        scores: In the gauge of the contextual logits, [P, V] float32; None if tokens were picked.
        tokens: The favourites, [P] int64, or None.
        broken: As in `FusedStep`, [P] uint8.
        parts: Block, signals and decision of each block, for the trace.
    """

    scores: Tensor | None
    tokens: Tensor | None
    broken: Tensor
    parts: list[tuple[Block, Signals, Decision]]


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
    logits_ctx: Tensor, logits_par: Tensor, blocks: Sequence[Block], vocab_size: int | None = None, pick: bool = False
) -> Fused:
    """Fuse both streams of all pairs.

    Args:
        logits_ctx: With the passages, in the order of `arrange`, [P, V] float32; spare ids are masked in place.
        logits_par: Without them.
        blocks: From `arrange`.
        vocab_size: Number of ids the tokenizer knows; higher ids can never win in steered rows. None: all may.
        pick: Choose the greedy tokens at once; nothing is done to scores.
    """
    steps = [
        fused_step(
            block.policy,
            logits_ctx[block.first : block.last],
            logits_par[block.first : block.last],
            shortlist=block.shortlist,
            vocab_size=vocab_size,
            pick=pick,
        )
        for block in blocks
    ]
    return Fused(
        _joined([step.scores for step in steps]),
        _joined([step.tokens for step in steps]),
        steps[0].broken if len(steps) == 1 else torch.cat([step.broken for step in steps]),
        [(block, step.signals, step.decision) for block, step in zip(blocks, steps, strict=True)],
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    made = [part for part in parts if part is not None]
    return None if not made else made[0] if len(made) == 1 else torch.cat(made)
