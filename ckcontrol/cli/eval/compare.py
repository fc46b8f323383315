"""``ckcontrol eval compare``: paired differences between two runs, or between two arms, with intervals."""

from __future__ import annotations

import json as json_module
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import EvalError
from ...views.safe_text import clean
from .. import options

__all__ = ["compare"]

METRICS = "accuracy,parr,conr"


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run's folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another; the same one to compare its arms.")],
    arms: Annotated[
        str | None,
        typer.Option(metavar="A=B,...", help="An arm of A with one of B.", show_default="every arm with itself"),
    ] = None,
    metrics: Annotated[str, typer.Option(metavar="NAME,...", help="What to compare; all for everything.")] = METRICS,
    json: options.AsJson = False,
) -> None:
    """Compare two runs on the records both answered: A minus B, with 95 % intervals and Holm's correction."""
    from ...eval.figures.cells import collect
    from ...eval.figures.compare import compare as compared
    from ...eval.judging.measures import UNDEFINED
    from ...eval.run_files import items, read_card, samples

    names = None if metrics == "all" else [name.strip() for name in metrics.split(",")]
    cards = [read_card(folder) for folder in (first, second)]
    cells = [collect(items(folder), samples(folder)) for folder in (first, second)]
    rows = compared(
        cells[0],
        cells[1],
        arms=None if arms is None else _matched(arms),
        metrics=names,
        longest=max(card["options"].get("max_new_tokens", 0) for card in cards) or None,
    )
    if first.resolve() == second.resolve() and arms is None:
        typer.echo("A and B are the same run, so nothing differs: --arms A=B compares two of its arms.", err=True)
    if json:
        typer.echo(json_module.dumps(rows))
    else:
        _print(rows)
    places = {at[:2] for at in cells[0]} & {at[:2] for at in cells[1]}
    for name, why in UNDEFINED.items():
        told = {(row["task"], row["state"]) for row in rows if row["metric"] == name}
        if lacking := sorted(places - told) if names is None or name in names else []:
            typer.echo(clean(f"No {name} for {', '.join(map(' · '.join, lacking))}: {why}.", 1000), err=True)


def _matched(text: str) -> list[tuple[str, str]]:
    found = []
    for part in text.split(","):
        one, mark, other = part.partition("=")
        if not mark or not one or not other:
            raise EvalError(f"--arms {part!r} is not two arms.", "Write --arms off=ck-plug@0,closed-book=ck-plug@1")
        found.append((one.strip(), other.strip()))
    return found


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from ...eval.judging.measures import METRICS as RULES
    from ...eval.report.number_texts import percent, points, titled
    from ...views.terminal import open_console

    console = open_console()
    tables: dict[tuple[str, str, str], Table] = {}
    for row in rows:
        place, share = (row["task"], row["state"], row["metric"]), RULES[row["metric"]].bounded
        figure, change = (percent, points) if share else (_number, partial(_number, sign="+"))
        if place not in tables:
            title = " · ".join((*place[:2], titled(row["metric"]))) + (", in %" if share else "")
            tables[place] = Table(title=clean(title, 100), title_justify="left")
            tables[place].add_column("arm", overflow="fold")
            for name in ("A", "B", "A - B", "95 %", "n"):
                tables[place].add_column(name, justify="right", no_wrap=True)
        arms = row["arm_a"] if row["arm_a"] == row["arm_b"] else f"{row['arm_a']} - {row['arm_b']}"
        mark = "*" if row["p_holm"] is not None and row["p_holm"] < 0.05 else " "
        span = f"{change(row['low'])} to {change(row['high'])}"
        figures = (figure(row["a"]), figure(row["b"]), change(row["difference"]) + mark, span, f"{row['n']:,}")
        tables[place].add_row(clean(arms, 80), *figures)
    for table in tables.values():
        console.print(table)
    typer.echo("* p < 0.05 after Holm's correction over the arms of a table; paired, clustered by question.")


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2f}"
