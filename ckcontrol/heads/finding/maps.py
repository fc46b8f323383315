"""Layer by head maps of a scores file: a PNG (matplotlib, an extra) and a self-contained HTML page.

Blue heads promote their source, orange heads work against it; the k best are numbered, so colour is never alone. Knows
scores and drawing; measures nothing. File and relation names are escaped, and the page loads nothing.
"""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import HeadsError, MissingExtra
from ...views.html import page, table
from ...views.palette import LIGHT, MIDDLE, SATURATION, STEPS, step
from ...views.safe_text import clean, escape
from .agreement import overlap
from .scores import SOURCES, HeadScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure", "html_map", "relations_table", "save_png", "top_table"]

Floats = NDArray[np.float64]
CELL = 20  # px, of the HTML map
LABELS, TOP = 46, 18  # px left of the cells and above them


def top_table(scores: HeadScores, source: str, k: int = 10, form: str | None = None) -> list[dict[str, Any]]:
    """The k heads that promote a source most, with their statistics, best first.

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
    """How many of their k best heads two relations share, for every pair of relations with at least 8 facts each.

    Returns:
        Per pair: relations, shared, jaccard, expected (of random sets), p (chance of as many; exact).
    """
    form = form or scores.formats[0]
    counts: dict[str, int] = {}
    for record in scores.records:
        counts[record.relation] = counts.get(record.relation, 0) + (form in record.conflict)
    names = sorted(name for name, count in counts.items() if count >= 8)
    best = {name: set(scores.top(source, k, form=form, relations=[name])) for name in names}
    total = scores.model.layers * scores.model.heads
    return [{"relations": (a, b), **overlap(best[a], best[b], total)._asdict()} for a, b in combinations(names, 2)]


# --- PNG --------------------------------------------------------------------------------------------------------------


def figure(scores: HeadScores, *, k: int = 10, form: str | None = None) -> Figure:
    """Draw both maps, one above the other, as a matplotlib figure; no window, no global state.

    Args:
        scores: From `find`.
        k: Heads to number in each map.
        form: Prompt format; None: the first scored.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure as MatplotlibFigure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots") from error
    form = form or scores.formats[0]
    layers, heads = scores.model.layers, scores.model.heads
    colours = LinearSegmentedColormap.from_list("heads", [MIDDLE["confused"], LIGHT.surface, MIDDLE["surer"]])
    size = max(0.17, min(0.36, 14 / layers, 9 / heads))  # inches a cell
    drawn: Figure = MatplotlibFigure(
        figsize=(layers * size + 2.6, 2 * (heads * size + 1.15)), layout="constrained", facecolor=LIGHT.surface
    )
    drawn.suptitle(f"{scores.model.family}, {layers} layers of {heads} heads · {form} prompts", fontsize=11)
    for axes, source in zip(drawn.subplots(2, 1), SOURCES, strict=True):
        stats = scores.statistics(source, form=form)
        bound = _bound(stats.mean)
        image = axes.imshow(stats.mean.T, cmap=colours, vmin=-bound, vmax=bound, aspect="equal", origin="upper")
        for place, (layer, head) in enumerate(scores.top(source, k, form=form), 1):
            strong = stats.mean[layer, head] > 0.6 * bound
            axes.text(
                layer, head, str(place), ha="center", va="center", fontsize=7, color="white" if strong else LIGHT.text
            )
        axes.set_title(_title(source, stats.count, stats.split_half), fontsize=10, loc="left")
        axes.set_xlabel("layer", fontsize=9)
        axes.set_ylabel("query head", fontsize=9)
        axes.set_xticks(_ticks(layers))
        axes.set_yticks(_ticks(heads))
        axes.set_xticks([x - 0.5 for x in range(1, layers)], minor=True)
        axes.set_yticks([y - 0.5 for y in range(1, heads)], minor=True)
        axes.grid(which="minor", color=LIGHT.line, linewidth=0.4)
        axes.tick_params(labelsize=8, length=2)
        axes.tick_params(which="minor", length=0)
        bar = drawn.colorbar(image, ax=axes, shrink=0.9, aspect=14, pad=0.01, extend="both")
        bar.set_label("importance, logits", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return drawn


def save_png(scores: HeadScores, path: str | Path, *, k: int = 10, form: str | None = None) -> None:
    """Write `figure` as a PNG of 160 dots an inch."""
    figure(scores, k=k, form=form).savefig(path, dpi=160, format="png")


# --- HTML -------------------------------------------------------------------------------------------------------------


def html_map(scores: HeadScores, *, k: int = 10) -> str:
    """Return one page: both maps in every format, the best heads, and what relations share. It loads nothing.

    Point at a cell for its figures. Numbers mark the k best heads.
    """
    sections = []
    for form in scores.formats:
        maps = [_svg(scores, source, k, form) for source in SOURCES if _has(scores, source, form)]
        sections.append((f"Maps, {form} prompts", "\n".join(maps)))
    for source in SOURCES:
        rows = top_table(scores, source, k)
        heads = ["head", "mean", "± se", "same sign", *(f"{name} mean" for name in scores.formats)]
        cells = [
            [
                f"layer {row['layer']}, head {row['head']}",
                _signed(row["mean"]),
                _plain(row["error"]),
                f"{row['agreement']:.0%}",
                *(_signed(row["formats"].get(name, math.nan)) for name in scores.formats),
            ]
            for row in rows
        ]
        caption = (
            f"Ranked in {scores.formats[0]} prompts. A head whose sign differs between formats is not to be trusted."
        )
        body = _scroll(table(heads, cells, caption=caption, kind="ck-num"))
        sections.append((f"Heads that promote {source}", body if rows else '<p class="ck-note">None.</p>'))
    shared = [
        [
            f"{escape(source)}: {escape(a)}, {escape(b)}",
            str(row["shared"]),
            f"{row['jaccard']:.2f}",
            f"{row['expected']:.2f}",
            f"{row['p']:.1g}",
        ]
        for source in SOURCES
        for row in relations_table(scores, source, k)
        for a, b in [row["relations"]]
    ]
    if shared:
        caption = f"Of the {k} best heads of each relation; p: chance that two random sets share as many."
        head = ["relations", "shared", "Jaccard", "by chance", "p"]
        sections.append(("Overlap between relations", _scroll(table(head, shared, caption=caption, kind="ck-num"))))
    return page("Memory heads and context heads", sections, lead=_lead(scores))


def _svg(scores: HeadScores, source: str, k: int, form: str) -> str:
    stats = scores.statistics(source, form=form)
    bound = _bound(stats.mean)
    layers, heads = stats.mean.shape
    places = {head: place for place, head in enumerate(scores.top(source, k, form=form), 1)}
    parts = []
    for layer, head in np.ndindex(layers, heads):
        mean = float(stats.mean[layer, head])
        shade = step(SATURATION * mean / bound) + STEPS
        x, y = LABELS + layer * CELL, TOP + head * CELL
        told = (
            f"layer {layer}, head {head}: {_signed(mean)} ± {_plain(float(stats.error[layer, head]))}, "
            f"{float(stats.agreement[layer, head]):.0%} of examples agree"
        )
        parts.append(
            f'<g><title>{told}</title><rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" rx="2" '
            f'style="fill:var(--ck-s{shade});stroke:var(--ck-line);stroke-width:.5"/>'
        )
        if (layer, head) in places:
            parts.append(_label(x + CELL / 2 - 0.5, y + CELL / 2 + 4, str(places[layer, head]), "middle", bold=True))
        parts.append("</g>")
    parts += [_label(LABELS - 6, TOP + y * CELL + CELL / 2 + 4, str(y), "end") for y in _ticks(heads)]
    parts += [_label(LABELS + x * CELL + CELL / 2, TOP + heads * CELL + 14, str(x), "middle") for x in _ticks(layers)]
    parts.append(_label(LABELS, TOP + heads * CELL + 32, "layer →", "start"))
    parts.append(_label(LABELS - 6, 11, "head", "end"))
    width, height = LABELS + layers * CELL + 6, TOP + heads * CELL + 40
    name = _title(source, stats.count, stats.split_half)
    legend = (
        f'<p class="ck-legend"><span>{_swatch(2 * STEPS)} promotes {source}: +{bound:.2g} logits or more</span>'
        f"<span>{_swatch(0)} works against it: −{bound:.2g} or less</span><span>numbers: the best heads</span></p>"
    )
    return (
        f"<h3>{escape(name)}</h3>"
        f'<div class="ck-scroll" tabindex="0"><svg role="img" aria-label="{escape(name)}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg></div>{legend}'
    )


def _lead(scores: HeadScores) -> str:
    left = ", ".join(
        f"{count} {clean(why)}" for why, count in sorted(scores.settings.get("left_out", {}).items()) if count
    )
    relations = sorted({record.relation for record in scores.records})
    return (
        f'<p class="ck-lead">{escape(scores.model.family)}, {scores.model.layers} layers of {scores.model.heads} query '
        f"heads, {len(scores.records)} facts of {len(relations)} relations ({escape(', '.join(relations))}).</p>"
        "<p>Importance is what the difference between the two answers' logits loses when one head takes its value from "
        "a corrupted prompt while all others are frozen (path patching). Positive heads promote the source."
        f"{f' Left out: {escape(left)}.' if left else ''}</p>"
    )


# --- parts ------------------------------------------------------------------------------------------------------------


def _bound(mean: Floats) -> float:
    """Where colours saturate: the fifth largest absolute value, so that one huge head does not pale the rest."""
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


def _label(x: float, y: float, text: str, anchor: str, *, bold: bool = False) -> str:
    colour = "text" if bold else "muted"
    weight = ";font-weight:700" if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" '
        f'style="fill:var(--ck-{colour});font-size:11px{weight}">{text}</text>'
    )


def _swatch(shade: int) -> str:
    return f'<span class="ck-t ck-g{shade}">&nbsp;&nbsp;&nbsp;</span>'


def _scroll(body: str) -> str:
    return f'<div class="ck-scroll" tabindex="0">{body}</div>'


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def _plain(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
