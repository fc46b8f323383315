"""What ``index build`` and ``index add`` say while they work: a live line on a terminal, elsewhere a line now and then.

Everything goes to stderr. Knows the callbacks of a reader and of an index, and nothing of what either does.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..rates import count
from ..views.safe_text import clean
from .words import in_options

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..retrieval import Skipped

__all__ = ["WriteProgress"]

EVERY = 10.0  # seconds between two plain lines


class WriteProgress:
    """Collects the reports of one write and shows them. Use as a context manager.

    Args:
        index: The index's folder; its own files are not reported if it lies among the sources.
        command: The command that was called, in whose words inputs are skipped.

    Attributes:
        files: Files that were read.
        skipped: What was left out, in order.
    """

    def __init__(self, index: Path, command: Any = None) -> None:
        self._command = command
        self._index = index.resolve()
        self.files = 0
        self.skipped: list[Skipped] = []
        self._name = ""
        self._stage = ""
        self._counts = {"Embedding": 0, "Texts": 0}
        self._bytes = (0, 0)
        self._building = 0
        self._started = self._said = 0.0
        self._bars: Progress | None = None

    def __enter__(self) -> WriteProgress:
        from rich.console import Console

        self._started = self._said = time.monotonic()
        console = Console(stderr=True)
        if console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
            self._bars = Progress(*columns, console=console, transient=True)
            self._bars.start()
            self._bars.add_task(self.line(), total=None)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def on_file(self, name: str, done: int, total: int) -> None:
        """Take a report of the reader: a file's name, the bytes read so far, and the bytes of all files."""
        self.files += name != self._name and not self._mine(name)
        self._name, self._bytes = name, (done, total)
        self._show()

    def on_skip(self, skipped: Skipped) -> None:
        """Print an input that is left out, at once, whatever else is being shown."""
        if self._mine(skipped.name):
            return
        skipped = replace(skipped, reason=in_options(skipped.reason, self._command, hint=True))
        self.skipped.append(skipped)
        text = f"skipped  {' '.join(clean(f'{skipped.name}: {skipped.reason}', 1000).split())}"
        if self._bars is None:
            print(text, file=sys.stderr)
        else:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_progress(self, stage: str, done: int, total: int) -> None:
        """Take a report of the index."""
        if total:
            self._stage, self._building = stage, total
        else:
            self._counts[stage] = done
        self._show()

    def _mine(self, name: str) -> bool:
        return Path(name).resolve().is_relative_to(self._index)

    def line(self) -> str:
        """Return the line that says how far the work has come."""
        if self._building:
            return f"{self._stage} of {count(self._building, 'vector')}"
        done, total = self._bytes
        texts = self._counts["Texts"]
        rate = texts / max(time.monotonic() - self._started, 1e-3)
        parts = [f"{100 * done // total}% read"] if done < total else []
        parts += [count(self.files, "file")] if self.files else ["looking for files"]
        parts += [f"{count(texts, 'text')} embedded, {rate:,.0f}/s"] if texts else []
        return " · ".join([*parts, *([clean(self._name, 60)] if self._name else [])])

    def _show(self) -> None:
        if self._bars is not None:
            done, total = self._bytes  # all read is not all done: a full bar would stop its clock
            known = total > 1 and not self._building
            amount = (min(done, total - 1), total) if known else (0, None)
            self._bars.update(self._bars.task_ids[0], description=self.line(), completed=amount[0], total=amount[1])
        elif time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)
