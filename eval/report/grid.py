"""A table between numbers and notation: the same cells become HTML (by the report's template) and Markdown (here).

Knows text, a sign and perhaps a small drawing per cell; knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...views.canvas import Canvas
from ...views.safe_text import clean

__all__ = ["MARKS", "Grid", "GridCell", "markdown_grid", "plain"]

MARKS = {1: "▲", -1: "▼", 0: ""}


@dataclass(frozen=True)
class GridCell:
    """One figure.

    Attributes:
        text: The figure or the name, plain text.
        detail: A quieter second line: interval, n, where.
        sign: 1 or -1 marks a tested difference, up or down.
        glyph: A small drawing beside the figure.
        merit: The direction is better or worse, and coloured so; False where it is only a direction.
    """

    text: str
    detail: str = ""
    sign: int = 0
    glyph: Canvas | None = None
    merit: bool = True


@dataclass
class Grid:
    """A table: column names, rows of cells (the first names the row), and a sentence above."""

    heads: list[str]
    rows: list[list[GridCell]] = field(default_factory=list)
    caption: str = ""


def markdown_grid(grid: Grid) -> str:
    """Return the table as GitHub Markdown, its caption as a line before it."""
    lines = [f"{plain(grid.caption)}\n"] if grid.caption else []
    lines.append(_row(grid.heads))
    lines.append("|" + "|".join([":--", *["--:"] * (len(grid.heads) - 1)]) + "|")
    for row in grid.rows:
        lines.append(_row(" ".join(part for part in (c.text, MARKS[c.sign], c.detail) if part) for c in row))
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"


def plain(text: str) -> str:
    """Return text on one line that means nothing but itself in Markdown and HTML."""
    line = " ".join(clean(text, 600).split()).replace("&", "&amp;").replace("<", "&lt;")
    for char in "\\`*_[]|#!":
        line = line.replace(char, "\\" + char)
    return line
