"""Per-step signals of the two streams: entropies, confidence gain, divergence, margins, disagreement.

Each is computed at most once per step, as a tensor, on first use; policies and the trace read the same object. Knows
the two logit tensors of one step; knows nothing of policies, sampling or text.
"""

from __future__ import annotations

import math
from copy import copy
from functools import cached_property

import torch
from torch import Tensor

from .distributions import Shortlist, best, entropy, jensen_shannon, normalised
from .look import divergence_at_once, look, quickly
from .survey import Survey, block_maxima, divergence, favourite, few, survey

__all__ = ["LookedSignals", "Signals", "SurveyedSignals", "both", "confidence_gain"]


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

    # A look at the streams that is cheaper on some device replaces these, by stream: "ctx" or "par".

    def _norm(self, stream: str) -> Tensor:
        return self._of("logits", stream).float().logsumexp(-1, keepdim=True)

    def _entropy(self, stream: str) -> Tensor:
        return entropy(self._of("logp", stream))

    def _top(self, stream: str) -> Tensor:
        return self._of("logp", stream).argmax(-1)

    def _peak(self, stream: str) -> Tensor:
        return self._of("logp", stream).amax(-1)

    def _chances(self, stream: str, *tokens: Tensor) -> Tensor:
        """Return the log-probabilities in a stream of one token of each row or several, [B] each -> [B, n]."""
        return self._of("logp", stream).gather(-1, torch.stack(tokens, -1))

    def _divergence(self) -> Tensor:
        return jensen_shannon(self.logp_ctx, self.logp_par)

    def _of(self, name: str, stream: str) -> Tensor:
        found: Tensor = getattr(self, f"{name}_{stream}")
        return found

    @cached_property
    def norm_ctx(self) -> Tensor:
        """The logsumexp of the logits with the passages, [B, 1]."""
        return self._norm("ctx")

    @cached_property
    def logp_ctx(self) -> Tensor:
        """Log-probabilities with the passages, [B, V]."""
        return normalised(self.logits_ctx.float(), self.norm_ctx)

    @cached_property
    def norm_par(self) -> Tensor:
        """The logsumexp of the logits without the passages, [B, 1]."""
        return self._norm("par")

    @cached_property
    def logp_par(self) -> Tensor:
        """Log-probabilities without the passages, [B, V]."""
        return normalised(self.logits_par.float(), self.norm_par)

    @cached_property
    def h_ctx(self) -> Tensor:
        """Entropy with the passages, [B]."""
        return self._entropy("ctx")

    @cached_property
    def h_par(self) -> Tensor:
        """Entropy without the passages, [B]."""
        return self._entropy("par")

    @property
    def gain(self) -> Tensor:
        """Confidence gain, ``h_par - h_ctx``, [B]."""
        return self.h_par - self.h_ctx

    @cached_property
    def jsd(self) -> Tensor:
        """Jensen-Shannon divergence of the two streams, [B], at most ln 2."""
        return self._divergence()

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
        return self._top("ctx")

    @cached_property
    def top_par(self) -> Tensor:
        """The parametric stream's favourite token, [B] int64."""
        return self._top("par")

    @property
    def disagree(self) -> Tensor:
        """The two favourites differ, [B] bool."""
        return self.top_ctx != self.top_par

    @cached_property
    def margin_ctx(self) -> Tensor:
        """``log p_ctx(own favourite) - log p_ctx(memory's favourite)``, [B], >= 0."""
        return _margin(self._chances("ctx", self.top_ctx, self.top_par))

    @cached_property
    def margin_par(self) -> Tensor:
        """``log p_par(own favourite) - log p_par(the context's favourite)``, [B], >= 0: memory's surprise."""
        return _margin(self._chances("par", self.top_par, self.top_ctx))

    @cached_property
    def peak_ctx(self) -> Tensor:
        """The log-probability of the contextual favourite, [B]."""
        return self._peak("ctx")

    @cached_property
    def peak_par(self) -> Tensor:
        """The log-probability of the parametric favourite, [B]."""
        return self._peak("par")

    @cached_property
    def lead_ctx(self) -> Tensor:
        """``p_ctx(favourite) - p_ctx(second)``, [B]."""
        return _lead(self.logp_ctx)

    @cached_property
    def lead_par(self) -> Tensor:
        """``p_par(favourite) - p_par(second)``, [B]."""
        return _lead(self.logp_par)

    def rows(self, index: Tensor | slice) -> Signals:
        """Return the signals of some rows only, [R] int64 or a slice -> R rows; what is already computed is kept.

        A slice copies nothing.
        """
        part = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, (Tensor, Survey)):
                vars(part)[name] = value[index]
        return part


class SurveyedSignals(Signals):
    """The same signals on a CPU, from one look at each stream (`survey`), equal up to the rounding of a sum.

    Args:
        logits_ctx: As in `Signals`.
        logits_par: As in `Signals`.
        shortlist: As in `Signals`.
        known: Tokens from this one on are -inf in all rows that are steered. None: there are no such tokens.
    """

    def __init__(
        self, logits_ctx: Tensor, logits_par: Tensor, *, shortlist: Shortlist | None, known: int | None = None
    ) -> None:
        super().__init__(logits_ctx, logits_par, shortlist=shortlist)
        self.known = logits_ctx.shape[1] if known is None else known

    @cached_property
    def survey_ctx(self) -> Survey:
        """Of the contextual stream."""
        return self._survey("ctx")

    @cached_property
    def survey_par(self) -> Survey:
        """Of the parametric stream."""
        return self._survey("par")

    def _survey(self, stream: str) -> Survey:
        masked = self.known < self.logits_ctx.shape[1]
        if few(self.logits_ctx, 2):
            seen, count = survey(both(self.logits_ctx, self.logits_par), masked), len(self.logits_ctx)
            vars(self).update(survey_ctx=seen[:count], survey_par=seen[count:])
            return vars(self)[f"survey_{stream}"]  # type: ignore[no-any-return]
        return survey(self._of("logits", stream), masked)

    @property
    def blocks_ctx(self) -> Tensor:
        """`block_maxima` of the contextual stream; they alone need no logarithms."""
        return self._blocks("ctx")

    @property
    def blocks_par(self) -> Tensor:
        """The same of the parametric one."""
        return self._blocks("par")

    def _blocks(self, stream: str) -> Tensor:
        known = vars(self)
        if f"survey_{stream}" in known:
            return known[f"survey_{stream}"].blocks  # type: ignore[no-any-return]
        if f"maxima_{stream}" not in known:
            known[f"maxima_{stream}"] = block_maxima(known[f"logits_{stream}"])
        return known[f"maxima_{stream}"]  # type: ignore[no-any-return]

    def highest(self, stream: str) -> list[float]:
        """Return the largest logit of every row; NaN where one is."""
        seen: Survey | None = vars(self).get(f"survey_{stream}")
        found = self._blocks(stream).amax(-1) if seen is None else seen.peak[:, 0]
        return found.tolist()

    def _norm(self, stream: str) -> Tensor:
        return self._seen(stream).norm

    def _entropy(self, stream: str) -> Tensor:
        return self._seen(stream).entropy

    def _top(self, stream: str) -> Tensor:
        return favourite(self._of("logits", stream), self._blocks(stream))

    def _peak(self, stream: str) -> Tensor:
        seen = self._seen(stream)
        return (seen.peak - seen.norm)[:, 0]

    def _chances(self, stream: str, *tokens: Tensor) -> Tensor:
        return _read(self, stream, *tokens)

    def _divergence(self) -> Tensor:
        return divergence(self.logits_ctx, self.norm_ctx, self.logits_par, self.norm_par)

    def _seen(self, stream: str) -> Survey:
        return self.survey_ctx if stream == "ctx" else self.survey_par


class LookedSignals(Signals):
    """The same signals on an accelerator, from one look at both streams together; see `look`."""

    floor_ctx: Tensor
    floor_par: Tensor

    def __init__(self, logits_ctx: Tensor, logits_par: Tensor, *, shortlist: Shortlist | None = None) -> None:
        super().__init__(logits_ctx, logits_par, shortlist=shortlist)
        streams = both(logits_ctx, logits_par)
        seen = quickly(look, streams, streams, self.shortlist.k, self.shortlist.ratio)
        names = ("highest", "norm", "h", "floor", "top")
        for name, values in zip(names, seen, strict=True):
            vars(self)[f"{name}_ctx"], vars(self)[f"{name}_par"] = values.chunk(2)

    def _peak(self, stream: str) -> Tensor:
        return (self._of("highest", stream) - self._of("norm", stream))[:, 0]

    def _chances(self, stream: str, *tokens: Tensor) -> Tensor:
        return _read(self, stream, *tokens)

    def _divergence(self) -> Tensor:
        streams = (self.logits_ctx, self.norm_ctx, self.logits_par, self.norm_par)
        return quickly(divergence_at_once, self.logits_ctx, *streams)


def both(upper: Tensor, lower: Tensor) -> Tensor:
    """Return two streams below each other, [B, V] x 2 -> [2B, V]; nothing is copied where they lie so."""
    if (
        upper.untyped_storage()._cdata == lower.untyped_storage()._cdata
        and upper.is_contiguous()
        and lower.is_contiguous()
        and lower.storage_offset() == upper.storage_offset() + upper.numel()
    ):
        return upper.as_strided((2 * len(upper), upper.shape[1]), upper.stride())
    return torch.cat([upper, lower])


def _read(signals: Signals, stream: str, *tokens: Tensor) -> Tensor:
    """Return log-probabilities of single tokens without those of all others; see `Signals._chances`."""
    at = torch.stack(tokens, -1)
    return normalised(signals._of("logits", stream).gather(-1, at), signals._of("norm", stream))


def _margin(chances: Tensor) -> Tensor:
    return (chances[:, 0] - chances[:, 1]).clamp_max(-math.log(1e-30))


def _lead(logp: Tensor) -> Tensor:
    top = best(logp, 2).exp()
    return top[:, 0] - top[:, 1]
