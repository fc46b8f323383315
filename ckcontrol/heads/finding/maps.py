"""Layer by head maps of a scores file, drawn on one canvas: as a PNG (matplotlib, an extra) and in an HTML page.

Blue heads promote their source, orange heads work against it; the k best are numbered, so colour is never alone. Knows
scores and how they are drawn; measures nothing. The page's template is maps.html.
"""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import HeadsError
from ...views import canvas_png
from ...views.canvas import Canvas, sheet, text_width
from ...views.html import templates
from ...views.palette import SATURATION, STEPS, scale_rules, step
from .agreement import overlap
from .scores import SOURCES, HeadScores

__all__ = ["figure", "html_map", "relations_table", "save_png", "top_table"]

Floats = NDArray[np.float64]
CELL = 20  # px
LABELS, TOP = 46, 18  # px left of the cells and above them


def top_table(scores: HeadScores, source: str, k: int = 10, form: str | None = None) -> list[dict[str, Any]]:
    """Return the k heads that promote a source most, with their statistics, best first.

    Args:
        scores: From `find`.
        source: "memory" or "context".
        k: Heads; fewer where fewer have a positive mean.
        form: Format that ranks them; None: the first scored.

    Returns:
        Per head: layer, head, mean, error (SE), agreement (share of examples with the mean's sign), and ``formats``,
        the mean in every format scored.
    """
    form = form or scores.formats[0]
    stats = scores.statistics(source, form=form)
    means = {name: scores.importance(source, form=name) for name in scores.formats if _has(scores, source, name)}
    return [
        {
            "layer": layer,
            "head": head,
            "mean": float(stats.mean[layer, head]),
            "error": float(stats.error[layer, head]),
            "agreement": float(stats.agreement[layer, head]),
            "formats": {name: float(mean[layer, head]) for name, mean in means.items()},
        }
        for layer, head in scores.top(source, k, form=form)
    ]


def relations_table(scores: HeadScores, source: str, k: int = 10, form: str | None = None) -> list[dict[str, Any]]:
    """Return how many of their k best heads two relations share, for any two with at least 8 facts each.

    Returns:
        For each two: relations, shared, jaccard, expected (of random sets), p (chance of as many; exact).
    """
    form = form or scores.formats[0]
    counts: dict[str, int] = {}
    for record in scores.records:
        counts[record.relation] = counts.get(record.relation, 0) + (form in record.conflict)
    names = sorted(name for name, count in counts.items() if count >= 8)
    best = {name: set(scores.top(source, k, form=form, relations=[name])) for name in names}
    total = scores.model.layers * scores.model.heads
    return [{"relations": (a, b), **overlap(best[a], best[b], total)._asdict()} for a, b in combinations(names, 2)]


# --- maps -------------------------------------------------------------------------------------------------------------


def figure(scores: HeadScores, *, k: int = 10, form: str | None = None) -> Canvas:
    """Draw both maps, one above the other, each with its title and its scale.

    Args:
        scores: From `find`.
        k: Heads to number in each map.
        form: Prompt format; None: the first scored.
    """
    form = form or scores.formats[0]
    model = scores.model
    note = f"{model.family}, {model.layers} layers of {model.heads} heads · {form} prompts"
    panels = []
    for source in SOURCES:
        drawn, bound = _map(scores, source, k, form, top=TOP + 44)
        drawn.text((0, 14), drawn.label, bold=True, size=14)
        drawn.text((0, 31), note, "muted")
        low, high = f"−{bound:.2g} logits or less", f"+{bound:.2g} or more"
        x = text_width(low, 11) + 4
        drawn.text((0, drawn.height + 18), low, "muted", size=11)
        for shade in range(2 * STEPS + 1):
            drawn.tile((x + shade * CELL, drawn.height + 4), CELL - 1, f"g{shade}")
        x += (2 * STEPS + 1) * CELL + 4
        drawn.text((x, drawn.height + 18), high, "muted", size=11)
        drawn.height += 26
        drawn.width = max(drawn.width, x + text_width(high, 11), text_width(drawn.label, 14), text_width(note))
        panels.append(drawn)
    return sheet(panels, 1, note)


def save_png(scores: HeadScores, path: str | Path, *, k: int = 10, form: str | None = None) -> None:
    """Write `figure` as a PNG, at two dots per pixel.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    canvas_png.save_png(figure(scores, k=k, form=form), Path(path))


def html_map(scores: HeadScores, *, k: int = 10) -> str:
    """Return one page: both maps in every format, the best heads, and what relations share. It loads nothing.

    Point at a cell for its figures. Numbers mark the k best heads.
    """
    maps = {
        form: [(source, *_map(scores, source, k, form)) for source in SOURCES if _has(scores, source, form)]
        for form in scores.formats
    }
    best = {
        source: [
            [
                f"layer {row['layer']}, head {row['head']}",
                _signed(row["mean"]),
                _plain(row["error"]),
                f"{row['agreement']:.0%}",
                *(_signed(row["formats"].get(name, math.nan)) for name in scores.formats),
            ]
            for row in top_table(scores, source, k)
        ]
        for source in SOURCES
    }
    shared = [
        [
            f"{source}: {', '.join(row['relations'])}",
            row["shared"],
            f"{row['jaccard']:.2f}",
            f"{row['expected']:.2f}",
            f"{row['p']:.1g}",
        ]
        for source in SOURCES
        for row in relations_table(scores, source, k)
    ]
    told = {
        "scores": scores,
        "columns": ["head", "mean", "± se", "same sign", *(f"{name} mean" for name in scores.formats)],
        "relations": sorted({record.relation for record in scores.records}),
        "left": [f"{count} {why}" for why, count in sorted(scores.settings.get("left_out", {}).items()) if count],
    }
    page = templates("ckcontrol.heads.finding").get_template("maps.html")
    return page.render(told, maps=maps, best=best, shared=shared, k=k, scale_rules=scale_rules())


def _map(scores: HeadScores, source: str, k: int, form: str, top: float = TOP) -> tuple[Canvas, float]:
    """Draw one map, labelled with its title; return it with the importance at which colours saturate."""
    stats = scores.statistics(source, form=form)
    bound = _bound(stats.mean)
    layers, heads = stats.mean.shape
    bottom = top + heads * CELL
    drawn = Canvas(LABELS + layers * CELL + 6, bottom + 40, _title(source, stats.count, stats.split_half))
    places = {head: str(place) for place, head in enumerate(scores.top(source, k, form=form), 1)}
    for layer, head in np.ndindex(layers, heads):
        mean = float(stats.mean[layer, head])
        told = (
            f"layer {layer}, head {head}: {_signed(mean)} ± {_plain(float(stats.error[layer, head]))}, "
            f"{float(stats.agreement[layer, head]):.0%} of examples agree"
        )
        ink = f"g{step(SATURATION * mean / bound) + STEPS}"
        at = (LABELS + layer * CELL, top + head * CELL)
        drawn.tile(at, CELL - 1, ink, words=places.get((layer, head), ""), tip=told)
    for y in _ticks(heads):
        drawn.text((LABELS - 6, top + y * CELL + CELL / 2 + 4), str(y), "muted", anchor="end", size=11)
    for x in _ticks(layers):
        drawn.text((LABELS + x * CELL + CELL / 2, bottom + 14), str(x), "muted", anchor="middle", size=11)
    drawn.text((LABELS, bottom + 32), "layer →", "muted", size=11)
    drawn.text((LABELS - 6, top - 7), "head", "muted", anchor="end", size=11)
    return drawn, bound


# --- parts ------------------------------------------------------------------------------------------------------------


def _bound(mean: Floats) -> float:
    """Return where colours saturate: the fifth largest absolute value, lest one huge head pale the rest."""
    ordered = np.sort(np.abs(mean).ravel())[::-1]
    found = float(ordered[min(4, len(ordered) - 1)])
    if not math.isfinite(found):
        raise HeadsError("the scores hold values that are not finite.", "Score again in float32.")
    return found or float(ordered[0]) or 1.0


def _has(scores: HeadScores, source: str, form: str) -> bool:
    return any(form in example.get(source, {}) for example in scores.examples)


def _title(source: str, count: int, split_half: float) -> str:
    stable = "" if math.isnan(split_half) else f", split-half r = {split_half:.2f}"
    name = "Memory heads" if source == "memory" else "Context heads"
    return f"{name}: {count} facts{stable}"


def _ticks(count: int) -> list[int]:
    return list(range(0, count, 1 if count <= 16 else 2 if count <= 32 else 4))


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def _plain(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
