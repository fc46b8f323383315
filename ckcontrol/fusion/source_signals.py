"""What several sources say about the next token of every row; the signals of two of them are `signals.Signals`.

Each is computed at most once per step, on first use. Knows the logits of one step and which source is which; knows
nothing of policies, sampling or text.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .distributions import Shortlist, entropy, nonfinite_rows, normalised
from .signals import Signals, SurveyedSignals
from .survey import Survey, survey

__all__ = ["SourceSignals"]


class SourceSignals:
    """The sources of one step, in order: memory, those with passages of their own, and last all passages together.

    Args:
        logits: Of the last position of every source, [S, B, V] float32, contiguous.
        shares: What each source with passages counts among these, [S, B]; of a row they sum to 1, or are 0 where it has
            none. 0 for memory and for all.
        present: Which sources a row has, [S, B] bool; what stands in the others means nothing.
        shortlist: Which tokens of a source are plausible.
        known: Tokens from this one on are -inf in all rows that are steered. None: there are no such tokens.
    """

    def __init__(
        self,
        logits: Tensor,
        shares: Tensor,
        present: Tensor,
        *,
        shortlist: Shortlist | None = None,
        known: int | None = None,
    ) -> None:
        self.logits, self.shares, self.present = logits, shares, present
        self.shortlist = shortlist or Shortlist()
        self.known = logits.shape[-1] if known is None else known

    @cached_property
    def _survey(self) -> Survey:
        return survey(self.logits.flatten(0, 1), self.known < self.logits.shape[-1])

    @property
    def _surveys(self) -> bool:
        return self.logits.device.type == "cpu"

    @cached_property
    def norm(self) -> Tensor:
        """The logsumexp of every source's logits, [S, B, 1]."""
        if self._surveys:
            return self._survey.norm.view(*self.logits.shape[:2], 1)
        return self.logits.logsumexp(-1, keepdim=True)

    @cached_property
    def logp(self) -> Tensor:
        """Log-probabilities, [S, B, V]."""
        return normalised(self.logits, self.norm)

    @cached_property
    def h(self) -> Tensor:
        """Entropy of every source, [S, B], in nats."""
        return self._survey.entropy.view(self.logits.shape[:2]) if self._surveys else entropy(self.logp)

    @property
    def gains(self) -> Tensor:
        """Confidence gain of every source over memory, ``h[0] - h``, [S, B]; see `signals.confidence_gain`."""
        return self.h[0] - self.h

    @cached_property
    def broken(self) -> Tensor:
        """Which sources of a row hold NaN, +inf or nothing finite, [S, B] bool."""
        if self._surveys:
            return self._survey.broken().view(self.logits.shape[:2]) & self.present
        return nonfinite_rows(self.logits) & self.present

    def shortlisted(self, takes_part: Tensor) -> Tensor:
        """Return the union of the shortlists of the sources that take part, [S, B] bool -> [B, V] bool."""
        masks = [self.shortlist.mask(one) & part[:, None] for one, part in zip(self.logp, takes_part, strict=True)]
        return torch.stack(masks).any(0)

    def pair(self, place: int) -> Signals:
        """Return the signals of a source and memory, as of a pair of streams."""
        logits = self.logits[place], self.logits[0]
        if not self._surveys:
            return Signals(*logits, shortlist=self.shortlist)
        made, rows = SurveyedSignals(*logits, shortlist=self.shortlist, known=self.known), self.logits.shape[1]
        vars(made).update(
            survey_ctx=self._survey[slice(place * rows, (place + 1) * rows)], survey_par=self._survey[slice(0, rows)]
        )
        return made
