"""Distributions over the vocabulary: log-probabilities, entropy, divergence, head sets. Float32, natural log.

Knows tensors of shape [rows, vocabulary] and nothing else: no model, no policy, no tokenizer. Every function is
free of host synchronisation, leaves its inputs untouched, and is defined where probabilities are exactly zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["entropy", "head_set", "jensen_shannon", "log_probs", "nonfinite_rows"]

# exp(-1e4) is 0 in float32, so a probability of 0 contributes exactly 0 instead of 0 * -inf = NaN.
_FLOOR = -1e4


def log_probs(logits: Tensor) -> Tensor:
    """Return log-softmax over the last dimension, in float32 whatever the input's dtype.

    Args:
        logits: Scores of any float dtype, [..., V]; -inf marks a masked token.

    Returns:
        Log-probabilities in nats, [..., V] float32; a masked token stays -inf, an all-masked row is all -inf.
    """
    scores = logits.float()
    return scores - torch.logsumexp(scores, -1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)


def entropy(logp: Tensor) -> Tensor:
    """Return Shannon entropy in nats, [..., V] -> [...]; zero-probability tokens contribute exactly 0."""
    return -(logp.exp() * logp.clamp_min(_FLOOR)).sum(-1)


def jensen_shannon(logp_a: Tensor, logp_b: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence in nats, [..., V] x 2 -> [...], in [0, ln 2]."""
    middle = (torch.logaddexp(logp_a, logp_b) - math.log(2)).clamp_min(_FLOOR)
    kl_a = (logp_a.exp() * (logp_a.clamp_min(_FLOOR) - middle)).sum(-1)
    kl_b = (logp_b.exp() * (logp_b.clamp_min(_FLOOR) - middle)).sum(-1)
    return (0.5 * (kl_a + kl_b)).clamp(0.0, math.log(2))


def head_set(logp: Tensor, k: int, ratio: float) -> Tensor:
    """Return the mask of a stream's plausible tokens: its `k` best, and any with p >= ratio * max p.

    This is the head of the released CK-PLUG code, ``{x : log p(x) >= min(log p of rank k, max log p + ln ratio)}``;
    ``ratio=0`` admits every token.

    Args:
        logp: Log-probabilities, [B, V].
        k: Rank that is always admitted.
        ratio: Share of the best probability that is always admitted.

    Returns:
        Boolean mask, [B, V].
    """
    if ratio == 0:
        return torch.ones_like(logp, dtype=torch.bool)
    best = logp.topk(min(k, logp.shape[-1]), dim=-1).values
    threshold = torch.minimum(best[..., -1:], best[..., :1] + math.log(ratio))
    return logp >= threshold


def nonfinite_rows(logits: Tensor) -> Tensor:
    """Return which rows hold NaN or +inf, or no finite value at all: [B, V] -> [B] bool, one reduction."""
    peak = logits.amax(-1)  # amax propagates NaN
    return ~((peak < math.inf) & (peak > -math.inf))
