"""Per-step signals of the two streams: entropies, confidence gain, divergence, margins, disagreement.

Each is computed at most once per step, as a tensor, on first use; policies and the trace read the same object. Knows
the two logit tensors of one step; knows nothing of policies, sampling or text.
"""

from __future__ import annotations

import math
from functools import cached_property

from torch import Tensor

from .distributions import Shortlist, entropy, jensen_shannon, log_probs, normalised

__all__ = ["Signals", "confidence_gain"]


def confidence_gain(logp_par: Tensor, logp_ctx: Tensor) -> Tensor:
    """Return CK-PLUG's Confidence Gain, ``H(p_par) - H(p_ctx)`` in nats (arXiv 2503.15888, Eq. 4; there in bits).

    Args:
        logp_par: Log-probabilities without the passages, [B, V].
        logp_ctx: Log-probabilities with them, [B, V].

    Returns:
        [B] float32. Negative: the passages made the model less sure, which the paper reads as a conflict.
    """
    return entropy(logp_par) - entropy(logp_ctx)


class Signals:
    """What both streams say about the next token of every row. All values are in nats, float32, shape [B] or [B, V].

    Args:
        logits_ctx: Last-position logits with the passages, [B, V] float32.
        logits_par: The same without them.
        candidates: k of the shortlist, where `shortlist` is not given.
        candidate_ratio: Its ratio, likewise.
        shortlist: Which tokens of a stream are plausible.
    """

    def __init__(
        self,
        logits_ctx: Tensor,
        logits_par: Tensor,
        candidates: int = 10,
        candidate_ratio: float = 0.01,
        *,
        shortlist: Shortlist | None = None,
    ) -> None:
        self.logits_ctx = logits_ctx
        self.logits_par = logits_par
        self.shortlist = shortlist or Shortlist(candidates, candidate_ratio)

    @cached_property
    def norm_ctx(self) -> Tensor:
        """The logsumexp of the logits with the passages, [B, 1]."""
        return self.logits_ctx.float().logsumexp(-1, keepdim=True)

    @cached_property
    def logp_ctx(self) -> Tensor:
        """Log-probabilities with the passages, [B, V]."""
        return normalised(self.logits_ctx.float(), self.norm_ctx)

    @cached_property
    def logp_par(self) -> Tensor:
        """Log-probabilities without the passages, [B, V]."""
        return log_probs(self.logits_par)

    @cached_property
    def h_ctx(self) -> Tensor:
        """Entropy with the passages, [B]."""
        return entropy(self.logp_ctx)

    @cached_property
    def h_par(self) -> Tensor:
        """Entropy without the passages, [B]."""
        return entropy(self.logp_par)

    @property
    def gain(self) -> Tensor:
        """Confidence gain, ``h_par - h_ctx``, [B]."""
        return self.h_par - self.h_ctx

    @cached_property
    def jsd(self) -> Tensor:
        """Jensen-Shannon divergence of the two streams, [B], at most ln 2."""
        return jensen_shannon(self.logp_ctx, self.logp_par)

    @cached_property
    def shortlisted(self) -> Tensor:
        """Union of the two streams' shortlists, [B, V] bool."""
        return self.shortlist.mask(self.logp_ctx) | self.shortlist.mask(self.logp_par)

    @property
    def head(self) -> Tensor:
        """The older name of `shortlisted`."""
        return self.shortlisted

    @property
    def candidates(self) -> int:
        """The shortlist's k."""
        return self.shortlist.k

    @property
    def candidate_ratio(self) -> float:
        """The shortlist's ratio."""
        return self.shortlist.ratio

    @cached_property
    def top_ctx(self) -> Tensor:
        """The contextual stream's favourite token, [B] int64."""
        return self.logp_ctx.argmax(-1)

    @cached_property
    def top_par(self) -> Tensor:
        """The parametric stream's favourite token, [B] int64."""
        return self.logp_par.argmax(-1)

    @property
    def disagree(self) -> Tensor:
        """The two favourites differ, [B] bool."""
        return self.top_ctx != self.top_par

    @cached_property
    def margin_ctx(self) -> Tensor:
        """``log p_ctx(own favourite) - log p_ctx(memory's favourite)``, [B], >= 0."""
        return self._margin(self.logp_ctx, self.top_ctx, self.top_par)

    @cached_property
    def margin_par(self) -> Tensor:
        """``log p_par(own favourite) - log p_par(the context's favourite)``, [B], >= 0: memory's surprise."""
        return self._margin(self.logp_par, self.top_par, self.top_ctx)

    @staticmethod
    def _margin(logp: Tensor, own: Tensor, other: Tensor) -> Tensor:
        return (logp.gather(-1, own[:, None]) - logp.gather(-1, other[:, None]))[:, 0].clamp_max(-math.log(1e-30))

    def rows(self, index: Tensor | slice) -> Signals:
        """Return the signals of some rows only, [R] int64 or a slice -> R rows; what is already computed is kept.

        A slice copies nothing.
        """
        part = Signals(self.logits_ctx[index], self.logits_par[index], shortlist=self.shortlist)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in ("logits_ctx", "logits_par"):
                vars(part)[name] = value[index]
        return part
