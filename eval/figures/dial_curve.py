"""What a dial does over its whole range: its reach, its order, how near its ends come to the model's own, its cost.

Knows figures at each alpha; knows no samples. alpha runs from context (0) to memory (1), and so should the
memorisation ratio. Figures that are unknown are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isnan
from typing import Any

from .intervals import Estimate

__all__ = ["HARM_STATES", "area_gap", "harm", "spearman", "summary", "violations"]

HARM_STATES = ("agree", "helpful", "irrelevant")  # where the passages are no reason to lose accuracy


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return the rank correlation, ties at their mean rank; None below 3 points or where one side is constant.

    Example:
        >>> spearman([0, 0.5, 1], [0.1, 0.4, 0.9]), spearman([0, 0.5, 1], [0.4, 0.4, 0.4])
        (1.0, None)
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} numbers cannot be paired. Give as many of both.")
    a, b = _centred_ranks(x), _centred_ranks(y)
    size = sum(v * v for v in a) * sum(v * v for v in b)
    return sum(v * w for v, w in zip(a, b, strict=True)) / size**0.5 if len(x) > 2 and size else None


def violations(values: Sequence[float]) -> int:
    """Return how many steps go down. It counts noise too: read it beside the intervals.

    Example:
        >>> violations([0.1, 0.3, 0.2, 0.2, 0.9])
        1
    """
    return sum(after < before - 1e-12 for before, after in pairwise(values))


def area_gap(points: Sequence[tuple[float, float]], memory: float, context: float) -> float | None:
    """Return the share of the way between the model's own ends that the dial does not cover.

    In the plane of (share contextual, share parametric), the ideal dial moves along the line from (context, 0), all
    the model can take from a passage, to (0, memory), all it knows. The points span an area with the origin, and so
    does that line; the result is 1 minus the ratio of the two. 0: both ceilings are reached and nothing is lost on the
    way; 1: the dial moves nothing; below 0: better than the ceilings. A way back takes area off again, and answers
    that name neither pull the points towards the origin.

    Args:
        points: (conr, parr) in the order of alpha.
        memory: Accuracy without passages.
        context: Accuracy with right passages.

    Returns:
        None below 2 points, or where a ceiling is 0.

    Example:
        >>> area_gap([(0.8, 0.0), (0.0, 0.5)], memory=0.5, context=0.8), area_gap([(0.4, 0.2)] * 3, 0.5, 0.8)
        (0.0, 1.0)
    """
    if len(points) < 2 or memory <= 0 or context <= 0:
        return None
    swept = sum(c * q - d * p for (c, p), (d, q) in pairwise(points)) / 2
    return 1 - swept / (memory * context / 2)


def harm(off: float | None, arms: Sequence[float | None]) -> float | None:
    """Return the largest loss of accuracy against `off` over the dial; below 0 when every setting gains.

    Example:
        >>> round(harm(0.9, [0.92, 0.85, None]), 3)
        0.05
    """
    found = [arm for arm in arms if arm is not None]
    return None if off is None or not found else off - min(found)


def summary(
    points: Sequence[tuple[float, Mapping[str, Estimate]]],
    memory: float | None,
    context: float | None,
    accuracies: Mapping[str, tuple[float | None, Sequence[float | None]]],
) -> dict[str, Any]:
    """Return the summary of one dial.

    Args:
        points: Each alpha, in order, with its figures ``mr``, ``parr`` and ``conr``.
        memory: Closed-book accuracy, the ceiling of the memory side.
        context: Accuracy of the unmodified model with right passages, the ceiling of the context side.
        accuracies: State to the accuracy of `off` and those at each alpha.

    Returns:
        ``mr_range`` [least, greatest] or None, ``spearman`` and ``violations`` of MR over alpha, both ceilings,
        ``gap_memory`` and ``gap_context`` (ceiling minus what the last, or first, alpha reaches), ``area_gap``, and
        ``harm`` by state.
    """
    ratios = [(alpha, found["mr"].value) for alpha, found in points if not isnan(found["mr"].value)]
    ways = [(found["conr"].value, found["parr"].value) for _, found in points if not isnan(found["conr"].value)]
    values = [value for _, value in ratios]
    ends = memory is not None and context is not None
    return {
        "mr_range": [min(values), max(values)] if values else None,
        "spearman": spearman([alpha for alpha, _ in ratios], values),
        "violations": violations(values),
        "ceiling_memory": memory,
        "ceiling_context": context,
        "gap_memory": memory - ways[-1][1] if memory is not None and ways else None,
        "gap_context": context - ways[0][0] if context is not None and ways else None,
        "area_gap": area_gap(ways, memory or 0.0, context or 0.0) if ends else None,
        "harm": {state: harm(off, arms) for state, (off, arms) in accuracies.items()},
    }


def _centred_ranks(values: Sequence[float]) -> list[float]:
    """Return ranks from 0, ties at their mean, minus the mean rank."""
    middle = (len(values) - 1) / 2
    return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 - middle for x in values]
