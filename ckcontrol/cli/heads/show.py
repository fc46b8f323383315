"""``ckcontrol heads show``: a scores file as tables, a PNG and a page."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import HeadsError, did_you_mean
from ...views.safe_text import clean
from .. import options
from ..files import check_writable

if TYPE_CHECKING:
    from ...heads.finding.scores import HeadScores

__all__ = ["Scores", "best_heads", "figures", "print_heads", "show"]

Scores = Annotated[Path, typer.Argument(metavar="HEADS.JSON", help="Written by `ckcontrol heads find`.")]


def show(
    scores: Scores,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the maps.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page.", show_default=False)] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Heads to list per source.")] = 10,
    form: Annotated[
        str | None, typer.Option("--format", help="Prompt format that ranks them.", show_default="the first scored")
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Show the heads that promote memory and the context, how stable that is, and what relations have in common."""
    from ...heads.finding.scores import HeadScores

    for path in (png, html):
        if path is not None:
            check_writable(path)
    read = HeadScores.load(scores)
    if form is not None and form not in read.formats:
        raise HeadsError(f"format {form!r} was not scored.", did_you_mean(form, read.formats))
    if png is not None:  # before anything is printed: matplotlib may be missing
        from ...heads.finding.maps import save_png

        save_png(read, png, k=top, form=form)
    if json:
        typer.echo(json_module.dumps(_told(read, top, form)))
    else:
        _print(read, top, form)
    if html is not None:
        from ...heads.finding.maps import html_map

        html.write_text(html_map(read, k=top), encoding="utf-8")
    for path in (png, html):
        if path is not None:
            typer.echo(f"Wrote {path}", err=json)


def _told(scores: HeadScores, top: int, form: str | None) -> dict[str, Any]:
    from ...heads.finding.maps import relations_table

    told: dict[str, Any] = {"facts": len(scores.records), "formats": list(scores.formats)}
    for source in ("memory", "context"):
        relations = relations_table(scores, source, top, form)
        told[source] = {**best_heads(scores, source, top, form), "relations": relations}
    return told


def best_heads(scores: HeadScores, source: str, k: int, form: str | None = None) -> dict[str, Any]:
    """Return how stable the ranking for a source is, and its k best heads with their figures; None where unknown."""
    from ...heads.finding.maps import top_table

    stable = scores.statistics(source, form=form or scores.formats[0]).split_half
    rows = top_table(scores, source, k, form)
    return {
        "split_half": None if math.isnan(stable) else stable,
        "heads": [{**row, "error": None if math.isnan(row["error"]) else row["error"]} for row in rows],
    }


def print_heads(
    source: str, found: Mapping[str, Any], names: Sequence[str], cells: Callable[[dict[str, Any]], Sequence[str]]
) -> None:
    """Print what `best_heads` found as a table: one row per head, with `cells` under the headings `names`."""
    from rich.table import Table

    from ...views.terminal import open_console

    stable = "" if found["split_half"] is None else f" · split-half r = {found['split_half']:.2f}"
    table = Table(title=f"Heads that promote {source}{stable}", title_justify="left")
    for name in names:
        table.add_column(clean(name), justify="right")
    for row in found["heads"]:
        table.add_row(*cells(row))
    open_console().print(table)


def figures(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the standard error of a head's mean, empty where unknown, and the share of examples with its sign."""
    return "" if row["error"] is None else f"{row['error']:.3f}", f"{row['agreement']:.0%}"


def _print(scores: HeadScores, top: int, form: str | None) -> None:
    told = _told(scores, top, form)
    model = scores.model
    typer.echo(
        f"{clean(model.family)}: {model.layers} layers of {model.heads} heads, {told['facts']} facts, "
        f"ranked in {clean(form or scores.formats[0])} prompts"
    )
    others = scores.formats if len(scores.formats) > 1 else ()
    for source in ("memory", "context"):
        print_heads(
            source,
            told[source],
            ("head", "logits", "± se", "same sign", *others),
            lambda row: (
                f"{row['layer']}.{row['head']}",
                f"{row['mean']:+.3f}",
                *figures(row),
                *(f"{row['formats'][name]:+.3f}" if name in row["formats"] else "" for name in others),
            ),
        )
    for source in ("memory", "context"):
        for row in told[source]["relations"]:
            pair = clean(" and ".join(row["relations"]))
            typer.echo(
                f"{source}: {pair} share {row['shared']} of their {top} best heads "
                f"(Jaccard {row['jaccard']:.2f}, by chance {row['expected']:.2f}, p = {row['p']:.1g})"
            )
