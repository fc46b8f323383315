"""A run's samples to its figures: results.json as a value and as bytes.

Knows run cards, items and samples; knows no model and no file. The figures depend on what was sampled, not on when or
in which order: a run that was interrupted and resumed gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..judging.measures import METRICS
from ..records import STATES
from .cells import Cell, Place, collect
from .dial_curve import HARM_STATES, summary
from .intervals import Estimate
from .rows import Line, difference_row, estimate_row, with_holm

__all__ = ["aggregate", "results_bytes"]

SCHEMA = 1
AGAINST_CLOSED = ("accuracy", "parr")  # what is also compared with the model's memory
Figures = Mapping[str, Estimate]  # of one cell, by metric


def aggregate(run: Mapping[str, Any], items: Iterable[Mapping[str, Any]], samples: Iterable[Mapping[str, Any]]) -> Line:
    """Return what results.json holds.

    Failed samples are counted under `errors` and averaged nowhere. Of several samples of one task, id and arm, the
    first counts; samples of unknown items do not. Ceilings of a curve: the share of the same items that
    `closed-book` answers from memory, and the accuracy of `off` where the passages are right (helpful, else agree).

    Args:
        run: The run card.
        items: Canonical records, each with its "task".
        samples: The lines of samples.jsonl, in any order.

    Raises:
        EvalError: An item is not a record, or a sample does not match its item.
    """
    cells = collect(items, samples)
    order = {arm["name"]: place for place, arm in enumerate(run.get("arms", ()))}
    places = sorted(cells, key=lambda at: (at[0], STATES.index(at[1]), order.get(at[2], len(order)), at[2]))
    longest = (run.get("options") or {}).get("max_new_tokens")
    figures = {at: _figures(cells[at], longest) for at in places}
    return {
        "schema": SCHEMA,
        "run": {key: value for key, value in run.items() if key not in ("started", "waves", "unread")},
        "tasks": run.get("tasks", {}),
        "cells": [_row(at, cells[at], figures[at]) for at in places],
        "pairs": _pairs(places, cells, longest),
        "curves": _plain(_curves(run, figures), 6),
    }


def results_bytes(results: Mapping[str, Any]) -> bytes:
    """Return results as the bytes of results.json: UTF-8, keys sorted, floats to 6 decimals, NaN as null."""
    text = json.dumps(_plain(results), ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False)
    return (text + "\n").encode("utf-8")


def _figures(cell: Cell, longest: float | None) -> Figures:
    found = {name: cell.estimate(name, longest) for name in METRICS if cell.has(name)}
    if "parr" in found and "mr" not in found:  # neither side was ever named: said, not left out
        found["mr"] = Estimate(math.nan, math.nan, math.nan, 0)
    return found


def _row(place: Place, cell: Cell, figures: Figures) -> Line:
    return {
        **dict(zip(("task", "state", "arm"), place, strict=True)),
        "n": len(cell.rows),
        "groups": len({group for group, _ in cell.rows.values()}),
        "errors": cell.errors,
        "metrics": _lines(figures),
    }


def _lines(figures: Figures) -> Line:
    return {name: estimate_row(found) for name, found in figures.items()}


def _pairs(places: Sequence[Place], cells: Mapping[Place, Cell], longest: float | None) -> list[Line]:
    """Every arm against `off`, and its truth against `closed-book`; Holm over the arms of one comparison."""
    compared = [name for name, metric in METRICS.items() if metric.compared]
    out: list[Line] = []
    for task, state in dict.fromkeys(place[:2] for place in places):
        arms = [arm for *where, arm in places if where == [task, state]]
        for against, names in (("off", compared), ("closed-book", AGAINST_CLOSED)):
            other = cells.get((task, state, against))
            for name in names:
                rows = []
                for arm in arms:
                    if arm == against or other is None:
                        continue
                    found = cells[task, state, arm].minus(other, name, longest)
                    if found is not None:
                        where = {"task": task, "state": state, "arm": arm, "against": against, "metric": name}
                        rows.append(where | difference_row(found))
                out += with_holm(rows)
    return out


def _curves(run: Mapping[str, Any], figures: Mapping[Place, Figures]) -> list[Line]:
    """One curve per task and method with at least two alphas, over the state conflict."""
    dials: dict[str, list[tuple[float, str]]] = {}
    for arm in run.get("arms", ()):
        if arm.get("alpha") is not None:
            dials.setdefault(arm["method"], []).append((arm["alpha"], arm["name"]))
    out = []
    for task in sorted({task for task, _, _ in figures}):

        def value(state: str, arm: str, metric: str = "accuracy", task: str = task) -> float | None:
            found = figures.get((task, state, arm), {}).get(metric)
            return None if found is None or math.isnan(found.value) else found.value

        context = next((x for state in ("helpful", "agree") if (x := value(state, "off")) is not None), None)
        for method, settings in sorted(dials.items()):
            turned = [(a, name) for a, name in sorted(settings) if "mr" in figures.get((task, "conflict", name), {})]
            if len(turned) < 2:
                continue
            costs = {
                state: (value(state, "off"), [value(state, name) for _, name in turned])
                for state in HARM_STATES
                if value(state, "off") is not None
            }
            points = [(a, figures[task, "conflict", name]) for a, name in turned]
            found = summary(points, value("conflict", "closed-book", "parr"), context, costs)
            lines = [{"alpha": a, "arm": name, **_lines(figures[task, "conflict", name])} for a, name in turned]
            out.append({"task": task, "state": "conflict", "method": method, "points": lines, "summary": found})
    return out


def _plain(value: Any, digits: int | None = None) -> Any:
    """Return JSON values: NaN and infinity become None, floats are rounded where `digits` are given."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, digits) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, digits) for inner in value]
    if isinstance(value, float):
        return None if not math.isfinite(value) else value if digits is None else round(value, digits) + 0.0
    return value
