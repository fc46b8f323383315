"""Which rows of a batch are pairs, and everything that stays the same until the batch changes.

A `BatchPlan` holds index tensors, policies and sampling columns, so that a step only gathers, computes and scatters. A
`PairState` outlives plans: it is what a pair must remember from one token to the next, and all of it can be rebuilt,
so losing one costs time and nothing else. Knows tensors and pair parameters; knows nothing of vLLM's
interfaces.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...decoding.recorder import measure
from ...fusion.distributions import log_probs, nonfinite_rows
from ...fusion.survey import few
from ..contract.pair_params import CONTEXTUAL, PairParams
from .blocks import Block, Fused, arrange, fuse_blocks
from .sampling import Noise, Warp, on_cpu, sent
from .traces import TraceStore

__all__ = ["BatchPlan", "EngineRow", "Member", "PairState", "make_plans", "pair_up"]

_THREAD = threading.local()
_TOGETHER = 2**21  # scores per stream that a CPU holds at once; fusion works on what fits its cache


@dataclass(eq=False)
class EngineRow:
    """One row of a pair, as the engine knows it.

    Attributes:
        ck: What it carries.
        prompt: Prompt ids, for the penalty; None if the engine keeps them elsewhere.
        output: Output ids so far, a live list; ids in flight may read -1. None if the engine keeps them elsewhere.
        slot: Where the engine keeps the row's tokens; -1 where `prompt` and `output` are lists.
        logprobs: Log-probabilities of the answer's tokens were asked for.
        end: An end token, to stop a pair whose logits became NaN or infinite.
    """

    ck: PairParams
    prompt: Sequence[int] | None = None
    output: Sequence[int] | None = None
    slot: int = -1
    logprobs: bool = False
    end: int = 0


@dataclass(eq=False)
class PairState:
    """What one pair remembers between tokens.

    Attributes:
        noise: Its random numbers; None if it takes the maximum.
        base: Prompt tokens that are penalised, [V] bool; None without a penalty.
        seen: The same and the output up to `seen_to`, [V] bool.
        seen_to: Number of output tokens in `seen`.
        drawn: Where each drawn token is on the device: position -> step tensor and row. Kept for a penalty only.
        broken: Which logits became NaN or infinite, an index into `traces.BROKEN`, uint8 scalar.
    """

    noise: Noise | None
    base: Tensor | None
    seen: Tensor | None
    seen_to: int = 0
    drawn: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    broken: Tensor | None = None


@dataclass(eq=False)
class Member:
    """A pair in a batch: its contextual row, its parametric row, their places, its state, its output position."""

    ctx: EngineRow
    par: EngineRow
    at_ctx: int
    at_par: int
    state: PairState
    position: int = -1


class BatchPlan:
    """A fixed set of pairs in fixed places.

    Args:
        members: The pairs, in any order.
        device: Where logits live.
        soft: Hand fused log-probabilities back for greedy pairs that asked for log-probabilities.
    """

    def __init__(self, members: Sequence[Member], device: torch.device, soft: bool) -> None:
        order, self.blocks = _arranged(members)
        self.members = members = [members[i] for i in order]
        self.count = len(members)
        self.places = [m.at_ctx for m in members] + [m.at_par for m in members]
        self.rows = sent(self.places, torch.long, device)
        self.steps = _regular(self.places[: len(members)]), _regular(self.places[len(members) :])
        # On a CPU the chosen token is put above all logits of its row; where more than the maximum is looked at, and on
        # an accelerator everywhere, it is all that is left of the row.
        self.bare = [row for i, m in enumerate(members) if m.ctx.logprobs or m.par.logprobs for row in self._both(i)]
        above = torch.finfo(torch.float32).max if on_cpu(device) else 0.0
        self.most = sent([0.0 if place in self.bare else above for place in self.places], torch.float32, device)
        options = [m.ctx.ck.options for m in members]
        self.warp = Warp(options, [m.state.noise for m in members], device)
        self.ends = sent([m.ctx.end for m in members], torch.long, device)
        self.traced = [i for i, m in enumerate(members) if m.ctx.ck.trace]
        asked = [i for i, m in enumerate(members) if soft and m.ctx.logprobs and not m.ctx.ck.options.do_sample]
        self.soft = sent(asked, torch.long, device) if asked else None
        self.at_once = not (self.warp.sampled or self.warp.penalised or self.traced or asked)  # fusion's pick is all
        zero = torch.zeros((), dtype=torch.uint8, device=device)
        self.broken = torch.stack([zero if m.state.broken is None else m.state.broken for m in members])
        self.seen: Tensor | None = None
        self.behind = [members[i] for i in self.warp.penalised]
        self._lend()

    def _both(self, member: int) -> tuple[int, int]:
        return self.places[member], self.places[member + self.count]

    def _end(self, broken: Tensor) -> Tensor | None:
        """Note what is broken, and return which pairs end for it, [P] bool; a CPU is asked, and None are no pairs."""
        ended = broken > 0
        if on_cpu(broken.device) and not ended.any():
            return None
        torch.where(self.broken == 0, broken, self.broken, out=self.broken)
        return ended

    def _streams(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows with the passages and those without, [P, V] each; views where that is worth it."""
        if not on_cpu(logits.device) or few(logits[:1], 2 * self.count):
            both = logits.index_select(0, self.rows)
        elif None not in self.steps:
            return logits[self.steps[0]], logits[self.steps[1]]
        else:
            both = torch.index_select(logits, 0, self.rows, out=_kept(2 * self.count, logits.shape[1]))
        return both[: self.count], both[self.count :]

    def _lend(self) -> None:
        """Let the states point into this plan's tensors, so that what a step updates in place is theirs too."""
        if self.behind:
            self.seen = torch.stack([m.state.seen for m in self.behind if m.state.seen is not None])
            for member, seen in zip(self.behind, self.seen, strict=True):
                member.state.seen = seen
        for member, broken in zip(self.members, self.broken, strict=True):
            member.state.broken = broken

    def step(self, logits: Tensor, positions: Sequence[int], vocab_size: int | None, store: TraceStore) -> None:
        """Fuse, draw and write one token per pair into both of its rows, in place; no transfer to the host.

        Args:
            logits: Of the whole batch, [N, V] float32; rows of other requests are not touched.
            positions: Output position of each member, counted from 0.
            vocab_size: Number of ids the tokenizer knows, or None.
            store: Takes the traces.
        """
        fused = fuse_blocks(*self._streams(logits), self.blocks, vocab_size, self.at_once)
        scores, broken = logits if fused.scores is None else fused.scores, fused.broken
        if fused.tokens is not None:
            tokens = fused.tokens
        else:
            scores = self.warp(scores, self.seen)
            broken = broken.masked_fill((broken == 0) & nonfinite_rows(scores), 3)
            tokens = self.warp.draw(scores, [positions[i] for i in self.warp.sampled])
        ended = self._end(broken)
        if ended is not None:
            tokens = torch.where(ended, self.ends, tokens)
        if self.traced:
            table = _table(fused, tokens, scores)
            for i in self.traced:
                store.add(self.members[i].ctx.ck.pair, positions[i], table, i)
        if self.seen is not None:
            self._remember(tokens, positions)
        # No policy has a say from here on: where one raised, the logits are as they were, to be tried apart.
        if on_cpu(logits.device):
            broke = [] if ended is None else ended.nonzero()[:, 0].tolist()
            for place in {*self.bare, *(row for i in broke for row in self._both(i))}:
                logits[place] = -torch.inf
        else:
            logits.index_fill_(0, self.rows, -torch.inf)
        logits.index_put_((self.rows, tokens.repeat(2)), self.most)
        if self.soft is not None:
            self._write_soft(logits, scores, tokens)

    def _remember(self, tokens: Tensor, positions: Sequence[int]) -> None:
        if self.seen is not None:
            self.seen.scatter_(1, tokens[self.warp.penalised_rows][:, None], True)
        for i, member in zip(self.warp.penalised, self.behind, strict=True):
            member.state.drawn[positions[i]] = (tokens, i)
            member.state.seen_to = positions[i] + 1

    def _write_soft(self, logits: Tensor, scores: Tensor, tokens: Tensor) -> None:
        """Give greedy pairs their fused log-probabilities; the chosen token stays the only maximum."""
        if self.soft is None:
            return
        logp = log_probs(scores[self.soft])
        top = torch.nextafter(logp.amax(-1, keepdim=True), torch.full_like(logp[:, :1], torch.inf))
        logp = logp.scatter(1, tokens[self.soft][:, None], top)
        for places in (self.rows[: self.count], self.rows[self.count :]):
            logits.index_copy_(0, places[self.soft], logp)


def _regular(places: Sequence[int]) -> slice | None:
    """Return the slice of rows that lie at equal distances, else None."""
    step = places[1] - places[0] if len(places) > 1 else 1
    if step > 0 and list(places) == list(range(places[0], places[-1] + 1, step)):
        return slice(places[0], places[-1] + 1, step)
    return None


def _kept(rows: int, size: int) -> Tensor:
    """Return this thread's buffer for the rows of one step: to be given new memory each time takes longer than to copy
    them.
    """
    kept: Tensor | None = getattr(_THREAD, "kept", None)
    if kept is None or kept.numel() < rows * size:
        with torch.inference_mode(False):
            kept = _THREAD.kept = torch.empty(rows * size)
    return kept[: rows * size].view(rows, size)


def make_plans(members: Sequence[Member], logits: Tensor, soft: bool) -> list[BatchPlan]:
    """Return the plans of the pairs of a batch: one; on a CPU one per few pairs, of one kind where possible; or none.

    Args:
        members: The pairs, in any order.
        logits: Of the batch, [N, V].
        soft: As in `BatchPlan`.
    """
    order, _ = _arranged(members)
    most = max(1, _TOGETHER // logits.shape[-1] if on_cpu(logits.device) else len(members))
    sorted_ = [members[i] for i in order]
    return [BatchPlan(sorted_[i : i + most], logits.device, soft) for i in range(0, len(sorted_), most)]


def _arranged(members: Sequence[Member]) -> tuple[list[int], tuple[Block, ...]]:
    return arrange([m.ctx.ck.policy for m in members], [m.ctx.ck.control for m in members])


def _table(fused: Fused, tokens: Tensor, scores: Tensor) -> Tensor:
    """Return the final log-probability and the columns of `recorder.measure`, [P, 10]."""
    parts = []
    for block, signals, decision in fused.parts:
        rows = slice(block.first, block.last)
        final, values = measure(tokens[rows], scores[rows], signals, decision)
        parts.append(final[:, None] if values is None else torch.cat([final[:, None], values], dim=1))
    return torch.cat(parts)


def pair_up(rows: Sequence[tuple[int, EngineRow]]) -> list[tuple[tuple[int, EngineRow], tuple[int, EngineRow]]]:
    """Return the complete pairs among rows and their places: contextual first; rows without a partner are left out."""
    found: dict[str, dict[str, tuple[int, EngineRow]]] = {}
    for place, row in rows:
        found.setdefault(row.ck.pair, {})[row.ck.role] = (place, row)
    pairs = []
    for sides in found.values():
        if len(sides) == 2:
            ctx = sides.pop(CONTEXTUAL)
            pairs.append((ctx, sides.popitem()[1]))
    return pairs
