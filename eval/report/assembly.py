"""Puts the report together: findings, tables, charts, items and run cards of one run or several beside each other.

Knows the other modules of the report and what each makes. report.html lays out the page, which forbids every load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...rates import count
from ...views.canvas import Canvas
from ...views.html import templates
from ...views.palette import ink_rules
from ...views.safe_text import clean
from ..figures.intervals import LEVEL
from .answers import choose
from .beside import side_by_side, tested
from .browser import browser, key
from .card import card, differences, rejected, value_text
from .charts.curves import memory_ratio, named
from .charts.tradeoff import tradeoff
from .findings import findings
from .grid import MARKS, Grid, markdown_grid, plain
from .runs import Run
from .tables import by_state, by_task, glance, other_metrics

__all__ = ["curve_panels", "part_panels", "places", "report_markdown", "report_page"]

WIDE = 920  # pixels of a chart that has no other beside it
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
    width = WIDE if len(places(runs)) == 1 else 470
    told: dict[str, Any] = {
        "title": title(runs),
        "runs": runs,
        "leads": [_lead(run, len(runs) > 1) for run in runs],
        "found": [(run, sentence) for run in runs for sentence in findings(run)],
        "reading": READING,
        "curves": curve_panels(runs),
        "tradeoffs": [panel for run, task, head in places(runs) if (panel := tradeoff(run, task, head, width))],
        "parts": part_panels(runs),
        "beside": _beside(runs) if len(runs) > 1 else None,
        "items": [browser(run, choose(run.folder, items)) for run in runs] if items else [],
        "key": key(),
        "marks": MARKS,
        "ink_rules": ink_rules(),
    }
    drawn = {"glance": glance, "conflicts": _conflicts, "by_state": by_state, "by_task": by_task, "card": card}
    page = templates("ckcontrol.eval.report").get_template("report.html")
    return page.render(told, **drawn, other_metrics=other_metrics)


def report_markdown(runs: Sequence[Run]) -> str:
    """Return findings and tables as GitHub Markdown, short enough to paste into an issue; no text of any benchmark,
    but what the first rows that could not be read are blamed for.
    """
    blocks = [f"# {plain(title(runs))}", READING]
    if len(runs) > 1 and (differ := differences(runs)):
        blocks.append(f"The runs differ in: {plain(', '.join(differ))}.")
    for run in runs:
        blocks += [f"## Run {plain(run.label)}", _told(run)]
        blocks.append("\n".join(f"- {plain(f.text)}" for f in findings(run)))
        blocks.append(markdown_grid(glance(run)))
        if "conflict" in run.states():
            blocks.append(markdown_grid(by_task(run, "conflict")))
        for task in run.tasks:
            blocks += [f"### {plain(task)}", markdown_grid(by_state(run, task))]
        tasks = sorted(run.card.get("tasks", {}))
        blocks += ["### Data", "\n".join(f"- {plain(f'{name}: {rejected(run, name)}')}" for name in tasks)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _lead(run: Run, several: bool) -> str:
    told = run.card
    parts = [
        f"run {run.label}" if several else "",
        f"{told.get('model')}",
        str(told.get("dtype") or ""),
        count(len(run.tasks), "task"),
        count(len(run.arms), "arm"),
        count(sum(int(t.get("records") or 0) for t in told.get("tasks", {}).values()), "record"),
        f"seed {told.get('seed')}",
        str(told.get("started") or "")[:10],
    ]
    return " · ".join(filter(None, parts))


def _told(run: Run) -> str:
    keys = ("model", "model_fingerprint", "dtype", "seed", "started")
    return plain(" · ".join(f"{key.replace('_', ' ')} {value_text(run.card[key])}" for key in keys if key in run.card))


def places(runs: Sequence[Run]) -> list[tuple[Run, str, str]]:
    """Return every run and task with the heading of its charts, the runs of a task together."""
    return [
        (run, task, f"{task}, run {run.label}" if len(runs) > 1 else task)
        for task in sorted({task for run in runs for task in run.tasks})
        for run in runs
        if task in run.tasks
    ]


def curve_panels(runs: Sequence[Run]) -> list[Canvas]:
    """Return the control curves of every task with generated answers in conflict."""
    here = [place for place in places(runs) if _conflicts(place[0], place[1])]
    return [memory_ratio(*place, width=470 if len(here) > 1 else WIDE) for place in here]


def part_panels(runs: Sequence[Run]) -> list[Canvas]:
    """Return what the answers named, one chart per task and dial."""
    here = [place for place in places(runs) if _conflicts(place[0], place[1])]
    width = 470 if max((len(run.dials) for run in runs), default=0) < 3 else 330  # two or three per row
    return [named(run, task, name, f"{head}: {name}", width) for run, task, head in here for name in run.dials]


def _conflicts(run: Run, task: str) -> bool:
    return "conflict" in run.states(task) and run.kind(task) == "generate"


def _beside(runs: Sequence[Run]) -> tuple[str, list[tuple[str, Grid]]]:
    """Return in what the runs differ, and a table for each state."""
    differ = differences(runs)
    note = f"The runs differ in: {', '.join(differ)}." if differ else "The run cards agree in all but date and arms."
    changes, why = tested(runs)
    states = dict.fromkeys(state for run in runs for state in run.states())
    return f"{note} {why}", [(state, side_by_side(runs, state, changes)) for state in states]
