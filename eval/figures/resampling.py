"""Sums by group, resampled: the arithmetic below `intervals.py`. Knows arrays, no figure, interval or test."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NORMAL", "Floats", "by_group", "effective", "quantile", "resample", "signs", "times"]

NORMAL = 1.959963984540054
_BLOCK = 1 << 20  # numbers expanded at a time
Floats = NDArray[np.float64]
# Two-sided 95 % quantiles of Student's t, by degrees of freedom; between them linear in 1 / df.
_T = {
    1: 12.706, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 8: 2.3060, 10: 2.2281, 15: 2.1314, 20: 2.0860,
    30: 2.0423, 60: 2.0003, 120: 1.9799, math.inf: NORMAL,
}  # fmt: skip


def by_group(table: Floats, labels: Any) -> Floats:
    """Return [groups, k] sums in the order of the labels."""
    names, place = np.unique(labels, return_inverse=True)
    order = np.lexsort((*table.T, place))  # sums of floats depend on the order; the caller's must not matter
    out = np.zeros((len(names), table.shape[1]))
    np.add.at(out, place[order], table[order])
    return out


@lru_cache(maxsize=32)
def _counts(groups: int, draws: int, seed: int) -> NDArray[np.uint8]:
    """Return [draws, groups] how often each group is in each bootstrap draw."""
    rng = np.random.default_rng([seed, groups])
    out = np.empty((draws, groups), dtype=np.uint8)  # a group is drawn more than 255 times in no lifetime
    step = max(1, _BLOCK // groups)
    for start in range(0, draws, step):
        block = out[start : start + step]
        drawn = rng.integers(0, groups, block.shape) + groups * np.arange(len(block))[:, None]
        block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
    return out


@lru_cache(maxsize=4)
def signs(groups: int, flips: int, seed: int) -> NDArray[np.int8]:
    """Return [flips, groups] of -1 and 1."""
    rng = np.random.default_rng([seed, groups, 1])
    return 2 * rng.integers(0, 2, (flips, groups), dtype=np.int8) - 1


def times(small: NDArray[Any], sums: Floats) -> Floats:
    """Return ``small @ sums``, expanding only as much of the integer matrix at a time as fits a cache."""
    step = max(1, _BLOCK // max(1, small.shape[1]))
    return np.vstack([small[i : i + step].astype(np.float64) @ sums for i in range(0, len(small), step)])


def resample(sums: Floats, draws: int, seed: int) -> Floats:
    """Return [draws, k] the column sums of as many groups, drawn with replacement."""
    return times(_counts(len(sums), draws, seed), sums)


def effective(weights: Floats) -> float:
    """Return how many groups of equal weight would say as much (Kish, 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def quantile(freedom: float) -> float:
    """Return the two-sided 95 % quantile of Student's t, within 1 % from 2 degrees of freedom on; below 1 as for 1."""
    inverse = [1 / df for df in _T]
    return float(np.interp(1 / max(freedom, 1.0), inverse[::-1], list(_T.values())[::-1]))
