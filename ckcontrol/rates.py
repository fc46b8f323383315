"""What is printed of counts: a noun in its number, and the interval beside every share. Knows counts; nothing else."""

from __future__ import annotations

import math

__all__ = ["count", "wilson"]


def count(number: int, noun: str) -> str:
    """Return a number and what it counts: ``1 passage``, ``1,200 passages``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def wilson(k: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson interval of a rate of `k` in `n`: 95 % unless `z` differs.

    An effective sample may make `k` and `n` fractions. The interval stays inside [0, 1] and is honest at 0 and n,
    where the textbook interval has no width. With n = 0 nothing is known: (0, 1).

    Example:
        >>> [round(end, 3) for end in wilson(0, 10)]
        [0.0, 0.278]
    """
    if not 0 <= k <= n:
        raise ValueError(f"k={k} of n={n} is not a count. Give 0 <= k <= n.")
    if n == 0:
        return 0.0, 1.0
    rate, spread = k / n, z * z / n
    middle = rate + spread / 2
    half = z * math.sqrt(rate * (1 - rate) / n + spread / (4 * n))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (0.0 if k == 0 else low), (1.0 if k == n else high)
