"""One look at a stream: maxima of its blocks, logsumexp and entropy of every row, while the row is in the cache.

Knows logits of shape [rows, V] on a CPU, and scratch memory of a few rows. Everything a policy of scalars needs is in
a `Survey`; the maxima of blocks of 64 tokens are what later finds favourites and shortlists without another look at the
whole vocabulary. Knows nothing of policies. Equal to `distributions` up to the rounding of a sum.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .distributions import BLOCK, FLOOR, Shortlist, normalised

__all__ = ["Survey", "block_maxima", "chunks", "columns", "divergence", "favourite", "few", "survey", "threshold"]

_TOGETHER = 2**18  # scores a thread works on at once: they and two scratch rows beside them stay in a cache
_WITHIN = torch.arange(BLOCK)

_THREAD = threading.local()


@dataclass(frozen=True)
class Survey:
    """What one pass over a stream's logits says of each row.

    Attributes:
        blocks: Maximum of every 64 tokens, the last block may be shorter, [R, ceil(V / 64)]; NaN where one is.
        peak: Maximum, [R, 1].
        norm: logsumexp, [R, 1]; as the maximum where that is not finite.
        entropy: In nats, [R].
    """

    blocks: Tensor
    peak: Tensor
    norm: Tensor
    entropy: Tensor

    def __getitem__(self, index: Tensor | slice) -> Survey:
        """Return some rows, as views if `index` is a slice."""
        return Survey(self.blocks[index], self.peak[index], self.norm[index], self.entropy[index])

    def broken(self) -> Tensor:
        """Return the rows that hold NaN, +inf or nothing finite, [R] bool."""
        return ~((self.peak < math.inf) & (self.peak > -math.inf))[:, 0]


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Split rows of `size` scores into slices that are worked on at once."""
    step = max(1, _TOGETHER * torch.get_num_threads() // size)
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def few(scores: Tensor, times: int = 1) -> bool:
    """Whether so many such tensors are worked on at once, so that operations are saved by doing them together."""
    return scores.numel() * times <= _TOGETHER


def scratch(logits: Tensor, count: int) -> list[Tensor]:
    """Return `count` buffers for one chunk of rows, float32: this thread's, as it left them, so never a result.

    New memory of that size would be given back and cleared by the system at every step, which takes longer than most of
    what is done in it.
    """
    rows = next(chunks(*logits.shape), slice(0, 0)).stop
    size = count * rows * logits.shape[1]
    kept: Tensor | None = getattr(_THREAD, "kept", None)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):
            kept = _THREAD.kept = torch.empty(size)
    return list(kept[:size].view(count, rows, logits.shape[1]).unbind())


def survey(logits: Tensor, masked: bool = False) -> Survey:
    """Look at a stream once.

    Args:
        logits: [R, V] float32.
        masked: Some are -inf. Where that is not so, and so not said, the pass is a little faster.
    """
    distance, mass = scratch(logits, 2)
    made = []
    for rows in chunks(*logits.shape):
        part, d, e = logits, distance, mass
        if len(logits) > len(distance):
            part = logits[rows]
            d, e = distance[: len(part)], mass[: len(part)]
        blocks = block_maxima(part)
        peak = blocks.amax(-1, keepdim=True)
        torch.sub(part, peak, out=d)
        for again in (False, True):
            if masked or again:
                d.clamp_min_(FLOOR)  # no 0 * -inf
            torch.exp(d, out=e)
            total, weighted = e.sum(-1, keepdim=True), d.mul_(e).sum(-1, keepdim=True)
            if masked or again or math.isfinite(weighted.sum().item()):
                break
            torch.sub(part, peak, out=d)
        log_total = total.log()
        made.append(Survey(blocks, peak, peak + log_total, (log_total - weighted / total)[:, 0]))
    if len(made) == 1:
        return made[0]
    return Survey(*(torch.cat([getattr(s, f.name) for s in made]) for f in fields(Survey)))


def divergence(logits_a: Tensor, norm_a: Tensor, logits_b: Tensor, norm_b: Tensor) -> Tensor:
    """Return `distributions.jensen_shannon` of two streams of known logsumexp, [R, V] x 2 -> [R], in nats."""
    found = torch.empty(len(logits_a))
    a, b, p, q, m = scratch(logits_a, 5)
    for rows in chunks(*logits_a.shape):
        n = rows.stop - rows.start
        a, b, p, q, m = a[:n], b[:n], p[:n], q[:n], m[:n]
        torch.exp(torch.sub(logits_a[rows], norm_a[rows], out=a).clamp_min_(FLOOR), out=p)
        torch.exp(torch.sub(logits_b[rows], norm_b[rows], out=b).clamp_min_(FLOOR), out=q)
        torch.add(p, q, out=m).clamp_min_(torch.finfo(torch.float32).tiny).log_()
        found[rows] = a.sub_(m).mul_(p).add_(b.sub_(m).mul_(q)).sum(-1)
    return (0.5 * found + math.log(2)).clamp(0.0, math.log(2))


def block_maxima(scores: Tensor) -> Tensor:
    """Return the maximum of every 64 scores, [R, V] -> [R, ceil(V / 64)]."""
    whole, rest = divmod(scores.shape[1], BLOCK)
    if not rest:
        return scores.view(-1, whole, BLOCK).amax(-1)
    out = scores.new_empty(len(scores), whole + 1)
    if whole:
        torch.amax(scores[:, : whole * BLOCK].view(-1, whole, BLOCK), -1, out=out[:, :whole])
    torch.amax(scores[:, whole * BLOCK :], -1, out=out[:, whole])
    return out


def columns(blocks: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    """Return the tokens of some blocks, [..., 64], and which of them exist in a vocabulary of `size` (None: all)."""
    at = blocks[..., None] * BLOCK + _WITHIN
    return (at, None) if size % BLOCK == 0 else (at.clamp_max(size - 1), at < size)


def favourite(scores: Tensor, blocks: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return ``scores.argmax(-1)``, [R, V] and its `block_maxima` -> [R] int64: the first of equals, NaN above all.

    Args:
        scores: [R, V].
        blocks: Of the rows that are meant.
        rows: Which these are; None if they are all. Nothing else of `scores` is read or copied.
    """
    at, _ = columns(blocks.argmax(-1), scores.shape[1])
    return at.gather(1, _read(scores, rows, at).argmax(-1, keepdim=True))[:, 0]


def threshold(shortlist: Shortlist, logits: Tensor, seen: Survey, rows: Tensor | None = None) -> Tensor:
    """Return the least log-probability on a stream's shortlist, [R, V] -> [R, 1]; `seen` and `rows` as above."""
    size = logits.shape[1]
    best = seen.blocks.topk(min(shortlist.k, seen.blocks.shape[1]), dim=-1, sorted=False).indices
    at, there = columns(best, size)
    found = _read(logits, rows, at.flatten(1))
    if there is not None:
        found = found.masked_fill(~there.flatten(1), -math.inf)
    least = found.topk(min(shortlist.k, size), dim=-1).values[:, -1:]
    return torch.minimum(normalised(least, seen.norm), normalised(seen.peak, seen.norm) + math.log(shortlist.ratio))


def _read(scores: Tensor, rows: Tensor | None, at: Tensor) -> Tensor:
    return scores.gather(1, at) if rows is None else scores[rows[:, None], at]
