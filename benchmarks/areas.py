"""Areas under a frontier of ParR against *helpful*, with the intervals that questions drawn again give them.

Knows cells of finished runs; knows no arm and no table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ckcontrol.eval.figures.cells import Cell
from ckcontrol.eval.figures.intervals import DRAWS
from ckcontrol.eval.figures.resampling import Floats, by_group, effective, quantile, resample
from ckcontrol.eval.figures.rows import Line, rounded


def hull(parr: Floats, helpful: Floats) -> Floats:
    """Return the area under the best `helpful` of the settings whose `parr` is at least p, over p from 0 to 1.

    Both are [..., settings]. Settings may also be drawn by lot, question by question: the straight lines between. Where
    no setting comes up to p, it counts 0.
    """
    areas = [
        _hull(list(zip(p, h, strict=True))) for p, h in zip(np.atleast_2d(parr), np.atleast_2d(helpful), strict=True)
    ]
    return np.asarray(areas).reshape(parr.shape[:-1])


def _hull(points: list[tuple[float, float]]) -> float:
    kept: list[tuple[float, float]] = []
    for p, h in sorted(points, key=lambda point: (-point[0], -point[1])):
        if kept and h <= kept[-1][1]:
            continue
        while len(kept) > 1 and (kept[-1][1] - kept[-2][1]) * (kept[-1][0] - p) <= (h - kept[-1][1]) * (
            kept[-2][0] - kept[-1][0]
        ):
            kept.pop()
        kept.append((p, h))
    return sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(kept)) + kept[-1][0] * kept[-1][1]


def rates(*blocks: tuple[Sequence[Cell], str], draws: int = DRAWS) -> tuple[list[Floats], float, int]:
    """Return rates [1 + draws, settings] per block, observed first, then of questions drawn again; t; and groups.

    A block is a cell per setting, all of the same records, and the metric. Settings and blocks share a draw, so
    differences of what is made of them are paired.
    """
    tables, labels = [], []
    for place, (cells, metric) in enumerate(blocks):
        ids = sorted({i for cell in cells for i in cell.rows})
        table = np.zeros((len(ids), 2 * len(blocks), len(cells)))
        for at, cell in enumerate(cells):
            for row, i in enumerate(ids):
                table[row, 2 * place : 2 * place + 2, at] = cell.rows[i][1].get(metric, (0, 0)) if i in cell.rows else 0
        labels += [next(cell.rows[i][0] for cell in cells if i in cell.rows) for i in ids]
        tables.append(table.reshape(len(ids), -1))
    sums = by_group(np.vstack(tables), np.asarray(labels))
    every = np.vstack([sums.sum(axis=0), resample(sums, draws, 0)]).reshape(draws + 1, 2 * len(blocks), -1)
    every = every[(every[:, 1::2] > 0).all(axis=(1, 2))]
    weights = sums.reshape(len(sums), 2 * len(blocks), -1)[:, 1::2, 0]
    t = quantile(min(effective(weights[:, place]) for place in range(len(blocks))) - 1)
    return [every[:, 2 * place] / every[:, 2 * place + 1] for place in range(len(blocks))], t, len(sums)


def spread(values: Floats, t: float, groups: int) -> Line:
    """Return the first value with the interval that the others, its bootstrap draws, give it."""
    error = float(values[1:].std()) * math.sqrt(groups / max(1, groups - 1))
    found = {"difference": rounded(values[0]), "low": None, "high": None}
    if error > 1e-12:
        found |= {"low": rounded(values[0] - t * error), "high": rounded(values[0] + t * error)}
    return found
