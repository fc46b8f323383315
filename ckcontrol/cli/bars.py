"""Progress on stderr of work that is reported as (stage, done, total): bars, or lines into a file or pipe."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import typer

from ..views.safe_text import clean
from .progress import EVERY

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Bars"]


class Bars:
    """Shows progress reports on stderr: on a terminal one bar per stage, which pulses while the length is unknown.

    Elsewhere a line at the start and at the end of a stage, and one every ten seconds between them.

    Args:
        kept: Where what is done is kept, if the same command goes on there: Ctrl-C says so.
    """

    def __init__(self, kept: object = None) -> None:
        self._kept = kept
        self._tasks: dict[str, TaskID] = {}
        self._current = ""
        self._began = (0.0, 0)  # the current stage: when, and what was done then
        self._said = (0.0, 0)  # the last line: when, and what was done then
        self._bars: Progress | None = None
        self._unread = False  # nobody reads stderr any more

    def __enter__(self) -> Bars:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if console.is_terminal:
            left = TimeRemainingColumn(compact=True, elapsed_when_finished=False)
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), left)
            self._bars = Progress(*columns, console=console)
            self._bars.start()
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()
        if kind is KeyboardInterrupt and self._kept is not None:
            typer.echo(clean(f"What is done is in {self._kept}; the same command goes on there.", None), err=True)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage. A new stage finishes the one before; a total of 0 makes its bar pulse."""
        new, before, self._current = stage != self._current, self._current, stage
        if self._bars is None:
            self._tell(stage, done, total, new)
            return
        if new and before:
            self._finish(self._bars, before)
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total or None)
        self._bars.update(self._tasks[stage], completed=done, total=total or None)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        if self._bars is None:
            self._line(text)
        else:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _tell(self, stage: str, done: int, total: int, new: bool) -> None:
        now = time.monotonic()
        if new:
            self._began = (now, done)
        ended = 0 < total == done != self._said[1]
        if not (new or ended or now - self._said[0] >= EVERY):
            return
        self._said = (now, done)
        spent, made = now - self._began[0], done - self._began[1]
        parts = [f"{stage}: {done:,} of {total:,}" if total else f"{stage}: {done:,}" if done else stage]
        parts += [str(timedelta(seconds=round(spent)))] if not new else []
        parts += (
            [f"{timedelta(seconds=round(spent / made * (total - done)))} left"] if made > 0 and done < total else []
        )
        self._line(" · ".join(parts))

    def _line(self, text: str) -> None:
        if not self._unread:
            try:
                print(text, file=sys.stderr, flush=True)
            except OSError:  # whoever read stderr has gone; the work goes on
                self._unread = True

    def _finish(self, bars: Progress, stage: str) -> None:
        task = bars.tasks[list(self._tasks).index(stage)]
        total = task.total or 1
        bars.update(self._tasks[stage], completed=total, total=total)
