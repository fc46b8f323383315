"""The report as Markdown: the findings and the tables, short enough to paste into an issue.

Knows grids and sentences; holds no text of any benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence

from .assembly import READING, title
from .card import differences, rejected
from .findings import findings
from .grid import markdown_grid, plain
from .runs import Run
from .tables import by_state, by_task, glance

__all__ = ["report_markdown"]


def report_markdown(runs: Sequence[Run]) -> str:
    """Return the report of one run or several as GitHub Markdown."""
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
        tasks = run.card.get("tasks", {}).items()
        blocks += ["### Data", "\n".join(f"- {plain(f'{name}: {rejected(task)}')}" for name, task in sorted(tasks))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _told(run: Run) -> str:
    keys = ("model", "model_fingerprint", "dtype", "seed", "started")
    return plain(" · ".join(f"{key.replace('_', ' ')} {run.card[key]}" for key in keys if key in run.card))
