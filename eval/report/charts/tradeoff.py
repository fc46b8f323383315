"""Reach against cost: where the memory ratio ends up in conflict, and how much accuracy that loses elsewhere.

Knows a `Run` and draws on a `Canvas`. A dial is a path of points, each named by its alpha; `off` is where the two
dashed lines cross. The better a method, the flatter its path runs along the top.
"""

from __future__ import annotations

import math

from ....views.canvas import Canvas, Line, Point, text_width
from ....views.safe_text import short
from ...figures.dial_curve import HARM_STATES
from ..number_texts import percent, points
from ..runs import BASELINES, Run, Setting
from .axes import Scale, frame, look, nice_range
from .labels import Box, settle

__all__ = ["costs", "tradeoff"]

HEIGHT, TOP, BOTTOM, LEFT, RIGHT = 300, 48, 42, 44, 14
SIZE = 11.5


def costs(run: Run, task: str) -> dict[str, tuple[float, float, str]]:
    """Return per arm: memory ratio in conflict, and its largest loss of accuracy against `off` with the state it is in.

    The loss is the smallest difference over agree, helpful and irrelevant passages; positive when nothing is lost.
    Arms without both figures are left out.
    """
    found = {}
    for arm in run.arms:
        ratio = run.get(task, "conflict", arm.name, "mr")
        lost = []
        for state in HARM_STATES:
            here, off = (run.get(task, state, name, "accuracy") for name in (arm.name, "off"))
            change = run.against_off(task, state, arm.name, "accuracy")
            if change and not math.isnan(change.value):
                lost.append((change.value, state))
            elif here and off:
                lost.append((here.value - off.value, state))
        if ratio and lost:
            found[arm.name] = (ratio.value, *min(lost))
    return found


def tradeoff(run: Run, task: str, title: str, width: float = 470) -> Canvas | None:
    """Draw reach against cost for every arm of a task; None where no arm has both figures."""
    found = costs(run, task)
    if len(found) < 2:
        return None
    canvas = Canvas(width, HEIGHT, f"{title}: memory ratio in conflict against the largest loss of accuracy")
    low, high, step = nice_range([0.0, *(lost for _, lost, _ in found.values())])
    x, y = Scale(0, 1, LEFT, width - RIGHT), Scale(low, high, HEIGHT - BOTTOM, TOP)
    ticks = [low + step * i for i in range(round((high - low) / step) + 1)]
    frame(
        canvas,
        x,
        y,
        title=title,
        note="change of accuracy, points: worst of agree, helpful, irrelevant",
        xticks=[(share, f"{100 * share:.0f}") for share in (0, 0.25, 0.5, 0.75, 1)],
        yticks=[(value, f"{100 * value:+.0f}".replace("-", "−").replace("+0", "0")) for value in ticks],
        xname="memory ratio in conflict, %",
    )
    canvas.line([(x.start, y(0)), (x.end, y(0))], "muted", 1.2, (5, 4))
    if "off" in found:
        at = x(found["off"][0])
        canvas.line([(at, y.start), (at, y.end)], "muted", 1.2, (5, 4))
    marks = _paths(canvas, run, found, x, y)
    _name(canvas, run, found, marks, (x.start, y.end - 8, x.end + RIGHT, y.start))
    return canvas


def _paths(
    canvas: Canvas, run: Run, found: dict[str, tuple[float, float, str]], x: Scale, y: Scale
) -> list[tuple[Setting, Point]]:
    marks: list[tuple[Setting, Point]] = []
    for name, arms in run.methods.items():
        ink, shape = ("text", "circle") if name in BASELINES else look(run.inks[name])
        drawn = [(arm, (x(found[arm.name][0]), y(found[arm.name][1]))) for arm in arms if arm.name in found]
        if len(drawn) > 1:
            canvas.line([at for _, at in drawn], ink, 1.6)
        for arm, at in drawn:
            ratio, lost, state = found[arm.name]
            tip = f"{arm.name}: memory ratio {percent(ratio)} %, {points(lost)} points of accuracy ({state})"
            canvas.mark(at, shape, ink, size=4.4, tip=tip)
        marks += drawn
    return marks


def _name(
    canvas: Canvas,
    run: Run,
    found: dict[str, tuple[float, float, str]],
    marks: list[tuple[Setting, Point]],
    room: Box,
) -> None:
    """Name every point: a dial's by alpha, its ends by the method too."""
    ends = {arms[-1].name for name, arms in run.methods.items() if name in run.dials}
    words = [
        arm.name
        if arm.alpha is None or arm.method not in run.dials
        else f"{arm.method} {arm.alpha:g}"
        if arm.name in ends
        else ""
        if arm.alpha == 0.5  # unmodified: where `off` is
        else f"{arm.alpha:g}"
        for arm, _ in marks
    ]
    words = [short(text, 22) for text in words]
    order = sorted((i for i in range(len(marks)) if words[i]), key=lambda i: -len(words[i]))
    boxes = settle(
        [marks[i][1] for i in order],
        [(text_width(words[i], SIZE), SIZE + 1) for i in order],
        [*((px - 5, py - 5, px + 5, py + 5) for _, (px, py) in marks), *_crossed(canvas)],
        room,
    )
    for i, (left, top, right, bottom) in zip(order, boxes, strict=True):
        arm, at = marks[i]
        ink = "text" if arm.method in BASELINES else look(run.inks[arm.method])[0]
        near = (min(max(at[0], left), right), min(max(at[1], top), bottom))
        if math.dist(at, near) > 12:
            canvas.line([at, near], ink, 0.6)
        canvas.text((left, bottom - 2), words[i], ink, size=SIZE, bold=arm.name in ends, halo=True)


def _crossed(canvas: Canvas) -> list[Box]:
    """Return small boxes along every line but those of the grid: labels keep clear of them."""
    boxes = []
    for shape in canvas.shapes:
        if isinstance(shape, Line) and shape.ink != "line":
            for (x1, y1), (x2, y2) in zip(shape.points, shape.points[1:], strict=False):
                steps = max(int(math.dist((x1, y1), (x2, y2)) / 5), 1)
                at = [(x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps) for i in range(steps + 1)]
                boxes += [(x - 1.5, y - 1.5, x + 1.5, y + 1.5) for x, y in at]
    return boxes
