"""Puts the page together: findings, tables, charts, items and run cards of one run or several beside each other.

Knows the other modules of the report and the page shell, which forbids every load. Headings are ours or escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ckcontrol.views.html import page
from ckcontrol.views.safe_text import clean, escape

from ...views.canvas import Canvas, svg
from .answers import choose
from .beside import side_by_side, tested
from .browser import browser, key_html
from .card import card, differences
from .charts.curves import memory_ratio, named
from .charts.tradeoff import tradeoff
from .findings import findings
from .grid import html_grid
from .number_texts import count
from .runs import LEVEL, Run
from .style import CSS
from .tables import by_state, by_task, glance, other_metrics

__all__ = ["curve_panels", "part_panels", "places", "report_page", "title"]

READING = (
    "Memory ratio (MR): of the answers that name memory's or the passages' answer, the share that names memory's; 0 % "
    "follows the passages, 100 % memory. Its n counts those answers; the others are told as neither. Accuracy: the "
    "answer names what is true. Brackets: 95 % intervals, clustered by question. ▲ higher, ▼ lower than off: paired "
    f"test, p < {LEVEL:g} after Holm's correction over the arms of one task and state. Higher is better for accuracy; "
    "for the memory ratio it is a direction, not a merit."
)


def title(runs: Sequence[Run]) -> str:
    """Return the heading: the models, or the runs."""
    models = list(dict.fromkeys(clean(str(run.card.get("model", run.label)), 60) for run in runs))
    return f"Context or memory: {' and '.join(models[:3])}{' …' if len(models) > 3 else ''}"


def report_page(runs: Sequence[Run], items: int) -> str:
    """Return the whole page.

    Args:
        runs: One or more.
        items: Items to show per task; 0 shows no text of any benchmark.
    """
    many = len(runs) > 1
    reading = f'<p class="ck-note">{READING}</p>'
    curves, parts = curve_panels(runs), part_panels(runs)
    sections = [("Control curves", _row(curves)), ("At a glance", _each(runs, _glance) + reading)]
    if many:
        sections.append(("Runs side by side", _beside(runs)))
    sections += [
        ("Reach against cost", _row(_tradeoffs(runs))),
        ("What the answers named", _row(parts)),
        ("Every state, task by task", _each(runs, _states)),
        ("Method by task", _each(runs, _matrix)),
        ("Every other metric", _each(runs, _others)),
    ]
    if items:
        body = _each(runs, lambda run: browser(run, choose(run.folder, items)))
        sections += [("Items", key_html() + body)] * bool(body)
    sections.append(("How it was run", _each(runs, card)))
    sections = [(heading, body) for heading, body in sections if body.strip()]
    anchored = [(heading, f'<div id="{_anchor(heading)}">{body}</div>') for heading, body in sections]
    links = "".join(f'<li><a href="#{_anchor(h)}">{escape(h)}</a></li>' for h, _ in sections)
    lead = f'{_lead(runs)}\n<nav aria-label="Contents"><ul class="ev-toc">{links}</ul></nav>'
    whole = page(title(runs), anchored, lead=lead)
    return whole.replace("</style>", f"{CSS}</style>", 1)  # the first one: the page's own style sheet


def _anchor(heading: str) -> str:
    return "ev-" + heading.lower().replace(",", "").replace(" ", "-")


def _each(runs: Sequence[Run], body: Callable[[Run], str]) -> str:
    parts = []
    for run in runs:
        made = body(run)
        if made.strip():
            parts.append((f"<h3>Run {escape(run.label)}</h3>\n" if len(runs) > 1 else "") + made)
    return "\n".join(parts)


def _lead(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        told = run.card
        parts = [
            f"run {run.label}" if len(runs) > 1 else "",
            f"{told.get('model')}",
            str(told.get("dtype") or ""),
            count(len(run.tasks), "task"),
            count(len(run.arms), "arm"),
            count(sum(int(t.get("records") or 0) for t in told.get("tasks", {}).values()), "record"),
            f"seed {told.get('seed')}",
            str(told.get("started") or "")[:10],
        ]
        lines.append(f'<p class="ck-sum">{escape(" · ".join(filter(None, parts)), 300)}</p>')
    found = [(run, finding) for run in runs for finding in findings(run)]
    facts = "".join(
        f"<li{' class=ev-bad' if f.bad else ''}>{f'<b>{escape(run.label)}</b>: ' if len(runs) > 1 else ''}"
        f"{escape(f.text, 600)}</li>"
        for run, f in found
    )
    return "\n".join([*lines, f'<ul class="ev-facts">{facts}</ul>'])


def _glance(run: Run) -> str:
    reached = [task for task in run.tasks if _conflicts(run, task)]
    bars = f"Reach: a bar a task, from above {', '.join(reached)}; tick: off." if len(reached) > 1 else ""
    return html_grid(glance(run), "ev-glance") + f'<p class="ck-note">{escape(bars, 400)}</p>' * bool(bars)


def places(runs: Sequence[Run]) -> list[tuple[Run, str, str]]:
    """Return every run and task with the heading of its charts; a task's runs stand beside each other."""
    return [
        (run, task, f"{task}, run {run.label}" if len(runs) > 1 else task)
        for task in sorted({task for run in runs for task in run.tasks})
        for run in runs
        if task in run.tasks
    ]


def curve_panels(runs: Sequence[Run]) -> list[Canvas]:
    """Return the control curves of every task with generated answers in conflict."""
    return [memory_ratio(run, task, head) for run, task, head in places(runs) if _conflicts(run, task)]


def part_panels(runs: Sequence[Run]) -> list[Canvas]:
    """Return what the answers named, one chart a task and dial."""
    here = [place for place in places(runs) if _conflicts(place[0], place[1])]
    width = 470 if max((len(run.dials) for run in runs), default=0) < 3 else 330  # two or three a row
    return [named(run, task, name, f"{head}: {name}", width) for run, task, head in here for name in run.dials]


def _conflicts(run: Run, task: str) -> bool:
    return "conflict" in run.states(task) and run.kind(task) == "generate"


def _tradeoffs(runs: Sequence[Run]) -> list[Canvas]:
    return [panel for run, task, head in places(runs) if (panel := tradeoff(run, task, head))]


def _row(panels: Sequence[Canvas]) -> str:
    kind = "ev-row ev-three" if panels and panels[0].width < 400 else "ev-row"
    return f'<div class="{kind}">{"".join(map(svg, panels))}</div>' if panels else ""


def _states(run: Run) -> str:
    return "\n".join(f"<h3>{escape(task)}</h3>\n{html_grid(by_state(run, task))}" for task in run.tasks)


def _matrix(run: Run) -> str:
    """The first state stands open; the others fold, for they repeat the figures above. One task: nothing to add."""
    if len(run.tasks) < 2:
        return ""
    first, *others = [html_grid(by_task(run, state)) for state in run.states()] or [""]
    folded = [
        f"<details><summary>{escape(state)}</summary>{body}</details>"
        for state, body in zip(run.states()[1:], others, strict=True)
    ]
    return "\n".join([first, *folded])


def _others(run: Run) -> str:
    folded = []
    for task in run.tasks:
        for state in run.states(task):
            grid = other_metrics(run, task, state)
            body = f'<div class="ck-scroll" tabindex="0">{html_grid(grid, "ev-wide")}</div>'
            name = f"{escape(task)}, {escape(state)}"
            folded += [f"<details><summary>{name}</summary>{body}</details>"] if len(grid.heads) > 1 else []
    return "\n".join(folded)


def _beside(runs: Sequence[Run]) -> str:
    differ = differences(runs)
    note = f"The runs differ in: {', '.join(differ)}." if differ else "The run cards agree in all but date and arms."
    pairs, why = tested(runs)
    parts = [f'<p class="ck-note">{escape(f"{note} {why}", 1000)}</p>']
    for state in dict.fromkeys(state for run in runs for state in run.states()):
        grid = side_by_side(runs, state, pairs)
        if grid.rows:
            opened = " open" if state == "conflict" else ""
            parts.append(f"<details{opened}><summary>{escape(state)}</summary>{html_grid(grid)}</details>")
    return "\n".join(parts)
