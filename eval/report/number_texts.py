"""Figures in words: percentages, intervals, differences, counts.

Knows numbers; knows nothing of HTML. A missing value is a dash, never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..figures.intervals import Estimate

__all__ = ["LABELS", "MISSING", "interval", "listed", "n_of", "percent", "plain", "points", "titled"]

MISSING = "–"
LABELS = {
    "mr": "memory ratio",
    "parr": "memory's answer",
    "conr": "the passages' answer",
    "accuracy": "accuracy",
    "neither": "neither",
}


def titled(metric: str) -> str:
    """Return a metric as a table is headed: "memory's answer (parr)"; its name where it has no other words."""
    label = LABELS.get(metric, metric)
    return label if label == metric else f"{label} ({metric})"


def percent(value: float | None) -> str:
    """Return a share as a percentage with one decimal, without the sign: "81.2"."""
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.1f}"


def interval(estimate: Estimate | None) -> str:
    """Return "[70.1, 90.3]" in percent; empty where either end is missing."""
    if estimate is None or math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    return f"[{percent(estimate.low)}, {percent(estimate.high)}]"


def plain(value: float) -> str:
    """Return a figure that is not a share, with three significant places."""
    return MISSING if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}".replace("-", "−")


def points(difference: float | None) -> str:
    """Return a difference in percentage points, signed: "+3.1", "−12.0", "0.0"."""
    if difference is None or math.isnan(difference):
        return MISSING
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def n_of(n: int) -> str:
    """Return "n = 177", which no line break parts."""
    return f"n\u00a0=\u00a0{n}"


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
