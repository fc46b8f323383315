"""One step from two rows of logits to fused scores or to greedy tokens, in as few looks at the vocabulary as it takes.

`fused_step` serves the transformers engine, vLLM and eval's shared pass; `fuse_all` is the same in plain tensor
operations, and the oracle it is tested against. What needs what:

    off, or tau = 1; tau = 0      one stream as it is: no logarithm, and a favourite from the maxima of 64-token blocks
    ck-plug, acd                  norm and entropy of both streams: one look at each (`survey`), exp once per score
    cad                           the norms of that look
    adacad, arr, nwcad            + one look at both together for the divergence
    grd                           + favourites from block maxima, and four gathered scores
    coiecd, ck-plug-repo, yours   anything: a signal that no look has made is computed as ever, from the whole [B, V]
    then, tau > 1 or truncated    only the shortlist can win: blocks whose maximum reaches its floor, a few hundred
                                  scores a row, in the kernel's own arithmetic; nothing else is touched
    0 < tau < 1                   one look at both that mixes in scratch memory, rows by rows

On a CPU the look is `fusion/survey.py`, in rows small enough for the cache, and the rows to compute are asked for. An
accelerator is never asked anything: no shape there depends on data, so that a step can be captured as a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from ..fusion.distributions import Shortlist, nonfinite_rows, normalised
from ..fusion.kernel import fuse, mix, regauge
from ..fusion.look import compiles, quickly
from ..fusion.signals import LookedSignals, Signals, SurveyedSignals
from ..fusion.survey import block_maxima, chunks, columns, favourite, scratch, threshold
from ..policies.base import Decision, Policy

__all__ = ["FusedStep", "fuse_all", "fuse_scores", "fused_step", "mask_spare_ids", "signals_of"]

_LEAST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class FusedStep:
    """A fused step; everything is on the device of the logits.

    Attributes:
        signals: Of the two streams, with spare ids masked.
        decision: The policy's.
        broken: 0; 1 where the contextual logits hold NaN, +inf or nothing finite, 2 where the parametric ones do, 3
            where only the fused scores do (known if tokens were picked), [B] uint8.
        scores: In the gauge of the contextual logits, [B, V] float32, not shared with them; None if tokens were picked.
        tokens: The favourite of each row, [B] int64, arbitrary where it is broken; None unless asked for.
    """

    signals: Signals
    decision: Decision
    broken: Tensor
    scores: Tensor | None
    tokens: Tensor | None


def fused_step(
    policy: Policy,
    logits_ctx: Tensor,
    logits_par: Tensor,
    *,
    shortlist: Shortlist | None = None,
    vocab_size: int | None = None,
    pick: bool = False,
) -> FusedStep:
    """Decide and fuse one step.

    Args:
        policy: Of all rows; see `per_row` for one each.
        logits_ctx: With the passages, [B, V]; spare ids are masked in place, nothing else is changed.
        logits_par: Without them.
        shortlist: Of every row; None is the default one.
        vocab_size: Number of ids the tokenizer knows; higher ids can never win in steered rows. None: all may.
        pick: Return the greedy tokens, and no scores. For when nothing lies between fusion and the choice.
    """
    if not policy.neutral:
        mask_spare_ids(policy, vocab_size, logits_ctx, logits_par)
    if logits_ctx.device.type == "cpu":
        size = logits_ctx.shape[1]
        known = size if policy.neutral or vocab_size is None else min(vocab_size, size)
        return _on_cpu(policy, logits_ctx.float(), logits_par.float(), shortlist, known, pick)
    way = _compiled if not policy.neutral and compiles(logits_ctx.device) else _plainly
    return way(policy, logits_ctx.float(), logits_par.float(), shortlist, pick)


def mask_spare_ids(policy: Policy, vocab_size: int | None, logits_ctx: Tensor, logits_par: Tensor) -> None:
    """Mask, in place, ids the tokenizer does not know in steered rows; a neutral row is the model as it is."""
    if vocab_size is not None and vocab_size < logits_ctx.shape[1]:
        rows = policy.steered_rows(logits_ctx)
        for logits in (logits_ctx, logits_par):
            logits[rows, vocab_size:] = -torch.inf


def fuse_all(policy: Policy, signals: Signals, decision: Decision) -> Tensor:
    """Apply a decision to every row in plain tensor operations; return scores in the contextual gauge, [B, V]."""
    needed = policy.amplifies or decision.truncate is not None
    fused = fuse(
        signals.logp_ctx,
        signals.logp_par,
        decision.tau,
        shortlisted=signals.shortlisted if needed else None,
        scale=decision.scale,
        truncate=decision.truncate,
        check=False,
    )
    return regauge(fused, signals.logits_ctx, signals.logits_par, signals.norm_ctx, decision.tau, decision.plain())


def _first_broken(ctx: Tensor, par: Tensor) -> Tensor:
    return (par.to(torch.uint8) * 2).masked_fill(ctx, 1)


def signals_of(
    logits_ctx: Tensor, logits_par: Tensor, shortlist: Shortlist | None = None, vocab_size: int | None = None
) -> Signals:
    """Return the signals of both streams, [B, V] float32 each, for several policies to read and `fuse_scores` to use.

    Spare ids, those from `vocab_size` on, must have been masked.
    """
    if logits_ctx.device.type == "cpu":
        return SurveyedSignals(logits_ctx, logits_par, shortlist=shortlist, known=vocab_size)
    kind = LookedSignals if compiles(logits_ctx.device) else Signals
    return kind(logits_ctx, logits_par, shortlist=shortlist)


# --- on an accelerator ------------------------------------------------------------------------------------------------


def _plainly(
    policy: Policy, logits_ctx: Tensor, logits_par: Tensor, shortlist: Shortlist | None, pick: bool
) -> FusedStep:
    """Whole tensors, operation by operation: fewer of them than what is written to be compiled would take."""
    signals = Signals(logits_ctx, logits_par, shortlist=shortlist)
    decision = policy.decide(signals)
    broken = _first_broken(nonfinite_rows(logits_ctx), nonfinite_rows(logits_par))
    if policy.neutral:
        given = (None, logits_ctx.argmax(-1)) if pick else (logits_ctx.clone(), None)
        return FusedStep(signals, decision, broken, *given)
    scores = fuse_all(policy, signals, decision)
    if not pick:
        return FusedStep(signals, decision, broken, scores, None)
    return FusedStep(signals, decision, *_picked(scores, broken))


def _picked(scores: Tensor, broken: Tensor) -> tuple[Tensor, None, Tensor]:
    """Return what is broken, no scores, and the favourites."""
    peak, tokens = scores.max(-1)
    return broken.masked_fill((broken == 0) & ~(peak.abs() < torch.inf), 3), None, tokens


def _compiled(
    policy: Policy, logits_ctx: Tensor, logits_par: Tensor, shortlist: Shortlist | None, pick: bool
) -> FusedStep:
    signals = LookedSignals(logits_ctx, logits_par, shortlist=shortlist)
    decision = policy.decide(signals)
    scores, tokens, broken = quickly(
        _finish,
        logits_ctx,
        logits_ctx,
        logits_par,
        (signals.norm_ctx, signals.norm_par),
        (signals.floor_ctx, signals.floor_par),
        decision.tau,
        decision.scale,
        decision.truncate,
        pick,
    )
    return FusedStep(signals, decision, broken, None if pick else scores, tokens if pick else None)


def _finish(
    ctx: Tensor,
    par: Tensor,
    norms: tuple[Tensor, Tensor],
    floors: tuple[Tensor, Tensor],
    tau: Tensor,
    scale: Tensor | None,
    truncate: Tensor | None,
    pick: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores (of no use if picked), tokens (of no use unless) and what is broken."""
    logp_ctx, logp_par = normalised(ctx, norms[0]), normalised(par, norms[1])
    listed = (logp_ctx >= floors[0]) | (logp_par >= floors[1])
    fused = fuse(logp_ctx, logp_par, tau, shortlisted=listed, scale=scale, truncate=truncate, check=False)
    plain = torch.ones_like(norms[0][:, 0], dtype=torch.bool)
    plain = plain if truncate is None else plain & ~truncate
    plain = plain if scale is None else plain & (scale == 1)
    scores = regauge(fused, ctx, par, norms[0], tau, plain)
    broken = _first_broken(nonfinite_rows(ctx), nonfinite_rows(par))
    if not pick:
        return scores, broken, broken
    broken, _, tokens = _picked(scores, broken)
    return scores[:, :1], tokens, broken


# --- on a CPU ---------------------------------------------------------------------------------------------------------


def _on_cpu(
    policy: Policy, logits_ctx: Tensor, logits_par: Tensor, shortlist: Shortlist | None, known: int, pick: bool
) -> FusedStep:
    signals = SurveyedSignals(logits_ctx, logits_par, shortlist=shortlist, known=known)
    if len(getattr(policy, "parts", ())) > 1 and not policy.neutral:
        _ = signals.survey_ctx, signals.survey_par  # once for all rows, then sliced
    decision = policy.decide(signals)
    made = _Made(signals, decision, pick)
    streams = zip(signals.highest("ctx"), signals.highest("par"), strict=True)
    broken = [0 if isfinite(c) and isfinite(p) else 2 if isfinite(c) else 1 for c, p in streams]
    if pick:
        fused = made.peaks[:, 0].tolist()
        broken = [found or (0 if isfinite(peak) else 3) for found, peak in zip(broken, fused, strict=True)]
    return FusedStep(signals, decision, torch.tensor(broken, dtype=torch.uint8), made.scores, made.tokens)


def fuse_scores(policy: Policy, signals: Signals, decision: Decision) -> Tensor:
    """Apply a decision; return scores in the gauge of the contextual logits, [B, V] float32.

    On a CPU only rows on which the decision acts are computed; an accelerator would have to be asked which those are.
    """
    if isinstance(signals, SurveyedSignals):
        made = _Made(signals, decision, pick=False).scores
        if made is not None:
            return made
    return fuse_all(policy, signals, decision)


class _Made:
    """The rows of a step, each kind of row by the cheapest way to the same result.

    Attributes:
        scores: [B, V], or None if tokens are picked.
        tokens: [B] int64, or None.
        peaks: Where tokens are picked, the scores they have, in a gauge of their own, [B, 1].
    """

    def __init__(self, signals: SurveyedSignals, decision: Decision, pick: bool) -> None:
        self.signals, self.decision = signals, decision
        count = len(signals.logits_ctx)
        self.scores = None if pick else torch.empty_like(signals.logits_ctx)
        self.tokens = torch.empty(count, dtype=torch.long) if pick else None
        self.peaks = torch.empty(count if pick else 0, 1)
        works = self._context, self._memory, self._cut, self._mix, self._in_full
        kinds = self._kinds()
        if len(set(kinds)) == 1:
            works[kinds[0]](slice(0, count))
            return
        for kind in sorted(set(kinds)):
            works[kind](_together([row for row, of in enumerate(kinds) if of == kind]))

    def _kinds(self) -> list[int]:
        """Return of each row which of the works makes it: a CPU knows as soon as it asks."""
        tau, cuts = self.decision.tau, self.decision.truncate
        if tau.ndim == 1:
            least = most = tau.tolist()
        else:
            least, most = tau.amin(-1).tolist(), tau.amax(-1).tolist()
        simple = self.decision.scale is None and cuts is None
        plain = [True] * len(least) if simple else self.decision.plain().tolist()
        cut = [False] * len(least) if cuts is None else cuts.tolist()
        found = []
        for low, high, plainly, shortly in zip(least, most, plain, cut, strict=True):
            if plainly and low == high == 1:
                found.append(0)
            elif plainly and low == high == 0:
                found.append(1)
            elif (high > 1 or shortly) and self.signals.shortlist.ratio > 0:
                found.append(2)
            else:
                found.append(3 if plainly and high <= 1 and tau.ndim == 1 else 4)
        return found

    def _context(self, rows: Tensor | slice) -> None:
        if self.tokens is None:
            self._put(rows, self.signals.logits_ctx[rows])
        else:
            self._pick(rows, self.signals.logits_ctx, self.signals.blocks_ctx[rows], whole=True)

    def _memory(self, rows: Tensor | slice) -> None:
        ctx, par = self.signals.logits_ctx, self.signals.logits_par
        masked = ctx[rows, : self.signals.known].amin(-1) == -torch.inf
        if masked.any():  # for the context, maybe not for memory
            self._give(rows, par[rows].masked_fill(ctx[rows] == -torch.inf, -torch.inf))
        elif self.tokens is None:
            self._put(rows, par[rows])
        else:
            self._pick(rows, par, self.signals.blocks_par[rows], whole=True)

    def _cut(self, rows: Tensor | slice) -> None:
        """Rows of which only the shortlist is left: blocks that reach its floor, then tokens that do."""
        signals, size = self.signals, self.signals.logits_ctx.shape[1]
        surveys = signals.survey_ctx[rows], signals.survey_par[rows]
        streams = signals.logits_ctx, signals.logits_par
        whole = _numbers(rows, len(signals.logits_ctx))
        floors = [threshold(signals.shortlist, x, seen, whole) for x, seen in zip(streams, surveys, strict=True)]
        (c, p), (c_floor, p_floor) = surveys, floors
        hit = (normalised(c.blocks, c.norm) >= c_floor) | (normalised(p.blocks, p.norm) >= p_floor)
        row, block = hit.nonzero(as_tuple=True)
        at, there = columns(block, size)
        whole = whole[row]  # the same rows, numbered as in the batch
        ctx, par = (normalised(x[whole[:, None], at], seen.norm[row]) for x, seen in zip(streams, surveys, strict=True))
        keep = ((ctx >= c_floor[row]) | (par >= p_floor[row])) & (ctx > -torch.inf)
        keep = keep if there is None else keep & there
        tau = self.decision.tau
        mixed = mix(ctx, par, tau[whole][:, None] if tau.ndim == 1 else tau[whole[:, None], at])
        mixed = mixed.masked_fill(~keep, -torch.inf)
        if self.decision.scale is not None:
            mixed *= self.decision.scale[whole][:, None]
        count = len(c.peak)
        peak = torch.full((count,), -torch.inf).scatter_reduce_(0, row, mixed.amax(-1), "amax")
        total = torch.zeros(count).index_add_(0, row, (mixed - peak.clamp_min(_LEAST)[row, None]).exp_().sum(-1))
        scores = normalised(mixed, (peak + total.log())[row, None]) + c.norm[row]
        if self.tokens is None:
            self._fill(rows, -torch.inf)
            if self.scores is not None:
                where, which = keep.nonzero(as_tuple=True)
                self.scores[whole[where], at[where, which]] = scores[where, which]
            return
        peak = torch.full((count,), -torch.inf).scatter_reduce_(0, row, scores.amax(-1), "amax")
        first = at.masked_fill(scores < peak[row, None], size - 1).amin(-1)
        self.tokens[rows] = torch.full((count,), size - 1).scatter_reduce_(0, row, first, "amin")
        self.peaks[rows] = peak[:, None]

    def _mix(self, rows: Tensor | slice) -> None:
        """Rows between the streams, mixed in the gauge of raw logits: constants of a row drop out."""
        signals, known = self.signals, self.signals.known
        ctx, par = signals.logits_ctx[:, :known], signals.logits_par[:, :known]
        numbers = _numbers(rows, len(ctx))
        norm = None if self.scores is None else signals.norm_ctx  # looked at before there is scratch to be lost
        buffers = scratch(ctx, 4)
        for chunk in chunks(len(numbers), known):
            here = _together(numbers[chunk].tolist())
            a, b, mixed, mass = (buffer[: chunk.stop - chunk.start] for buffer in buffers)
            if isinstance(here, slice):
                x, y = ctx[here], par[here]
            else:
                x, y = torch.index_select(ctx, 0, here, out=a), torch.index_select(par, 0, here, out=b)
            torch.lerp(y, x, self.decision.tau[here][:, None], out=mixed)
            maxima = block_maxima(mixed)
            peak = maxima.amax(-1, keepdim=True)
            if not isfinite(peak.sum().item()):  # a token is masked somewhere, or a row broken
                self._in_full(here)
            elif self.scores is None or norm is None:
                self._pick(here, mixed, maxima)
            else:
                total = torch.sub(mixed, peak, out=mass).exp_().sum(-1, keepdim=True)
                shift = norm[here] - (peak + total.log())
                self.scores[here, :known] = mixed.add_(shift)
                self.scores[here, known:] = -torch.inf

    def _in_full(self, rows: Tensor | slice) -> None:
        """Rows for which there is no shorter way."""
        part, decision = self.signals.rows(rows), self.decision.rows(rows)
        shortlisted = None if decision.truncate is None else part.shortlisted
        streams = part.logp_ctx, part.logp_par
        fused = fuse(
            *streams,
            decision.tau,
            shortlisted=shortlisted,
            scale=decision.scale,
            truncate=decision.truncate,
            check=False,
        )
        scores = regauge(fused, part.logits_ctx, part.logits_par, part.norm_ctx, decision.tau, decision.plain())
        self._give(rows, scores)

    def _give(self, rows: Tensor | slice, scores: Tensor) -> None:
        if self.tokens is None:
            self._put(rows, scores)
        else:
            self._pick(rows, scores, block_maxima(scores))

    def _put(self, rows: Tensor | slice, scores: Tensor) -> None:
        if self.scores is not None:
            self.scores[rows] = scores

    def _fill(self, rows: Tensor | slice, value: float) -> None:
        if self.scores is not None:
            self.scores[rows] = value

    def _pick(self, rows: Tensor | slice, scores: Tensor, maxima: Tensor, whole: bool = False) -> None:
        """Choose among the scores of these rows, or among those of the `whole` batch in these rows."""
        if self.tokens is not None:
            self.tokens[rows] = favourite(scores, maxima, _numbers(rows, len(scores)) if whole else None)
            self.peaks[rows] = maxima.amax(-1, keepdim=True)


def _together(rows: Sequence[int]) -> Tensor | slice:
    """Return the slice of rows that lie side by side, of which a part is a view; other rows as an index."""
    first, last = rows[0], rows[-1]
    return slice(first, last + 1) if last - first + 1 == len(rows) else torch.tensor(rows)


def _numbers(rows: Tensor | slice, count: int) -> Tensor:
    return torch.arange(count)[rows] if isinstance(rows, slice) else rows
