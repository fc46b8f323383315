"""The report of one evaluation run or several: a page that loads nothing, tables in Markdown, and the charts as files.

Reads run directories and writes files; computes no metric. Everything comes from results.json and the run card, except
the items, which come from the samples.

Example:
    >>> write_report([Path("runs/a"), Path("runs/b")], out=Path("report"), items=20)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckcontrol.errors import MissingExtra

from ...views.canvas import Canvas, sheet, svg
from ...views.canvas_png import has_matplotlib, save_png
from .assembly import curve_panels, places, report_markdown, report_page
from .charts.forest import forest
from .runs import Run, read_runs

__all__ = ["write_report"]


def write_report(
    run_dirs: Sequence[Path], out: Path | None = None, items: int = 20, *, png: bool | None = None
) -> Path:
    """Write report.html, report.md, curves.svg and four_states.svg; the charts as PNG too, given matplotlib.

    The page is one file without scripts; it loads nothing. Its bytes depend on the run directories alone.

    Args:
        run_dirs: Directories with results.json, run.json, items.jsonl and samples.jsonl; several stand side by side.
        out: Where to write; the first run directory when None. Made when missing.
        items: Items to show per task, those first on which the arms disagree. 0: the page holds no benchmark text.
        png: True asks for the PNG files, False for none, None for them where matplotlib is installed.

    Returns:
        The path of report.html.

    Raises:
        EvalError: A directory holds no finished run.
        MissingExtra: `png` is True and matplotlib is not installed.
    """
    if png and not has_matplotlib():
        raise MissingExtra("matplotlib", "plots")
    runs = read_runs([Path(folder) for folder in run_dirs])
    folder = Path(out) if out is not None else runs[0].folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(report_page(runs, items), encoding="utf-8", newline="\n")
    (folder / "report.md").write_text(report_markdown(runs), encoding="utf-8", newline="\n")
    for name, canvas in _files(runs).items():
        (folder / f"{name}.svg").write_text(svg(canvas, alone=True), encoding="utf-8", newline="\n")
        if png or (png is None and has_matplotlib()):
            save_png(canvas, folder / f"{name}.png")
    return path


def _files(runs: Sequence[Run]) -> dict[str, Canvas]:
    """Return the drawings that become files: only those that have something to show."""
    files = {}
    if curves := curve_panels(runs):
        files["curves"] = sheet(curves, 2, "Control curves")
    forests = [forest(run, task, head) for run, task, head in places(runs)]
    if forests:
        files["four_states"] = sheet(forests, 1, "Every method in every state")
    return files
