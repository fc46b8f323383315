"""Distributions over the vocabulary: log-probabilities, entropy, divergence, shortlists. Float32, natural log.

Knows tensors of shape [rows, vocabulary] and nothing else: no model, no policy, no tokenizer. Every function is
free of host synchronisation, leaves its inputs untouched, and is defined where probabilities are exactly zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Shortlist",
    "best",
    "entropy",
    "first_max",
    "head_set",
    "jensen_shannon",
    "log_probs",
    "nonfinite_rows",
    "normalised",
]

# exp(-1e4) is 0 in float32, so a probability of 0 contributes exactly 0 instead of 0 * -inf = NaN.
FLOOR = -1e4
BLOCK = 64


def log_probs(logits: Tensor) -> Tensor:
    """Return log-softmax over the last dimension, in float32 whatever the input's dtype.

    Args:
        logits: Scores of any float dtype, [..., V]; -inf marks a masked token.

    Returns:
        Log-probabilities in nats, [..., V] float32; a masked token stays -inf, an all-masked row is all -inf.
    """
    scores = logits.float()
    return normalised(scores, torch.logsumexp(scores, -1, keepdim=True))


def normalised(scores: Tensor, norm: Tensor) -> Tensor:
    """Return `log_probs` of float32 scores whose logsumexp, [..., 1], is known."""
    return scores - norm.clamp_min(torch.finfo(torch.float32).min)


def entropy(logp: Tensor) -> Tensor:
    """Return Shannon entropy in nats, [..., V] -> [...]; zero-probability tokens contribute exactly 0."""
    return -(logp.exp() * logp.clamp_min(FLOOR)).sum(-1)


def jensen_shannon(logp_a: Tensor, logp_b: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence in nats, [..., V] x 2 -> [...], in [0, ln 2]."""
    middle = (torch.logaddexp(logp_a, logp_b) - math.log(2)).clamp_min(FLOOR)
    kl_a = (logp_a.exp() * (logp_a.clamp_min(FLOOR) - middle)).sum(-1)
    kl_b = (logp_b.exp() * (logp_b.clamp_min(FLOOR) - middle)).sum(-1)
    return (0.5 * (kl_a + kl_b)).clamp(0.0, math.log(2))


@dataclass(frozen=True, order=True)
class Shortlist:
    """The tokens of a stream that are plausible at all: its `k` best, and any with p >= ratio * max p.

    The released CK-PLUG code calls it the head: ``{x : log p(x) >= min(log p of rank k, max log p + ln ratio)}``.

    Attributes:
        k: Rank up to which a token is always admitted.
        ratio: Share of the best probability from which a token is always admitted; 0 admits every token.
    """

    k: int = 10
    ratio: float = 0.01

    def mask(self, logp: Tensor) -> Tensor:
        """Return which tokens are on the shortlist, log-probabilities [B, V] -> [B, V] bool."""
        if self.ratio == 0:
            return torch.ones_like(logp, dtype=torch.bool)
        first = best(logp, min(self.k, logp.shape[-1]))
        threshold = torch.minimum(first[..., -1:], first[..., :1] + math.log(self.ratio))
        return logp >= threshold


def head_set(logp: Tensor, k: int, ratio: float) -> Tensor:
    """Return ``Shortlist(k, ratio).mask(logp)``; the older name of the same thing."""
    return Shortlist(k, ratio).mask(logp)


def best(logp: Tensor, k: int) -> Tensor:
    """Return the k largest values of each row, [B, V] -> [B, k], the largest first.

    On a CPU, where selecting from a whole vocabulary is slow, from the k blocks with the largest maxima: no other block
    can hold more than ties of theirs.
    """
    size = logp.shape[-1]
    if logp.device.type == "cpu" and logp.ndim == 2 and size % BLOCK == 0 and k <= size // BLOCK:
        blocks = logp.reshape(-1, size // BLOCK, BLOCK)
        at = blocks.amax(-1).topk(k, dim=-1, sorted=False).indices
        logp = blocks.gather(1, at[..., None].expand(-1, -1, BLOCK)).flatten(1)
    return logp.topk(k, dim=-1).values


def first_max(scores: Tensor) -> Tensor:
    """Return ``scores.argmax(-1)``, [B, V] -> [B] int64: the first of equals, NaN above all; quickly on a CPU."""
    size = scores.shape[-1]
    if scores.device.type != "cpu" or size % BLOCK:
        return scores.argmax(-1)
    blocks = scores.reshape(-1, size // BLOCK, BLOCK)
    at = blocks.amax(-1).argmax(-1, keepdim=True)
    return at[:, 0] * BLOCK + blocks.gather(1, at[..., None].expand(-1, -1, BLOCK))[:, 0].argmax(-1)


def nonfinite_rows(logits: Tensor) -> Tensor:
    """Return which rows hold NaN or +inf, or no finite value at all: [B, V] -> [B] bool, one reduction."""
    return ~(logits.amax(-1).abs() < math.inf)  # amax propagates NaN
