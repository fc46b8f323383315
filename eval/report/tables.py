"""The tables: methods at a glance, arms by states, arms by tasks, and every other metric.

Knows a `Run` and which figure stands for which state. Worse is marked as plainly as better, and every figure has its
interval and n; where a whole column has one n, it stands in the column's head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ...rates import count
from ...views.canvas import Canvas
from ..figures.dial_curve import HARM_STATES
from ..figures.intervals import Difference, Estimate
from ..judging.measures import METRICS, UNDEFINED
from .charts.axes import Scale, look
from .grid import Grid, GridCell
from .number_texts import LABELS, MISSING, interval, n_of, percent, plain, points, titled
from .runs import BASELINES, Run, Setting, headline

__all__ = ["by_state", "by_task", "glance", "other_metrics", "reach", "worst"]

GLYPH, DOT = 200.0, 112.0  # px


# --- one figure ---


def figure(run: Run, task: str, state: str, arm: Setting, *, with_n: bool) -> GridCell:
    """Return the headline figure of a cell: value, mark against `off`, interval, n and errors."""
    metric = headline(state, run.kind(task))
    found = run.get(task, state, arm.name, metric)
    cell = run.cell(task, state, arm.name) or {}
    failed = int(cell.get("errors") or 0)
    silent = run.get(task, state, arm.name, "neither") if metric == "mr" else None  # what a ratio hides
    if found is None:
        why = f"undefined: {UNDEFINED[metric]}" if cell else "not run"
        return GridCell(MISSING, f"{failed} failed" if failed else why)
    change = run.against_off(task, state, arm.name, metric)
    detail = [
        interval(found),
        n_of(found.n) if with_n else "",
        _neither(silent, found.n),
        f"{failed}\u00a0failed" if failed else "",
    ]
    off = run.get(task, state, "off", metric)
    ink = "text" if arm.name in BASELINES else look(run.inks[arm.method])[0]
    sign = change.sign if change else 0
    return GridCell(percent(found.value), " ".join(filter(None, detail)), sign, _dot(found, off, ink), metric != "mr")


def _neither(found: Estimate | None, told: int) -> str:
    """Return the share of answers that a ratio leaves out, with its own n where that is not the ratio's."""
    if found is None:
        return ""
    return f"neither\u00a0{percent(found.value)}" + (f" of {n_of(found.n)}" if found.n != told else "")


def _dot(found: Estimate, off: Estimate | None, ink: str) -> Canvas:
    """Draw an estimate on a scale of 0 to 100, `off` as a tick."""
    canvas = Canvas(DOT, 12, "")
    x = Scale(0, 1, 2, DOT - 2)
    canvas.line([(x.start, 6), (x.end, 6)], "line", 1)
    if off is not None:
        canvas.line([(x(off.value), 0), (x(off.value), 12)], "muted", 1, (2, 2))
    canvas.whisker((x(found.low), 6), (x(found.high), 6), ink, 2)
    canvas.mark((x(found.value), 6), "circle", ink, size=3.6)
    return canvas


def by_state(run: Run, task: str) -> Grid:
    """Return arms by states of one task."""
    states = run.states(task)
    heads, ns = ["method"], {}
    for state in states:
        metric = headline(state, run.kind(task))
        ns[state] = {e.n for arm in run.arms if (e := run.get(task, state, arm.name, metric))}
        heads.append(f"{state}: {LABELS[metric]}")
    everywhere = set().union(*ns.values())
    if len(everywhere) > 1:
        heads = [
            h + (f", {n_of(*ns[s])}" if len(ns.get(s, ())) == 1 else "")
            for h, s in zip(heads, ["", *states], strict=True)
        ]
    arms = [arm for arm in run.arms if any(run.cell(task, state, arm.name) for state in states)]
    rows = [[GridCell(arm.name), *(figure(run, task, s, arm, with_n=len(ns[s]) > 1) for s in states)] for arm in arms]
    where = " in every state" if len(states) > 1 else ""
    return Grid(heads, rows, f"%; {n_of(*everywhere)}{where}." if len(everywhere) == 1 else "%.")


def by_task(run: Run, state: str) -> Grid:
    """Return arms by tasks for one state."""
    tasks = [task for task in run.tasks if state in run.states(task)]
    metrics = [LABELS[headline(state, run.kind(task))] for task in tasks]
    same = len(set(metrics)) == 1
    heads = ["method", *(task if same else f"{task}: {metric}" for task, metric in zip(tasks, metrics, strict=True))]
    arms = [arm for arm in run.arms if any(run.cell(task, state, arm.name) for task in tasks)]
    rows = [[GridCell(arm.name), *(figure(run, task, state, arm, with_n=True) for task in tasks)] for arm in arms]
    return Grid(heads, rows, f"{state}: {metrics[0]}, %." if same and metrics else f"{state}, %.")


def other_metrics(run: Run, task: str, state: str) -> Grid:
    """Return the metrics of a task and state beside the headline one: shares in percent, the rest in their own unit."""
    arms = [arm for arm in run.arms if run.cell(task, state, arm.name)]
    head = headline(state, run.kind(task))
    known = {name for arm in arms for name in (run.cell(task, state, arm.name) or {}).get("metrics", {})} - {head}
    names = [name for name in METRICS if name in known] + sorted(known - set(METRICS))
    rows = []
    for arm in arms:
        row = [GridCell(arm.name)]
        for name in names:
            found = run.get(task, state, arm.name, name)
            change = run.against_off(task, state, arm.name, name)
            share = name in METRICS and METRICS[name].bounded
            ends = "" if found is None else interval(found) if share else f"[{plain(found.low)}, {plain(found.high)}]"
            value = MISSING if found is None else percent(found.value) if share else plain(found.value)
            row.append(GridCell(value, ends, change.sign if change else 0, merit=False))
        rows.append(row)
    units = "Shares in %; length in tokens, margin in nats; ▲▼ against off as above."
    return Grid(["method", *map(titled, names)], rows, units)


# --- at a glance ---


def reach(run: Run, task: str, method: str) -> tuple[float, float] | None:
    """Return the lowest and the highest memory ratio in conflict of a method on a task; None without one."""
    values = [e.value for arm in run.methods[method] if (e := run.get(task, "conflict", arm.name, "mr"))]
    return (min(values), max(values)) if values else None


def worst(run: Run, arms: Iterable[Setting], states: Sequence[str]) -> tuple[Difference, str, str, Setting] | None:
    """Return the largest loss of accuracy against `off`, with its task, state and arm; None where none was tested."""
    found = [
        (change, task, state, arm)
        for arm in arms
        for task in run.tasks
        for state in states
        if (change := run.against_off(task, state, arm.name, "accuracy")) and not math.isnan(change.value)
    ]
    return min(found, key=lambda row: row[0].value, default=None)


def glance(run: Run) -> Grid:
    """Return one row per method: how far it reaches in conflict, and what it costs where the passages are fine."""
    tasks = [t for t in run.tasks if any(reach(run, t, name) for name in run.methods)]
    harmed = [state for state in HARM_STATES if state in run.states()]
    reached = f"reach: memory ratio in conflict, %{f', {tasks[0]}' if len(tasks) == 1 else ''}"
    heads = ["method", *([reached] if tasks else [])]
    heads += [f"worst change, {state}" for state in harmed] + (["accuracy against off"] if harmed else [])
    losses = "Worst change: of accuracy, paired difference to off in points, at the task and alpha where it is lowest."
    grid = Grid(heads, caption=losses if harmed else "")
    order = [n for n in run.methods if n in BASELINES]
    for name in dict.fromkeys([*order, *run.dials, *run.methods]):
        arms = run.methods[name]
        row = [GridCell(name, _settings(arms))]
        row += [_reach_cell(run, tasks, name)] if tasks else []
        row += [_loss_cell(run, arms, state, len(run.tasks) > 1) for state in harmed]
        row += [_tested_cell(run, arms, harmed)] if harmed else []
        grid.rows.append(row)
    return grid


def _settings(arms: Sequence[Setting]) -> str:
    alphas = [arm.alpha for arm in arms if arm.alpha is not None]
    if not alphas:
        return ""
    return f"alpha {alphas[0]:g}" if len(alphas) == 1 else f"alpha {min(alphas):g} to {max(alphas):g}"


def _reach_cell(run: Run, tasks: Sequence[str], name: str) -> GridCell:
    """Draw one bar per task; in words: the span of a dial, the shift of a method without one."""
    ink = "text" if name in BASELINES else look(run.inks[name])[0]
    canvas = Canvas(GLYPH, 9 * len(tasks) + 4, "")
    x = Scale(0, 1, 4, GLYPH - 4)
    found, shifts = [], []
    for place, task in enumerate(tasks):
        height = 7 + 9 * place
        canvas.line([(x.start, height), (x.end, height)], "line", 1)
        off = run.get(task, "conflict", "off", "mr")
        if off is not None:
            canvas.line([(x(off.value), height - 4), (x(off.value), height + 4)], "muted", 1.2)
        span = reach(run, task, name)
        if span is None:
            continue
        tip = f"{task}: {_span(percent(span[0]), percent(span[1]))} %"
        if span[0] < span[1]:
            canvas.line([(x(span[0]), height), (x(span[1]), height)], ink, 3)
        for value in dict.fromkeys(span):
            canvas.mark((x(value), height), "circle", ink, size=3, tip=tip)
        found.append(span)
        shifts += [span[1] - off.value] if off is not None else []
    if not found:
        return GridCell(MISSING, "no conflict items")
    if name in run.dials:
        spans = [high - low for low, high in found]
        words = f"{_range([low for low, _ in found])} → {_range([high for _, high in found])}"
        return GridCell(words, f"spans {_range(spans)} points", glyph=canvas)
    shift = "" if name == "off" or not shifts else f"{_span(points(min(shifts)), points(max(shifts)))} points to off"
    return GridCell(_range([low for low, _ in found]), shift, glyph=canvas)


def _range(values: Sequence[float]) -> str:
    return _span(percent(min(values)), percent(max(values)))


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}" if "−" in low + high or "+" in low + high else f"{low}–{high}"


def _loss_cell(run: Run, arms: Sequence[Setting], state: str, several: bool) -> GridCell:
    found = worst(run, arms, [state])
    if found is None:
        return GridCell(MISSING, "reference" if any(arm.name == "off" for arm in arms) else "not tested")
    change, task, _, arm = found
    where = [task if several else "", f"alpha {arm.alpha:g}" if arm.alpha is not None and len(arms) > 1 else ""]
    return GridCell(points(change.value), ", ".join(filter(None, where)), change.sign)


def _tested_cell(run: Run, arms: Sequence[Setting], states: Sequence[str]) -> GridCell:
    signs = [
        change.sign
        for arm in arms
        for task in run.tasks
        for state in states
        if (change := run.against_off(task, state, arm.name, "accuracy"))
    ]
    if not signs:
        return GridCell(MISSING)
    return GridCell(f"{signs.count(1)} ▲  {signs.count(-1)} ▼", f"of {count(len(signs), 'test')}")
