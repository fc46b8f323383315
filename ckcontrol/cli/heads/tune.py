"""``ckcontrol heads tune``: which heads to prune, chosen on development facts and reported on test facts."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...arguments import check_integer
from .. import options
from ..bars import Bars
from ..files import check_writable
from .show import Scores

if TYPE_CHECKING:
    from ...heads.choosing.panel import Result
    from ...heads.choosing.tune import Tuned

__all__ = ["tune"]

Methods = Annotated[list[str], typer.Option("--method", help="top-k, consistent, greedy, learned. Repeatable.")]


def tune(
    scores: Scores,
    direction: Annotated[str, typer.Option(help="What to strengthen: context or memory.")],
    model: options.Model = "demo",
    method: Methods = ["top-k"],  # noqa: B006  typer copies it
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the chosen mask.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most facts of each split.", show_default="all")] = None,
    budget: Annotated[int, typer.Option(min=1, help="Masks that each method may have measured.")] = 30,
    draws: Annotated[int, typer.Option(min=0, help="Random-head controls.")] = 10,
    new_tokens: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Length of an answer; 0 asks for its first token.")
    ] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps of the method 'learned'.")] = 200,
    seed: Annotated[int, typer.Option(help="Seeds controls and learning.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.AsJson = False,
) -> None:
    """Choose heads to prune, so that the model follows its context more, or its memory.

    The unpruned model is a candidate too. It wins when nothing helps in total, where conflicts, true contexts,
    irrelevant contexts and closed-book questions all count the same.
    """
    from ...heads.choosing.panel import check_direction
    from ...heads.choosing.tune import SEEDS, check_methods
    from ...heads.choosing.tune import tune as run
    from ...heads.finding.scores import HeadScores

    check_direction(direction)
    check_methods(method)
    check_integer("seed", seed, *SEEDS)
    if out is not None:
        check_writable(out)
    read = HeadScores.load(scores)
    loaded = options.load(model, device, dtype)
    with Bars() as bars:
        tuned = run(
            *loaded,
            read,
            direction,
            methods=method,
            budget=budget,
            draws=draws,
            limit=limit,
            new_tokens=new_tokens,
            steps=steps,
            seed=seed,
            on_progress=bars,
        )
    if json:
        typer.echo(json_module.dumps(tuned.to_dict()))
    else:
        _print(tuned)
    if tuned.chosen is None:
        typer.echo("No mask beats the unpruned model in total: prune nothing. No file was written.", err=json)
    elif out is not None:
        tuned.chosen.mask.save(out)
        typer.echo(f"Wrote {out}", err=json)


def _print(tuned: Tuned) -> None:
    from rich.table import Table

    from ...heads.choosing.panel import interval
    from ...views.terminal import open_console

    console = open_console()
    wanted = "RC" if tuned.direction == "context" else "RM"

    def row(name: str, result: Result) -> list[str]:
        figures = result.row()
        low, high = interval(figures[wanted], len(result.conflict))
        shares = [f"{100 * value:.0f}" for key, value in figures.items() if key != "perplexity"]
        total = f"{100 * result.total(tuned.direction):.1f}"
        return [name, *shares, f"{100 * low:.0f}–{100 * high:.0f}", f"{figures['perplexity']:.1f}", total]

    columns = ["pruned", "RM", "RC", "other", "gold", "irrel.", "closed", f"{wanted} 95%", "ppl", "total"]
    best = [(c.name, result) for f in tuned.selections.values() for c, result in f.trials if c is f.chosen]
    for title, rows in (
        (
            f"development facts: {'the best of each method' if best else 'no mask is better than none'}",
            [("none", next(iter(tuned.selections.values())).base), *best],
        ),
        (
            "test facts",
            [(_name(tuned, name), result) for name, result in tuned.test.items()]
            + [(f"random {i}", result) for i, result in enumerate(tuned.controls, 1)],
        ),
    ):
        n = len(rows[0][1].outcomes["closed book"])
        table = Table(title=f"{n} {title} · more {tuned.direction}, in %", title_justify="left")
        for name in columns:
            table.add_column(name, justify="left" if name == "pruned" else "right", no_wrap=True)
        for name, result in rows:
            table.add_row(*row(name, result))
        console.print(table)
    if tuned.chosen is not None:
        named = ", ".join(f"{layer}.{head}" for layer, head in tuned.chosen.mask.heads)
        typer.echo(
            "irrel.: irrelevant context; closed: closed book; ppl: perplexity of neutral text; total: mean of four."
        )
        typer.echo(f"Chosen: {tuned.chosen.name} (layer.head {named})")


def _name(tuned: Tuned, method: str) -> str:
    found = tuned.selections.get(method)
    return method if found is None or found.chosen is None else found.chosen.name
