"""The four-state figure: every arm in every state, with intervals, as one drawing for a file of its own.

Knows a `Run` and draws on a `Canvas`. The dashed line is `off`; a hollow mark is not told apart from it.
"""

from __future__ import annotations

from ....views.canvas import Canvas
from ....views.safe_text import short
from ..number_texts import LABELS, interval, percent
from ..runs import BASELINES, Run, headline
from .axes import Scale, look

__all__ = ["forest"]

NAMES, PANEL, GAP, ROW, TOP = 128, 168, 22, 19, 62


def forest(run: Run, task: str, title: str) -> Canvas:
    """Draw the states of a task beside each other, one row per arm."""
    states = run.states(task)
    arms = [arm for arm in run.arms if any(run.cell(task, state, arm.name) for state in states)]
    height = TOP + ROW * len(arms) + 30
    canvas = Canvas(NAMES + len(states) * (PANEL + GAP), height, f"{title}: every method in every state")
    canvas.text((0, 14), short(title, 60), bold=True, size=14)
    canvas.text((0, 31), "95 % intervals; dashed: off; filled: differs from off (paired, Holm, 5 %)", "muted", size=12)
    lines = [TOP + ROW * place + ROW / 2 for place in range(len(arms))]
    for arm, height_at in zip(arms, lines, strict=True):
        canvas.text((0, height_at + 4), short(arm.name, 18))
    for place, state in enumerate(states):
        left = NAMES + place * (PANEL + GAP)
        metric = headline(state, run.kind(task))
        x = Scale(0, 1, left, left + PANEL)
        canvas.text((left, TOP - 8), f"{state}: {LABELS[metric]}, %", bold=True, size=11.5)
        for share in (0, 0.25, 0.5, 0.75, 1):
            canvas.line([(x(share), TOP), (x(share), lines[-1] + ROW / 2)], "line")
        for share in (0, 0.5, 1):
            canvas.text((x(share), lines[-1] + ROW / 2 + 15), f"{100 * share:.0f}", "muted", anchor="middle", size=11)
        off = run.get(task, state, "off", metric)
        if off is not None:
            canvas.line([(x(off.value), TOP), (x(off.value), lines[-1] + ROW / 2)], "muted", 1.2, (4, 3))
        for arm, at in zip(arms, lines, strict=True):
            found = run.get(task, state, arm.name, metric)
            if found is None:
                canvas.text((x(0.5), at + 4), "–", "muted", anchor="middle")
                continue
            change = run.against_off(task, state, arm.name, metric)
            ink, shape = ("text", "circle") if arm.name in BASELINES else look(run.inks[arm.method])
            canvas.whisker((x(found.low), at), (x(found.high), at), ink, 2)
            tip = f"{arm.name}, {state}: {percent(found.value)} % {interval(found)}, n = {found.n}"
            filled = arm.name == "off" or bool(change and change.sign)
            canvas.mark((x(found.value), at), shape, ink, size=4, filled=filled, tip=tip)
    return canvas
