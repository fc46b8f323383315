"""How far two rankings of heads agree: rank correlation, split halves, and overlap of the best k against chance.

Plain numpy; knows no model and no file.
"""

from __future__ import annotations

from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Overlap", "overlap", "spearman", "split_half"]

Floats = NDArray[np.float64]


class Overlap(NamedTuple):
    """What two sets of k heads out of n share.

    Attributes:
        shared: How many heads are in both.
        jaccard: Size of the intersection over size of the union.
        expected: The Jaccard index at the overlap expected of two random sets, k*k/n.
        p: Probability that two random sets share at least as many (hypergeometric, exact).
    """

    shared: int
    jaccard: float
    expected: float
    p: float


def overlap(first: set[tuple[int, int]], second: set[tuple[int, int]], total: int) -> Overlap:
    """Compare two sets of heads of a model with `total` heads.

    Example:
        >>> overlap({(0, 1), (0, 2)}, {(0, 2), (1, 0)}, total=8)
        Overlap(shared=1, jaccard=0.3333333333333333, expected=0.14285714285714285, p=0.4642857142857143)
    """
    a, b, shared = len(first), len(second), len(first & second)
    union = a + b - shared
    mean = a * b / total
    ways = sum(comb(a, m) * comb(total - a, b - m) for m in range(shared, min(a, b) + 1))
    return Overlap(
        shared=shared,
        jaccard=shared / union if union else 1.0,
        expected=mean / (a + b - mean) if union else 1.0,
        p=ways / comb(total, b),
    )


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation of two arrays of the same size, ties at their mean rank; NaN if one of them is constant."""
    a, b = _ranks(np.ravel(first)), _ranks(np.ravel(second))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else float("nan")


def split_half(values: Floats, *, splits: int = 20, seed: int = 0) -> float:
    """Mean rank correlation of the heads' means over random halves of the examples.

    It says how stable the ranking is with *half* the examples; with all of them it is more stable.

    Args:
        values: One row per example, [N, ...]; rows with NaN are left out.
        splits: Random halvings, seeded.
        seed: Their seed.

    Returns:
        The mean; NaN with fewer than four examples.
    """
    flat: Floats = values.reshape(len(values), -1)
    flat = flat[~np.isnan(flat).any(1)]
    half = len(flat) // 2
    if half < 2:
        return float("nan")
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        order = draw.permutation(len(flat))
        found.append(spearman(flat[order[:half]].mean(0), flat[order[half : 2 * half]].mean(0)))
    return float(np.mean(found))


def _ranks(values: Floats) -> Floats:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum()
    return (last - (count - 1) / 2)[place]
