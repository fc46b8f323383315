"""Figures as rows of results.json: an estimate or a difference to JSON values, and back.

Knows names and numbers; knows no sample and no file. Numbers are rounded to 6 decimals here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .intervals import Difference, Estimate, holm

__all__ = [
    "Line",
    "difference_row",
    "estimate_row",
    "number",
    "read_difference",
    "read_estimate",
    "rounded",
    "with_holm",
]

Line = dict[str, Any]
_NUMBERS = {"difference": "value", "low": "low", "high": "high", "p": "p"}
_COUNTS = ("n", "groups", "up", "down", "ties")


def rounded(value: float) -> float | None:
    """Return a number as it is written: 6 decimals, no negative zero, None for NaN and infinity."""
    return round(float(value), 6) + 0.0 if math.isfinite(value) else None


def number(value: Any) -> float:
    """Return a finite float, NaN for anything else: null, a word, infinity, true."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else math.nan


def estimate_row(found: Estimate) -> Line:
    """Return an estimate as results.json holds it: without its groups."""
    return {**{name: rounded(getattr(found, name)) for name in ("value", "low", "high")}, "n": found.n}


def read_estimate(row: Any) -> Estimate | None:
    """Return the estimate of a row; None where there is no row, or no value in it."""
    if not isinstance(row, Mapping) or math.isnan(number(row.get("value"))):
        return None
    value, low, high = (number(row.get(name)) for name in ("value", "low", "high"))
    return Estimate(value, low, high, int(row.get("n") or 0))


def difference_row(found: Difference) -> Line:
    """Return a difference as results.json holds it: without its two sides and before any correction."""
    numbers = {name: rounded(getattr(found, field)) for name, field in _NUMBERS.items()}
    return {**numbers, **{name: getattr(found, name) for name in _COUNTS}}


def read_difference(row: Mapping[str, Any]) -> Difference:
    """Return the difference of a row; NaN and 0 for what is not in it."""
    a, b, p_holm = (number(row.get(name)) for name in ("a", "b", "p_holm"))
    value, low, high, p = (number(row.get(name)) for name in _NUMBERS)
    n, groups, up, down, ties = (int(row.get(name) or 0) for name in _COUNTS)
    return Difference(a, b, value, low, high, p, n, groups, up, down, ties, p_holm)


def with_holm(rows: Sequence[Line]) -> list[Line]:
    """Return rows with `p_holm`: p corrected for the number of rows of the same task, state and metric."""
    families: dict[tuple[str, str, str], list[int]] = {}
    for place, row in enumerate(rows):
        families.setdefault((row["task"], row["state"], row["metric"]), []).append(place)
    corrected: dict[int, float] = {}
    for members in families.values():
        corrected |= dict(zip(members, holm([number(rows[i]["p"]) for i in members]), strict=True))
    return [{**row, "p_holm": rounded(corrected[place])} for place, row in enumerate(rows)]
