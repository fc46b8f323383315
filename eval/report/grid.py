"""A table between numbers and notation: the same cells become HTML and Markdown.

Knows text, a sign and perhaps a small drawing per cell; knows nothing of runs. Escapes here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ckcontrol.views.html import table
from ckcontrol.views.safe_text import clean, escape

from ...views.canvas import Canvas, svg

__all__ = ["Cell", "Grid", "html_grid", "markdown_grid", "plain"]

MARKS = {1: "▲", -1: "▼", 0: ""}


@dataclass(frozen=True)
class Cell:
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
    rows: list[list[Cell]] = field(default_factory=list)
    caption: str = ""


def html_grid(grid: Grid, kind: str = "ev-cells") -> str:
    """Return the table as HTML; rows become cards on narrow screens. `kind` is the layout of its cells."""
    rows = [[_name(row[0]), *(_figure(cell) for cell in row[1:])] for row in grid.rows]
    body = table([clean(head, 80) for head in grid.heads], rows, caption=clean(grid.caption, 600))
    return f'<div class="{kind}">{body}</div>'


def _name(cell: Cell) -> str:
    detail = f'<span class="ev-ci">{escape(cell.detail, 120)}</span>' if cell.detail else ""
    return f"<bdi>{escape(cell.text, 80)}</bdi>{detail}"


def _figure(cell: Cell) -> str:
    sign = {1: "ev-up", -1: "ev-down", 0: ""}[cell.sign if cell.merit else 0]
    figure = f"{escape(cell.text, 160)} {MARKS[cell.sign]}".strip()
    glyph = svg(cell.glyph) if cell.glyph else ""
    detail = f'<span class="ev-ci">{escape(cell.detail, 120)}</span>' if cell.detail else ""
    return f'<span class="{f"ev-v {sign}".strip()}">{figure}</span>{glyph}{detail}'


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
    """Return text on one line in which Markdown and HTML find nothing to act on."""
    line = " ".join(clean(text, 600).split()).replace("&", "&amp;").replace("<", "&lt;")
    for char in "\\`*_[]|#!":
        line = line.replace(char, "\\" + char)
    return line
