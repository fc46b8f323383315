"""Which source an answer followed: text matching, the four conflict rates, and an interval for a rate.

Pure Python on strings and booleans; knows neither models nor data sets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ckcontrol.rates import wilson
from ckcontrol.word_spans import content, mentions

__all__ = ["Conflict", "mentions", "normalize", "wilson"]


def normalize(text: str) -> str:
    """Return `text` in lower case without diacritics, punctuation, articles and extra spaces.

    These are the words that verdicts compare, see `words` in word_spans.py: apostrophes and the dots of initials
    vanish; every other mark becomes a space, so that "Port-au-Prince" and "Port au Prince" agree; numbers keep their
    decimal point alone. Letters of other scripts stay.

    Example:
        >>> normalize("The U.S. took N'Djaména, São-Tomé, 1,500km.")
        'us took ndjamena sao tome 1500 km'
    """
    return " ".join(word.forms[0] for word in content(text))


@dataclass(frozen=True)
class Conflict:
    """Rates over answers to questions whose passage contradicts the model's memory.

    `parr` and `conr` are the published definitions and overlap: an answer that names both counts in both, as
    `both` tells. ``parr + conr - both + neither == 1``. All rates are NaN when n is 0.

    Attributes:
        n: Number of answers.
        parr: Share that names the parametric answer (ParR).
        conr: Share that names the contextual answer (ConR).
        mr: Memorisation ratio, ``parr / (parr + conr)``; NaN if neither is ever named. It hides the answers
            that name neither, so read it beside `neither`.
        both: Share that names both.
        neither: Share that names neither.
    """

    n: int
    parr: float
    conr: float
    mr: float
    both: float
    neither: float

    @classmethod
    def from_hits(cls, hits: Iterable[tuple[bool, bool]]) -> Conflict:
        """Count the answers, each given as ``(parametric answer named, contextual answer named)``.

        Example:
            >>> Conflict.from_hits([(True, False), (True, True), (False, True), (False, False)])
            Conflict(n=4, parr=0.5, conr=0.5, mr=0.5, both=0.25, neither=0.25)
        """
        named = [(bool(par), bool(ctx)) for par, ctx in hits]
        n = len(named)
        par = sum(p for p, _ in named)
        ctx = sum(c for _, c in named)

        def share(count: int, of: int) -> float:
            return count / of if of else math.nan

        return cls(
            n=n,
            parr=share(par, n),
            conr=share(ctx, n),
            mr=share(par, par + ctx),
            both=share(sum(p and c for p, c in named), n),
            neither=share(sum(not p and not c for p, c in named), n),
        )
