"""Progress bars on stderr for commands whose work is reported as (stage, done, total)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from ..views.safe_text import clean

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Bars"]


class Bars:
    """Draws progress reports on stderr: one bar per stage, which pulses while the length is unknown.

    Args:
        kept: Where what is done is kept, if the same command goes on there: Ctrl-C says so.
    """

    def __init__(self, kept: object = None) -> None:
        self._kept = kept
        self._tasks: dict[str, TaskID] = {}
        self._current = ""
        self._bars: Progress

    def __enter__(self) -> Bars:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        left = TimeRemainingColumn(compact=True, elapsed_when_finished=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), left)
        self._bars = Progress(*columns, console=Console(stderr=True))
        self._bars.start()
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self._bars.stop()
        if kind is KeyboardInterrupt and self._kept is not None:
            typer.echo(clean(f"What is done is in {self._kept}; the same command goes on there.", None), err=True)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage. A new stage finishes the one before; a total of 0 makes its bar pulse."""
        if stage != self._current and self._current:
            self._finish(self._current)
        self._current = stage
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total or None)
        self._bars.update(self._tasks[stage], completed=done, total=total or None)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _finish(self, stage: str) -> None:
        task = self._bars.tasks[list(self._tasks).index(stage)]
        total = task.total or 1
        self._bars.update(self._tasks[stage], completed=total, total=total)
