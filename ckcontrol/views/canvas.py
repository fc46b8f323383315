"""A drawing as a list of shapes, and that list as SVG. `canvas_png.py` makes a PNG of the same list: both look alike.

Knows pixels, ink names and strings; knows nothing of runs, heads or metrics. Text is cleaned and escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .palette import DARK_INKS, DARK_SCALE, LIGHT_INKS, LIGHT_SCALE, svg_rules
from .safe_text import clean, escape

__all__ = [
    "LIGHT",
    "SHAPES",
    "Area",
    "Canvas",
    "Line",
    "Mark",
    "Point",
    "Shape",
    "Text",
    "Tile",
    "corners",
    "sheet",
    "svg",
    "text_width",
    "words_of",
]

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','DejaVu Sans',sans-serif"
LIGHT = {**LIGHT_INKS, **LIGHT_SCALE}  # every ink of a drawing that no style sheet colours
DARK = {**DARK_INKS, **DARK_SCALE}
Point = tuple[float, float]
SHAPES = ("circle", "square", "diamond", "up", "down", "hexagon")


@dataclass(frozen=True)
class Line:
    """A polyline; `dash` in pixels on and off, empty for solid."""

    points: tuple[Point, ...]
    ink: str
    width: float
    dash: tuple[float, ...]


@dataclass(frozen=True)
class Area:
    """A filled polygon without outline."""

    points: tuple[Point, ...]
    ink: str
    opacity: float


@dataclass(frozen=True)
class Mark:
    """A data point; a hollow mark is filled with the surface. `tip` is shown on pointing at it."""

    at: Point
    shape: str
    ink: str
    size: float
    filled: bool
    tip: str


@dataclass(frozen=True)
class Text:
    """One line of text; `anchor` is start, middle or end; a halo keeps it legible over lines."""

    at: Point
    words: str
    ink: str
    anchor: str
    size: float
    bold: bool
    halo: bool = False


@dataclass(frozen=True)
class Tile:
    """A square of a map from its upper left corner, with an outline and perhaps a word in its middle.

    `tip` is shown on pointing at either.
    """

    at: Point
    size: float
    ink: str
    words: str
    tip: str


Shape = Line | Area | Mark | Text | Tile


@dataclass
class Canvas:
    """Shapes on `width` by `height` pixels, drawn in order.

    Attributes:
        width: Pixels.
        height: Pixels.
        label: What the drawing shows, in words, for assistive technology; empty where the text beside it says it all.
        shapes: What was drawn so far.
    """

    width: float
    height: float
    label: str
    shapes: list[Shape] = field(default_factory=list)

    def line(self, points: Sequence[Point], ink: str, width: float = 1.0, dash: tuple[float, ...] = ()) -> None:
        """Add a polyline."""
        self.shapes.append(Line(tuple(points), ink, width, dash))

    def area(self, points: Sequence[Point], ink: str, opacity: float) -> None:
        """Add a filled polygon."""
        self.shapes.append(Area(tuple(points), ink, opacity))

    def mark(self, at: Point, shape: str, ink: str, *, size: float = 4.0, filled: bool = True, tip: str = "") -> None:
        """Add a data point."""
        self.shapes.append(Mark(at, shape, ink, size, filled, tip))

    def tile(self, at: Point, size: float, ink: str, *, words: str = "", tip: str = "") -> None:
        """Add a square of a map."""
        self.shapes.append(Tile(at, size, ink, words, tip))

    def text(
        self,
        at: Point,
        words: str,
        ink: str = "text",
        *,
        anchor: str = "start",
        size: float = 12,
        bold: bool = False,
        halo: bool = False,
    ) -> None:
        """Add a line of text; `at` is its baseline."""
        self.shapes.append(Text(at, clean(words, 120), ink, anchor, size, bold, halo))

    def whisker(self, low: Point, high: Point, ink: str, width: float = 1.5) -> None:
        """Add the line of an interval; one that is not finite is left out."""
        if all(math.isfinite(value) for value in (*low, *high)):
            self.line([low, high], ink, width)


def text_width(words: str, size: float = 12) -> float:
    """Return a generous estimate of the width of `words`, in pixels: fonts differ, overlaps must not."""
    return sum(0.33 if char in "il.,:'|·1 " else 0.62 for char in words) * size + 2


def corners(mark: Mark) -> tuple[Point, ...]:
    """Return the polygon of a mark that is not a circle; sizes look alike across shapes."""
    start, count, grow = {
        "square": (math.pi / 4, 4, 1.25),
        "diamond": (0.0, 4, 1.35),
        "up": (-math.pi / 2, 3, 1.4),
        "down": (math.pi / 2, 3, 1.4),
        "hexagon": (0.0, 6, 1.1),
    }[mark.shape]
    x, y = mark.at
    turns = [start + 2 * math.pi * step / count for step in range(count)]
    return tuple((x + grow * mark.size * math.cos(t), y + grow * mark.size * math.sin(t)) for t in turns)


# --- SVG --------------------------------------------------------------------------------------------------------------


def svg(canvas: Canvas, *, alone: bool = False) -> str:
    """Return the drawing as an SVG element.

    Args:
        canvas: What to draw.
        alone: For a file of its own: colours are written out (light; dark where the viewer prefers it) and the
            background is drawn. Otherwise the page's style sheet colours it.
    """
    body = "\n".join(_shape(shape, alone) for shape in canvas.shapes)
    size = f'width="{canvas.width:g}" height="{canvas.height:g}" viewBox="0 0 {canvas.width:g} {canvas.height:g}"'
    told = escape(canvas.label, 300)
    if not alone:
        name = f'role="img" aria-label="{told}"' if told else 'aria-hidden="true"'
        return f'<svg class="ev-svg" {name} {size}>\n{body}\n</svg>'
    used = {shape.ink for shape in canvas.shapes}
    style = svg_rules({ink: colour for ink, colour in DARK.items() if ink in used or ink in DARK_INKS})
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{told}" {size} font-family="{FONT}">\n'
        f"<style>@media (prefers-color-scheme:dark){{{style}}}</style>\n"
        f'<rect width="100%" height="100%" class="ev-f-surface" fill="{LIGHT["surface"]}"/>\n{body}\n</svg>\n'
    )


def _shape(shape: Shape, alone: bool) -> str:
    if isinstance(shape, Line):
        dash = f' stroke-dasharray="{" ".join(f"{v:g}" for v in shape.dash)}"' if shape.dash else ""
        look = f'{_look(alone, stroke=shape.ink)} stroke-width="{shape.width:g}"{dash}'
        return f'<polyline points="{_points(shape.points)}" fill="none"{look}/>'
    if isinstance(shape, Area):
        return f'<polygon points="{_points(shape.points)}"{_look(alone, fill=shape.ink)} opacity="{shape.opacity:g}"/>'
    if isinstance(shape, Mark):
        return _mark(shape, alone)
    if isinstance(shape, Tile):
        return _tile(shape, alone)
    x, y = shape.at
    weight = ' font-weight="650"' if shape.bold else ""
    anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
    look = _look(alone, fill=shape.ink)
    if shape.halo:
        look = f'{_look(alone, fill=shape.ink, stroke="surface")} stroke-width="3.5" paint-order="stroke"'
    place = f'x="{x:.1f}" y="{y:.1f}"{anchor} font-size="{shape.size:g}"{weight}{look}'
    return f"<text {place}>{escape(shape.words, None)}</text>"


def _mark(mark: Mark, alone: bool) -> str:
    fill, stroke, width = (mark.ink, "surface", 1) if mark.filled else ("surface", mark.ink, 1.6)
    look = f'{_look(alone, fill=fill, stroke=stroke)} stroke-width="{width}"'
    tip = f"<title>{escape(mark.tip)}</title>" if mark.tip else ""
    if mark.shape == "circle":
        return f'<circle cx="{mark.at[0]:.1f}" cy="{mark.at[1]:.1f}" r="{mark.size:g}"{look}>{tip}</circle>'
    return f'<polygon points="{_points(corners(mark))}"{look}>{tip}</polygon>'


def _tile(tile: Tile, alone: bool) -> str:
    x, y = tile.at
    place = f'x="{x:g}" y="{y:g}" width="{tile.size:g}" height="{tile.size:g}" rx="2"'
    square = f'<rect {place}{_look(alone, fill=tile.ink, stroke="line")} stroke-width="0.5"/>'
    words = _shape(words_of(tile), alone) if tile.words else ""
    return f"<g><title>{escape(tile.tip)}</title>{square}{words}</g>"


def words_of(tile: Tile) -> Text:
    """Return the word of a tile where it stands: in its middle."""
    middle = (tile.at[0] + tile.size / 2, tile.at[1] + tile.size / 2 + 4)
    return Text(middle, tile.words, "text", "middle", 11, True)


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _look(alone: bool, **inks: str) -> str:
    """Return classes for the page, and for a file of its own the colours too: converters ignore style sheets."""
    names = " ".join(f"ev-{part[0]}-{ink}" for part, ink in inks.items())
    return f' class="{names}"' + "".join(f' {part}="{LIGHT[ink]}"' for part, ink in inks.items() if alone)


def sheet(panels: Sequence[Canvas], columns: int, label: str, gap: float = 28) -> Canvas:
    """Return one canvas that holds `panels` in rows of `columns`."""
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    whole = Canvas(gap, gap, label)
    for row in rows:
        x = gap
        for panel in row:
            whole.shapes += [_moved(shape, x, whole.height) for shape in panel.shapes]
            x += panel.width + gap
        whole.width = max(whole.width, x)
        whole.height += max(panel.height for panel in row) + gap
    return whole


def _moved(shape: Shape, dx: float, dy: float) -> Shape:
    if isinstance(shape, (Line, Area)):
        return replace(shape, points=tuple((x + dx, y + dy) for x, y in shape.points))
    at = (shape.at[0] + dx, shape.at[1] + dy)
    return replace(shape, at=at)
