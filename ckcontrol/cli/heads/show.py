"""``ckcontrol heads show``: a scores file as tables, a PNG and a page."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import HeadsError, did_you_mean
from ...views.safe_text import clean
from .. import options
from ..files import check_writable

if TYPE_CHECKING:
    from ...heads.finding.scores import HeadScores

__all__ = ["show"]

Scores = Annotated[Path, typer.Argument(metavar="HEADS.JSON", help="Written by `ckcontrol heads find`.")]


def show(
    scores: Scores,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the maps.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page.", show_default=False)] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Heads to list of each source.")] = 10,
    form: Annotated[
        str | None, typer.Option("--format", help="Prompt format that ranks them.", show_default="the first scored")
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Show the heads that promote memory and the context, how stable that is, and what relations share."""
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
    from ...heads.finding.maps import relations_table, top_table

    told: dict[str, Any] = {"facts": len(scores.records), "formats": list(scores.formats)}
    for source in ("memory", "context"):
        stable = scores.statistics(source, form=form or scores.formats[0]).split_half
        told[source] = {
            "split_half": None if stable != stable else stable,
            "heads": [
                {**row, "error": None if row["error"] != row["error"] else row["error"]}
                for row in top_table(scores, source, top, form)
            ],
            "relations": relations_table(scores, source, top, form),
        }
    return told


def _print(scores: HeadScores, top: int, form: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    told = _told(scores, top, form)
    console = Console()
    model = scores.model
    typer.echo(
        f"{clean(model.family)}: {model.layers} layers of {model.heads} heads, {told['facts']} facts, "
        f"ranked in {clean(form or scores.formats[0])} prompts"
    )
    for source in ("memory", "context"):
        stable = told[source]["split_half"]
        title = f"Heads that promote {source}" + ("" if stable is None else f" · split-half r = {stable:.2f}")
        table = Table(title=title, title_justify="left")
        others = [name for name in scores.formats if len(scores.formats) > 1]
        for name in ("head", "logits", "± se", "same sign", *others):
            table.add_column(clean(name), justify="right")
        for row in told[source]["heads"]:
            error = "" if row["error"] is None else f"{row['error']:.3f}"
            means = [f"{row['formats'][name]:+.3f}" if name in row["formats"] else "" for name in others]
            place = f"{row['layer']}.{row['head']}"
            table.add_row(place, f"{row['mean']:+.3f}", error, f"{row['agreement']:.0%}", *means)
        console.print(table)
    for source in ("memory", "context"):
        for row in told[source]["relations"]:
            pair = clean(" and ".join(row["relations"]))
            typer.echo(
                f"{source}: {pair} share {row['shared']} of their {top} best heads "
                f"(Jaccard {row['jaccard']:.2f}, by chance {row['expected']:.2f}, p = {row['p']:.1g})"
            )
