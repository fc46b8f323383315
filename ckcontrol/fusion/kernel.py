"""The one equation of the library: ``log q = s * [tau * log p_ctx + (1 - tau) * log p_par] + const``.

Of several sources it is ``log q = s * sum_i w_i log p_i + const`` with ``sum_i w_i = 1``, see `blend`; two are its
special case, w = (1 - tau, tau). Knows distributions and exponents per row; knows nothing of why those were chosen
(policies) or where the distributions came from (streams). CAD, AdaCAD, COIECD, ACD, ARR and CK-PLUG are all choices of
tau.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ControlError, NonFiniteLogits
from .distributions import log_probs, nonfinite_rows

__all__ = ["average", "blend", "choose", "fuse", "mix", "regauge", "regauge_sources"]


def fuse(
    logp_ctx: Tensor,
    logp_par: Tensor,
    tau: Tensor | float,
    *,
    shortlisted: Tensor | None = None,
    scale: Tensor | None = None,
    truncate: Tensor | None = None,
    check: bool = True,
    head: Tensor | None = None,
) -> Tensor:
    """Fuse two distributions into one.

    Order of operations: mix; restore the exact ends (tau = 1 copies `logp_ctx`, tau = 0 copies `logp_par`); apply
    the shortlist to rows that amplify (tau > 1) or ask for truncation; mask what the context masked; multiply by
    `scale`; normalise. Rows that are exact copies and not truncated or scaled are returned bit for bit.

    Args:
        logp_ctx: Log-probabilities with the passages, [B, V]; upcast to float32, never modified.
        logp_par: Log-probabilities without them, [B, V].
        tau: Exponent of the context: a number, [B], or [B, V] for policies that mix within a step. 1 = context,
            0 = memory, between = interpolation, above = amplified context.
        shortlisted: Tokens that may win where context is amplified, [B, V] bool; see `Shortlist`. Required where
            tau > 1: an unbounded ratio on a token that both streams find absurd would win otherwise.
        scale: s, the inverse temperature some papers couple to their knob, [B]; None means 1.
        truncate: Rows to cut to the shortlist although tau <= 1, [B] bool (the released CK-PLUG code does this).
        check: Verify the inputs. This synchronises with the device; the loop checks for itself and passes False.
        head: The older name of `shortlisted`.

    Returns:
        Normalised log-probabilities, [B, V] float32. A token at -inf in `logp_ctx` stays -inf. A token at -inf only
        in `logp_par` is -inf for 0 < tau < 1 and keeps its contextual score for tau > 1, where the ratio has no
        meaning. Never NaN.

    Raises:
        NonFiniteLogits: A row holds NaN, +inf or nothing finite (`check` only; step is 0).
        ControlError: tau is negative or NaN, or exceeds 1 without a shortlist (`check` only).
    """
    ctx, par = logp_ctx.float(), logp_par.float()
    tau = torch.as_tensor(tau, dtype=torch.float32, device=ctx.device)
    shortlisted = head if shortlisted is None else shortlisted
    if check:
        _check(ctx, par, tau, shortlisted)
    if tau.ndim < 2:
        tau = tau.expand(ctx.shape[0])[:, None]  # [B, 1]
    banned = ctx == -math.inf

    mixed = mix(ctx, par, tau)
    copied = ((tau == 1).all(-1) | (tau == 0).all(-1))[:, None]  # [B, 1]
    if shortlisted is not None:
        cut = (tau > 1).any(-1, keepdim=True)
        if truncate is not None:
            cut = cut | truncate[:, None]
            copied = copied & ~truncate[:, None]
        banned = banned | (cut & ~shortlisted)
    mixed = mixed.masked_fill(banned, -math.inf)
    if scale is not None:
        mixed = mixed * scale[:, None]
        copied = copied & (scale == 1)[:, None]
    return choose(copied, mixed, log_probs(mixed))


def blend(
    logp: Tensor,
    weights: Tensor,
    *,
    shortlisted: Tensor | None = None,
    scale: Tensor | None = None,
    truncate: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Fuse the distributions of several sources into one: ``log q = s * sum_i w_i log p_i + const``.

    The order of operations is that of `fuse`, which this is for S = 2 and weights (1 - tau, tau), bit for bit. A source
    of weight 0 takes no part, whatever it says. Where one has weight 1 and the others 0 it is copied, bit for bit.

    Args:
        logp: Log-probabilities of every source, [S, B, V]; upcast to float32, never modified. The last one leads: what
            it masks stays masked.
        weights: They sum to 1 over the sources, [S, B], or [S, B, V] where tokens differ; below 0: turned away from.
        shortlisted: Tokens that may win in rows with a weight below 0, [B, V] bool: the union of the shortlists of the
            sources that take part. Required there.
        scale: As in `fuse`.
        truncate: As in `fuse`.
        check: As in `fuse`.

    Returns:
        Normalised log-probabilities, [B, V] float32. A token at -inf in a source of positive weight is -inf. At -inf in
        one of negative weight the ratio has no meaning: that source leaves, and the weights of the others are scaled to
        sum to 1. Never NaN.

    Raises:
        NonFiniteLogits: A row of a source holds NaN, +inf or nothing finite (`check` only; step is 0).
        ControlError: Weights are not finite, do not sum to 1, or lie below 0 without a shortlist (`check` only).
    """
    logp = logp.float()
    w = weights.float() if weights.ndim == 3 else weights.float()[..., None]
    if check:
        _check_sources(logp, w, shortlisted)
    banned = logp[-1] == -math.inf
    mixed = _weighed(logp, w)
    copied = ((w == 1) | (w == 0)).all(0).all(-1, keepdim=True)  # [B, 1]
    if shortlisted is not None:
        cut = (w < 0).any(0).any(-1, keepdim=True)
        if truncate is not None:
            cut = cut | truncate[:, None]
            copied = copied & ~truncate[:, None]
        banned = banned | (cut & ~shortlisted)
    mixed = mixed.masked_fill(banned, -math.inf)
    if scale is not None:
        mixed = mixed * scale[:, None]
        copied = copied & (scale == 1)[:, None]
    return choose(copied, mixed, log_probs(mixed))


def average(logp: Tensor, weights: Tensor, *, check: bool = True) -> Tensor:
    """Average the probabilities of several sources instead: ``q = sum_i w_i p_i``, as REPLUG and FuseLLM do.

    Args:
        logp: As in `blend`.
        weights: They sum to 1 over the sources and none is below 0, [S, B].
        check: As in `blend`.

    Returns:
        Log-probabilities, [B, V] float32; a unit weight is an exact copy. What the last source masks stays masked.

    Raises:
        NonFiniteLogits: As in `blend`.
        ControlError: Weights are not finite, below 0, or do not sum to 1 (`check` only).
    """
    logp, w = logp.float(), weights.float()[..., None]
    if check:
        _check_sources(logp, w, None)
    banned = logp[-1] == -math.inf
    mixed = torch.logsumexp(logp + w.log(), 0).masked_fill(banned, -math.inf)
    held = torch.where(w == 1, logp, 0.0).sum(0).masked_fill(banned, -math.inf)
    return choose((w == 1).any(0), held, log_probs(mixed))


def _weighed(logp: Tensor, w: Tensor) -> Tensor:
    """Return ``sum_i w_i log p_i``, [S, B, V] x [S, B, 1 or V] -> [B, V], without NaN where a source is at -inf."""
    low = logp == -math.inf
    if logp.device.type != "cpu" or torch.compiler.is_compiling() or len(low.flatten(1).any(-1).nonzero()):
        gone = low & (w < 0)
        held = w.masked_fill(gone, 0.0)
        w = torch.where(gone.any(0), held / held.sum(0), w)
        logp = torch.where(w == 0, 0.0, logp)
    mixed = w[0] * logp[0]
    for part, values in zip(w[1:], logp[1:], strict=True):
        mixed = mixed + part * values
    return mixed


def regauge(
    fused: Tensor, logits_ctx: Tensor, logits_par: Tensor, norm_ctx: Tensor, tau: Tensor, plain: Tensor
) -> Tensor:
    """Give fused log-probabilities the offset of raw logits, so that penalties act on the scale they are made for.

    Rows at tau = 1 (or 0) that are `plain`, [B] bool, get that stream's logits back, bit for bit.
    """
    tau = tau if tau.ndim == 2 else tau[:, None]
    scores = fused + norm_ctx
    for value, logits in ((1, logits_ctx), (0, logits_par)):
        copied = plain & (tau == value).all(-1)
        scores = choose(copied[:, None], logits, scores)
    return scores.masked_fill(logits_ctx == -math.inf, -math.inf)


def regauge_sources(fused: Tensor, logits: Tensor, norm: Tensor, weights: Tensor, plain: Tensor) -> Tensor:
    """Do the same for `blend` and `average`: [B, V] of logits [S, B, V], in the gauge of the last; `norm` is its
    logsumexp, [B, 1]. Rows of one unit weight that are `plain` get that source's logits back, bit for bit.
    """
    scores = fused + norm
    w = weights if weights.ndim == 3 else weights[..., None]
    alone = plain & ((w == 1) | (w == 0)).all(0).all(-1)
    for part, rows in zip(w, logits, strict=True):
        scores = choose((alone & (part == 1).all(-1))[:, None], rows, scores)
    return scores.masked_fill(logits[-1] == -math.inf, -math.inf)


def mix(ctx: Tensor, par: Tensor, tau: Tensor) -> Tensor:
    """Return ``tau * ctx + (1 - tau) * par`` of log-probabilities, exact at 0 and 1; the context's own where tau > 1
    and memory finds a token impossible. All broadcast against each other.
    """
    mixed = tau * ctx + (1 - tau) * par
    mixed = choose((par == -math.inf) & (tau > 1), ctx, mixed)
    mixed = choose(tau == 1, ctx, mixed)
    return choose(tau == 0, par, mixed)


def choose(where: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``torch.where(where, a, b)``; on a CPU, which need not wait to know, `b` itself if nothing is chosen."""
    if where.device.type == "cpu" and not torch.compiler.is_compiling() and not len(where.any(-1).nonzero()):
        return b
    return torch.where(where, a, b)


def _check(ctx: Tensor, par: Tensor, tau: Tensor, shortlisted: Tensor | None) -> None:
    for name, stream in (("contextual", ctx), ("parametric", par)):
        bad = nonfinite_rows(stream)
        if bad.any():
            raise NonFiniteLogits(int(bad.nonzero()[0]), 0, name)
    if not bool((tau >= 0).all()):
        raise ControlError("tau is negative or NaN.", "Use 0 (memory) to 1 (context), or above to amplify context.")
    if shortlisted is None and bool((tau > 1).any()):
        raise ControlError(
            f"tau={float(tau.max()):g} amplifies the context without a shortlist.",
            "Pass shortlisted=Shortlist(10, 0.01).mask(logp_ctx) | Shortlist(10, 0.01).mask(logp_par).",
        )


def _check_sources(logp: Tensor, w: Tensor, shortlisted: Tensor | None) -> None:
    for i, stream in enumerate(logp):
        bad = nonfinite_rows(stream)
        if bad.any():
            raise NonFiniteLogits(int(bad.nonzero()[0]), 0, f"source {i}")
    total = w.sum(0)
    if not bool(((total - 1).abs() <= 1e-4 * (1 + w.abs().sum(0))).all()):
        raise ControlError(f"the weights of the sources sum to {float(total.flatten()[0]):g}.", "Make them sum to 1.")
    if shortlisted is None and bool((w < 0).any()):
        raise ControlError(
            f"weight {float(w.min()):g} turns away from a source without a shortlist.",
            "Pass shortlisted=, the union of Shortlist(10, 0.01).mask(logp) over the sources.",
        )
