"""The samples of a run in cells (task, state, arm), the figures of a cell, and the difference of two.

Knows records, samples and metrics; knows no run card and no report. `aggregate` and `compare` are made of this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..judging.measures import METRICS, Contribution, measure
from ..records import Record
from .intervals import Bounds, Difference, Estimate, difference, estimate

__all__ = ["Cell", "Place", "collect"]

Place = tuple[str, str, str]  # task, state, arm


class Cell:
    """What the samples of one task, state and arm contribute.

    Attributes:
        rows: Record id to its group and ``{metric: (numerator, weight)}``.
        errors: Samples that failed.
    """

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, dict[str, Contribution]]] = {}
        self.errors = 0

    def columns(self, metric: str, ids: Sequence[str]) -> tuple[list[float], list[float], list[str]]:
        """Return numerators, weights (0 where the metric does not apply) and groups of some records."""
        found = [self.rows[i][1].get(metric, (0.0, 0.0)) for i in ids]
        return [num for num, _ in found], [den for _, den in found], [self.rows[i][0] for i in ids]

    def has(self, metric: str) -> bool:
        """Return whether any sample contributes to a metric."""
        return any(metric in row for _, row in self.rows.values())

    def estimate(self, metric: str, longest: float | None = None) -> Estimate:
        """Return a metric over all samples, with its interval.

        Args:
            metric: A name in `METRICS`.
            longest: ``max_new_tokens``, which bounds lengths.
        """
        top, den, groups = self.columns(metric, list(self.rows))
        found = estimate(top, groups, den, bounds=_bounds(metric, longest))
        if not METRICS[metric].logarithmic:
            return found
        value, low, high = (math.exp(min(end, 700.0)) for end in (found.value, found.low, found.high))
        return Estimate(value, low, high, found.n, found.groups)

    def minus(self, other: Cell, metric: str, longest: float | None = None) -> Difference | None:
        """Return a metric minus that of another cell, on the records both have; None where one of them lacks it."""
        if not (self.has(metric) and other.has(metric)):
            return None
        ids = [i for i in self.rows if i in other.rows]
        if not METRICS[metric].ratio:
            ids = [i for i in ids if metric in self.rows[i][1] and metric in other.rows[i][1]]
        (top, den, groups), (top_b, den_b, _) = self.columns(metric, ids), other.columns(metric, ids)
        return difference(top, top_b, groups, den, den_b, bounds=_bounds(metric, longest))


def collect(items: Iterable[Mapping[str, Any]], samples: Iterable[Mapping[str, Any]]) -> dict[Place, Cell]:
    """Return the cells of a run; records are in the order of their ids, whatever the order of the samples."""
    records: dict[tuple[str, str], Record] = {}
    for item in items:
        record = Record.from_dict(item)
        records.setdefault((str(item.get("task", "")), record.id), record)
    cells: dict[Place, Cell] = {}
    seen: set[Place] = set()
    for sample in samples:
        if "arm" not in sample:
            continue  # a line about the file, not an answer
        key = (str(sample.get("task", "")), str(sample.get("id", "")), str(sample["arm"]))
        found = records.get(key[:2])
        if found is None or key in seen:
            continue
        seen.add(key)
        cell = cells.setdefault((key[0], found.state, key[2]), Cell())
        if sample.get("error") is not None:
            cell.errors += 1
        else:
            cell.rows[found.id] = (found.group, measure(found, sample))
    for cell in cells.values():
        cell.rows = dict(sorted(cell.rows.items()))
    return cells


def _bounds(metric: str, longest: float | None) -> Bounds:
    """Return what a metric lies between; lengths end at `longest` tokens, where that is known."""
    if metric == "length" and longest:
        return 0.0, float(longest)
    return (0.0, 1.0) if METRICS[metric].bounded else None
