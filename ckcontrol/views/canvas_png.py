"""The same drawings as PNG, through matplotlib (an extra).

Knows shapes; knows nothing of what they stand for. Every coordinate is the SVG's.
"""

from __future__ import annotations

from pathlib import Path

from ckcontrol.errors import MissingExtra

from .canvas import LIGHT, Area, Canvas, Line, Mark, Shape, Tile, corners, words_of

__all__ = ["has_matplotlib", "save_png"]

DPI = 192
POINTS = 72 / 96  # of a CSS pixel


def has_matplotlib() -> bool:
    """Tell whether matplotlib is installed, without loading it."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def save_png(canvas: Canvas, path: Path) -> None:
    """Write the drawing at two dots per pixel, in light colours.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Circle, Polygon, Rectangle
        from matplotlib.patheffects import withStroke
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots") from error
    figure = Figure(figsize=(canvas.width / 96, canvas.height / 96), facecolor=LIGHT["surface"])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, canvas.width), ylim=(canvas.height, 0))
    axes.set_axis_off()
    shapes: list[Shape] = []
    for shape in canvas.shapes:
        shapes += [shape, words_of(shape)] if isinstance(shape, Tile) and shape.words else [shape]
    for order, shape in enumerate(shapes):
        colour = LIGHT[shape.ink]
        if isinstance(shape, Line):
            dash = (0, tuple(part / shape.width for part in shape.dash)) if shape.dash else "-"
            xs, ys = zip(*shape.points, strict=True)
            axes.plot(xs, ys, color=colour, linewidth=shape.width * POINTS, linestyle=dash, zorder=order)
        elif isinstance(shape, Area):
            axes.add_patch(Polygon(shape.points, color=colour, alpha=shape.opacity, linewidth=0, zorder=order))
        elif isinstance(shape, Mark):
            inside, edge = (colour, LIGHT["surface"]) if shape.filled else (LIGHT["surface"], colour)
            patch = Circle(shape.at, shape.size) if shape.shape == "circle" else Polygon(corners(shape))
            patch.set(facecolor=inside, edgecolor=edge, linewidth=POINTS, zorder=order)
            axes.add_patch(patch)
        elif isinstance(shape, Tile):
            square = Rectangle(shape.at, shape.size, shape.size)
            square.set(facecolor=colour, edgecolor=LIGHT["line"], linewidth=0.5 * POINTS, zorder=order)
            axes.add_patch(square)
        else:
            drawn = axes.text(
                *shape.at,
                shape.words,
                color=colour,
                fontsize=shape.size * POINTS,
                fontweight="bold" if shape.bold else "normal",
                ha={"start": "left", "middle": "center", "end": "right"}[shape.anchor],
                va="baseline",
                zorder=order,
                parse_math=False,
            )
            if shape.halo:
                drawn.set_path_effects([withStroke(linewidth=3.5 * POINTS, foreground=LIGHT["surface"])])
    figure.savefig(path, dpi=DPI, format="png", metadata={"Software": None})
