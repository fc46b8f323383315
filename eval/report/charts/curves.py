"""Control curves: how far a dial moves the answers from the passages to memory, and what the answers named on the way.

Knows a `Run` and draws on a `Canvas`. Methods with a dial are curves with a band, methods without one stand beside the
axis, and the unmodified model and the closed-book answers are dashed lines. Every line is named at its end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....views.canvas import Canvas, Point, text_width
from ....views.safe_text import short
from ...figures.intervals import Estimate
from ..number_texts import interval, percent
from ..runs import Run, Setting
from .axes import Scale, dot, frame, look
from .labels import dodge

__all__ = ["memory_ratio", "named"]

TOP, BOTTOM, LEFT = 48, 42, 34
HEIGHT = 292
SLOT = 12  # pixels per method without a dial
NAMES = 130  # pixels for the labels on the right, more where names are long
LETTER, LINE = 7.2, 14  # pixels of a label: of a letter, and from one to the next
ALPHA_TICKS = ((0.0, "0"), (0.25, ".25"), (0.5, ".5"), (0.75, ".75"), (1.0, "1"))
SHARE_TICKS = ((0.0, "0"), (0.25, "25"), (0.5, "50"), (0.75, "75"), (1.0, "100"))
ALPHA_NAME = "context  ←  alpha  →  memory"
DASHES = {"off": (6.0, 4.0), "closed-book": (2.0, 3.0)}

Label = tuple[Point, str, str, bool]  # where the line ends, name, ink, bold


def memory_ratio(run: Run, task: str, title: str, width: float = 470) -> Canvas:
    """Draw the memory ratio of every method on the conflict items of a task, against alpha.

    Args:
        run: The run.
        task: One of its tasks.
        title: Over the chart.
        width: Pixels.
    """
    state, metric = "conflict", "mr"
    shown = {arm: found for arm in run.arms if (found := run.get(task, state, arm.name, metric))}
    beside = [arm for arm in shown if arm.alpha is None and arm.name not in DASHES]
    lines = {arm.name if arm.alpha is None else arm.method for arm in shown}
    height = max(HEIGHT, TOP + BOTTOM + LINE * len(lines))
    names = max(NAMES, min(width / 3, 20 + LETTER * max(map(len, lines), default=0)))
    canvas = Canvas(width, height, f"{title}: memory ratio in conflict by alpha, every method")
    y = Scale(0, 1, height - BOTTOM, TOP)
    slot = SLOT * max(1.0, width / 470)
    gutter = len(beside) * slot + 14 if beside else 8
    x = Scale(0, 1, LEFT, width - names - gutter)
    ns = {e.n for e in shown.values()}
    many = f"{min(ns)}" if len(ns) == 1 else f"{min(ns)} to {max(ns)}" if ns else ""
    note = f"memory ratio MR in conflict, %, n = {many}" if shown else "no memory ratio: nothing named either answer"
    frame(canvas, x, y, title=title, note=note, xticks=ALPHA_TICKS, yticks=SHARE_TICKS, xname=ALPHA_NAME)
    labels: list[Label] = []
    for arm, found in shown.items():
        if arm.name in DASHES:
            end = (width - names - 6, y(found.value))
            canvas.line([(x.start, end[1]), end], "text", 1.3, DASHES[arm.name])
            labels.append((end, arm.name, "text", False))
    for name, arms in run.methods.items():
        points = [(arm, shown[arm]) for arm in arms if arm.alpha is not None and arm in shown]
        if points:
            ink, shape = look(run.inks.get(name, 0))
            end = _curve(canvas, x, y, points, ink, shape)
            labels.append((end, name if len(points) > 1 else points[0][0].name, ink, len(points) > 1))
    for place, arm in enumerate(beside):
        ink, shape = look(run.inks[arm.method])
        at = x.end + 14 + place * slot
        labels.append((dot(canvas, at, shown[arm], y, ink, shape, _tip(arm.name, shown[arm])), arm.name, ink, False))
    if beside:
        canvas.text((x.end + 8 + gutter / 2, y.start + 17), "no dial", "muted", anchor="middle", size=11)
        canvas.line([(x.end + 5, y.start), (x.end + 5, y.end)], "line", 1, (1, 3))
    _label(canvas, labels, width - names + 10, y)
    return canvas


def _curve(
    canvas: Canvas,
    x: Scale,
    y: Scale,
    points: Sequence[tuple[Setting, Estimate]],
    ink: str,
    shape: str,
    size: float = 4,
) -> Point:
    """Draw one curve with its band, or one point with its interval; return where it ends."""
    if len(points) == 1:
        arm, found = points[0]
        return dot(canvas, x(arm.alpha or 0.0), found, y, ink, shape, _tip(arm.name, found), size)
    banded = [(x(arm.alpha or 0.0), e) for arm, e in points if not math.isnan(e.low) and not math.isnan(e.high)]
    if len(banded) > 1:
        upper = [(at, y(e.high)) for at, e in banded]
        canvas.area(upper + [(at, y(e.low)) for at, e in reversed(banded)], ink, 0.14)
    line = [(x(arm.alpha or 0.0), y(e.value)) for arm, e in points]
    canvas.line(line, ink, 2)
    for (arm, found), at in zip(points, line, strict=True):
        canvas.mark(at, shape, ink, size=size, tip=_tip(arm.name, found))
    return line[-1]


def _label(canvas: Canvas, labels: Sequence[Label], left: float, y: Scale) -> None:
    """Write every name at the right edge, none over another, with a thin line to what it names."""
    room = int((canvas.width - left) / LETTER)
    places = dodge([at[1] for at, *_ in labels], LINE, y.end, y.start)
    for (at, name, ink, bold), place in zip(labels, places, strict=True):
        if abs(at[1] - place) > 1 or left - at[0] > 12:
            canvas.line([(min(at[0] + 6, left - 8), at[1]), (left - 8, at[1]), (left - 2, place)], ink, 0.6)
        canvas.text((left, place + 4), short(name, room), ink, size=12, bold=bold)


def _tip(name: str, found: Estimate) -> str:
    return f"{name}: {percent(found.value)} % {interval(found)}, n = {found.n}"


# --- what the answers named -------------------------------------------------------------------------------------------

PARTS = (
    ("parr", "memory", "memory", "circle", ()),
    ("conr", "passages", "context", "square", ()),
    ("neither", "neither", "muted", "diamond", ()),
    ("accuracy", "accuracy", "text", "up", (3.0, 3.0)),
)
CEILINGS = (("ceiling_memory", "memory"), ("ceiling_context", "context"))


def named(run: Run, task: str, method: str, title: str, width: float) -> Canvas:
    """Draw what the answers of one dial named: memory's answer, the passages', neither, and the accuracy.

    Dashed: the ceilings of the summary, what answers reach closed book and with right passages.
    """
    canvas = Canvas(width, HEIGHT, f"{title}: what the answers named, by alpha")
    y = Scale(0, 1, HEIGHT - BOTTOM, TOP)
    right = 74.0
    x = Scale(0, 1, LEFT, width - right)
    frame(
        canvas,
        x,
        y,
        title=title,
        note="% of conflict items; dashed: ceilings",
        xticks=ALPHA_TICKS,
        yticks=SHARE_TICKS,
        xname=ALPHA_NAME,
    )
    summary = run.summary(task, method)
    for key, ink in CEILINGS:
        value = summary.get(key)
        if isinstance(value, (int, float)) and 0 <= value <= 1:
            canvas.line([(x.start, y(value)), (x.end, y(value))], ink, 1.2, (5, 4))
    labels: list[Label] = []
    arms = [arm for arm in run.methods[method] if arm.alpha is not None]
    for metric, name, ink, shape, dash in PARTS:
        points = [(arm, e) for arm in arms if (e := run.get(task, "conflict", arm.name, metric))]
        if not points:
            continue
        if dash:
            line = [(x(arm.alpha or 0.0), y(e.value)) for arm, e in points]
            canvas.line(line, ink, 1.3, dash)
            labels.append((line[-1], name, ink, False))
        else:
            labels.append((_curve(canvas, x, y, points, ink, shape, 3.2), name, ink, True))
    _label(canvas, labels, width - max(text_width(p[1]) for p in PARTS) - 2, y)
    return canvas
