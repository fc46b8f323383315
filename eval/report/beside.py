"""Several runs beside each other; two runs on the same items are compared sample by sample.

Knows runs and, for the test, their samples; the test itself is `ckcontrol.eval.figures.compare`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ckcontrol.errors import EvalError

from ..figures.cells import collect
from ..figures.compare import compare
from ..figures.intervals import Difference
from ..figures.rows import read_difference
from .answers import item_rows, sample_rows
from .grid import Grid, GridCell
from .number_texts import LABELS, MISSING, interval, n_of, percent, points
from .runs import Run, headline

__all__ = ["side_by_side", "tested"]

Key = tuple[str, str, str, str]  # task, state, arm, metric


def tested(runs: Sequence[Run]) -> tuple[dict[Key, Difference], str]:
    """Return the paired differences of two runs, second minus first, and a sentence about them.

    There are none with more than two runs, no sample in common, or samples that cannot be read.
    """
    if len(runs) != 2:
        return {}, "Differences between runs are tested two at a time."
    try:
        cells = [collect(item_rows(run.folder, Counter()), sample_rows(run.folder, Counter())) for run in runs]
        rows = compare(cells[1], cells[0], metrics=["mr", "accuracy"])
    except (EvalError, OSError) as error:
        return {}, f"Differences are not tested: {error}"
    text = (
        "Differences: second run minus first, on the samples both have, with 95 % intervals; ▲ higher, ▼ lower, by "
        "the same test."
    )
    return {(row["task"], row["state"], row["arm_a"], row["metric"]): read_difference(row) for row in rows}, text


def side_by_side(runs: Sequence[Run], state: str, changes: Mapping[Key, Difference]) -> Grid:
    """Return the headline figures of every run beside each other, one row per task and arm that two runs share."""
    metrics = {headline(state, run.kind(task)) for run in runs for task in run.tasks if state in run.states(task)}
    grid = Grid(["task, method", *(f"run {run.label}" for run in runs), *["difference"] * (len(runs) == 2)])
    grid.caption = f"{state}: {' or '.join(LABELS[metric] for metric in sorted(metrics))}, %."
    for task in sorted({task for run in runs for task in run.tasks}):
        for name in dict.fromkeys(arm.name for run in runs for arm in run.arms):
            metric = headline(state, runs[0].kind(task))
            found = [run.get(task, state, name, metric) for run in runs]
            if sum(e is not None for e in found) < 2:
                continue
            row = [GridCell(f"{task}, {name}")]
            row += [GridCell(percent(e.value), f"{interval(e)} {n_of(e.n)}") if e else GridCell(MISSING) for e in found]
            if len(runs) == 2:
                row.append(_difference(changes.get((task, state, name, metric)), metric))
            grid.rows.append(row)
    return grid


def _difference(found: Difference | None, metric: str) -> GridCell:
    if found is None:
        return GridCell(MISSING, "not tested")
    detail = f"[{points(found.low)}, {points(found.high)}] {n_of(found.n)}"
    return GridCell(points(found.value), detail, found.sign, merit=metric != "mr")
