"""Where labels go so that none covers another: beside an axis (one dimension) and around points (two).

Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Box", "dodge", "settle"]

FAR = 8.0  # what each step away from its point costs a label, in square pixels covered
Box = tuple[float, float, float, float]  # left, top, right, bottom


def dodge(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions at least `gap` apart, within `low` and `high`, as near to `wanted` as can be.

    Order is kept. Where there are too many labels for the room, all stand equally close.

    Example:
        >>> dodge([10, 11, 50], 8, 0, 100)
        [6.5, 14.5, 50.0]
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Runs of labels that touch move as one: each is (sum of what its members want for its first, count).
    runs: list[tuple[float, int]] = []
    for i in order:
        total, count = min(max(wanted[i], low), high), 1
        while runs and runs[-1][0] / runs[-1][1] + gap * runs[-1][1] > total / count:
            before, members = runs.pop()
            total, count = before + total - gap * members * count, members + count
        runs.append((total, count))
    placed: list[float] = []
    for total, count in runs:
        placed += [total / count + gap * step for step in range(count)]
    # Push back what stands outside, from both ends.
    for k in range(len(placed)):
        placed[k] = max(placed[k], low + gap * k)
    for k in range(len(placed)):
        placed[-1 - k] = min(placed[-1 - k], high - gap * k)
    found = [0.0] * len(wanted)
    for place, i in zip(placed, order, strict=True):
        found[i] = place
    return found


def settle(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    room: Box,
    reach: float = 7,
) -> list[Box]:
    """Return a box beside each point that covers neither another box, nor `taken`, nor leaves `room`.

    Greedy, in the order given; candidates stand around the point in growing circles. Where none is free, the one that
    covers least is taken.

    Args:
        points: What the labels name.
        sizes: Width and height of each label.
        taken: Boxes to keep clear: marks, axes.
        room: The drawing area.
        reach: Pixels between a point and the nearest label.
    """
    placed: list[Box] = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        others = [*taken, *placed]
        best, least = None, float("inf")
        for ring in range(6):
            far = reach + 9 * ring
            for across, down in _AROUND:
                left = x + across * far - (width if across < 0 else width / 2 if across == 0 else 0)
                top = y + down * far - (height if down < 0 else height / 2 if down == 0 else 0)
                box = (left, top, left + width, top + height)
                cost = sum(_overlap(box, other) for other in others) + 4 * _outside(box, room) + FAR * ring
                if cost < least:
                    best, least = box, cost
            if least <= FAR * (ring + 1):
                break
        placed.append(best or (x, y, x + width, y + height))
    return placed


_AROUND = ((1, 0), (-1, 0), (0, -1), (0, 1), (0.75, -0.75), (0.75, 0.75), (-0.75, -0.75), (-0.75, 0.75))


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _outside(box: Box, room: Box) -> float:
    return sum(max(gap, 0.0) for gap in (room[0] - box[0], room[1] - box[1], box[2] - room[2], box[3] - room[3])) * 10
