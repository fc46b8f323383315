"""How an answer reads, whatever it says: repetition, length, ending, surprise; and whether the context was taken up.

Knows texts, token records and verdicts; the rest of the package averages what this gives for one sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .verdict import Verdict
from .word_spans import words

__all__ = ["ended", "ignorance", "over_inclusion", "repeated_ngrams", "surprise"]


def repeated_ngrams(text: str, size: int = 4) -> float | None:
    """Return the share of n-grams of words that occurred before in `text`; None where there is no n-gram.

    ``1 - distinct / all``, on words without case, so tokenizers can be compared (Welleck et al., 2020, take tokens).

    Raises:
        ValueError: `size` is below 1.

    Example:
        >>> repeated_ngrams("so it is and so it is and so it is"), repeated_ngrams("Rome")
        (0.5, None)
    """
    if size < 1:
        raise ValueError(f"size={size} is no length of an n-gram. Give 1 or more.")
    said = [word.forms[0] for word in words(text)]
    grams = list(zip(*(said[shift:] for shift in range(size)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else None


def surprise(tokens: Mapping[str, Any] | None, stream: str = "logp_par") -> tuple[float, int]:
    """Return the summed negative log-probability (nats) and the number of tokens it is the sum of.

    ``exp(sum / number)`` is the perplexity of an answer, by default in the model's own closed-book stream, which the
    published comparisons lack. Tokens without a finite value (an untraced stream) are left out; nothing gives (0, 0).
    """
    values = [value for value in (tokens or {}).get(stream, ()) if value is not None and abs(value) < float("inf")]
    return -float(sum(values)), len(values)


def ended(sample: Mapping[str, Any]) -> bool:
    """Tell whether an answer came to its own end rather than to the limit of tokens."""
    return bool(sample["finish"] == "stop")


def ignorance(found: Verdict) -> bool:
    """Contextual ignorance (KnowPO, Zhang et al., 2024): the passages were right and the answer is not theirs.

    Meant for the states helpful and agree.
    """
    return found.source not in ("contextual", "both")


def over_inclusion(found: Verdict) -> bool:
    """Contextual over-inclusion (KnowPO, Zhang et al., 2024): an answer out of passages that are beside the question.

    Meant for the state irrelevant, where the contextual answers are those of the passages to another question.
    """
    return found.source == "contextual"
