"""The frame of a chart: title, grid, ticks, and a data point with its interval.

Knows pixels and scales; knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....views.canvas import SHAPES, Canvas, Point
from ....views.palette import SERIES
from ....views.safe_text import short
from ...figures.intervals import Estimate

__all__ = ["Scale", "dot", "frame", "look", "nice_range"]


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels, linearly; values outside are drawn at the edge."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)


def look(place: int) -> tuple[str, str]:
    """Return ink and mark of the series with this number; the first repeat comes after 24."""
    return f"s{place % SERIES}", SHAPES[(place + place // (SERIES * len(SHAPES))) % len(SHAPES)]


def frame(
    canvas: Canvas,
    x: Scale,
    y: Scale,
    *,
    title: str,
    note: str,
    xticks: Sequence[tuple[float, str]],
    yticks: Sequence[tuple[float, str]],
    xname: str = "",
) -> None:
    """Draw title, grid lines and tick labels; `note` is a second, quieter line under the title."""
    canvas.text((0, 14), short(title, 58), bold=True, size=14)
    canvas.text((0, 31), short(note, 72), "muted", size=12)
    for value, label in yticks:
        canvas.line([(x.start, y(value)), (x.end, y(value))], "line")
        canvas.text((x.start - 7, y(value) + 4), label, "muted", anchor="end", size=11)
    for value, label in xticks:
        canvas.line([(x(value), y.start), (x(value), y.start + 4)], "muted")
        canvas.text((x(value), y.start + 17), label, "muted", anchor="middle", size=11)
    if xname:
        canvas.text(((x.start + x.end) / 2, y.start + 33), xname, "muted", anchor="middle", size=11)


def dot(
    canvas: Canvas, at: float, estimate: Estimate, y: Scale, ink: str, shape: str, tip: str, size: float = 4
) -> Point:
    """Draw an estimate at pixel `at` with its vertical interval; return where its mark stands."""
    canvas.whisker((at, y(estimate.low)), (at, y(estimate.high)), ink)
    place = (at, y(estimate.value))
    canvas.mark(place, shape, ink, size=size, tip=tip)
    return place


def nice_range(
    values: Sequence[float], steps: Sequence[float] = (0.05, 0.1, 0.2, 0.25, 0.5)
) -> tuple[float, float, float]:
    """Return low, high and step of an axis that holds `values` with at most six steps.

    Example:
        >>> nice_range([-0.13, 0.02])
        (-0.15, 0.05, 0.05)
    """
    low, high = min(values), max(values)
    for step in steps:
        first, last = _floor(low / step), -_floor(-high / step)
        if last == first:
            last += 1
        if last - first <= 6:
            break
    return round(first * step, 6), round(last * step, 6), step


def _floor(value: float) -> int:
    whole = int(value + 1e-9) if value >= 0 else -int(-value + 1e-9)
    return whole - (whole > value + 1e-9)
