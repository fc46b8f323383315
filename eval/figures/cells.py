"""The samples of a run in cells (task, state, arm), and the paired comparison of two of them.

Knows records, samples and metrics; knows no run card and no report. `aggregate` and `compare` are made of this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..judging.measures import METRICS, Contribution, measure
from ..records import Record
from .intervals import Bounds, Difference, difference, holm

__all__ = ["Cell", "Line", "Place", "bounds_of", "collect", "paired", "rounded", "shown", "with_holm"]

Line = dict[str, Any]
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
        """Whether any sample contributes to a metric."""
        return any(metric in row for _, row in self.rows.values())


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


def bounds_of(metric: str, longest: float | None) -> Bounds:
    """Return what a metric lies between; lengths end at `longest` tokens, where that is known."""
    if metric == "length" and longest:
        return 0.0, float(longest)
    return (0.0, 1.0) if METRICS[metric].bounded else None


def paired(a: Cell, b: Cell, metric: str, longest: float | None = None) -> Difference | None:
    """Return metric of `a` minus metric of `b` on the records both have; None where one of them lacks it."""
    if not (a.has(metric) and b.has(metric)):
        return None
    ids = [i for i in a.rows if i in b.rows]
    if not METRICS[metric].ratio:
        ids = [i for i in ids if metric in a.rows[i][1] and metric in b.rows[i][1]]
    (top, den, groups), (other, other_den, _) = a.columns(metric, ids), b.columns(metric, ids)
    return difference(top, other, groups, den, other_den, bounds=bounds_of(metric, longest))


def shown(found: Difference) -> Line:
    """Return a difference as results.json holds it."""
    numbers = {"difference": found.value, "low": found.low, "high": found.high, "p": found.p}
    counts = {"n": found.n, "groups": found.groups, "up": found.up, "down": found.down, "ties": found.ties}
    return {**{key: rounded(value) for key, value in numbers.items()}, **counts}


def with_holm(rows: Sequence[Line]) -> list[Line]:
    """Return rows with `p_holm`: p corrected for the number of rows of the same task, state and metric."""
    families: dict[tuple[str, str, str], list[int]] = {}
    for place, row in enumerate(rows):
        families.setdefault((row["task"], row["state"], row["metric"]), []).append(place)
    corrected: dict[int, float] = {}
    for members in families.values():
        values = [math.nan if rows[i]["p"] is None else rows[i]["p"] for i in members]
        corrected |= dict(zip(members, holm(values), strict=True))
    return [{**row, "p_holm": rounded(corrected[place])} for place, row in enumerate(rows)]


def rounded(value: float) -> float | None:
    """Return a number as it is written: 6 decimals, no negative zero, None for NaN and infinity."""
    return round(float(value), 6) + 0.0 if math.isfinite(value) else None
