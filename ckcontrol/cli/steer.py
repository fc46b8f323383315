"""``ckcontrol steer find``: find a direction between context and memory, and say what it does on facts held back."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .bars import Bars
from .files import check_writable
from .words import TextCommand, group

if TYPE_CHECKING:
    from ..heads.directions.find import Found

__all__ = ["app", "find"]

app = group()


@app.command("find", cls=TextCommand)
def find(
    facts: Annotated[
        Path, typer.Option("--facts", metavar="FILE", help="JSON lines: relation, subject, answer, cloze, question.")
    ],
    model: options.Model = "demo",
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where it is written.")] = Path("direction.safetensors"),
    relation: Annotated[list[str], typer.Option("--relation", help="Use only this relation. Repeatable.")] = [],  # noqa: B006
    n: Annotated[int | None, typer.Option("--n", help="Use this many facts.", show_default="all")] = None,
    known: options.Known = "ranked",
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Length of an answer.")] = 10,
    seed: Annotated[int, typer.Option(help="Seeds false answers, splits and the draw.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Prompts at once.")] = 32,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.AsJson = False,
) -> None:
    """Find a direction that leads a model from its context to its memory: one vector in one layer.

    Layer and strengths are chosen on development facts; the figures are of test facts, which had no part in it.
    """
    from ..heads.directions.find import check_settings
    from ..heads.directions.find import find as run
    from ..heads.finding.facts import read_facts

    check_writable(out)
    check_settings(known, n, new_tokens, batch_size)
    given = read_facts(facts, relation)
    loaded = options.load(model, device, dtype)
    with Bars() as bars:
        found = run(
            *loaded,
            given,
            known=known,
            n=n,
            new_tokens=new_tokens,
            seed=seed,
            batch_size=batch_size,
            on_progress=bars,
        )
    found.direction.save(out)
    if json:
        typer.echo(json_module.dumps(found.to_dict()))
    else:
        _print(found)
    typer.echo(f"Wrote {out}", err=json)


def _print(found: Found) -> None:
    from rich.table import Table

    from ..heads.choosing.panel import interval
    from ..views.terminal import open_console

    n = len(next(iter(found.test.values())).outcomes["closed book"])
    table = Table(title=f"{n} test facts, in %", title_justify="left")
    for name in ("alpha", "RM", "RM 95%", "RC", "RC 95%", "other", "gold", "irrel.", "closed", "ppl"):
        table.add_column(name, justify="right", no_wrap=True)
    for alpha, result in found.test.items():
        cells = [f"{alpha:g}"]
        for name, value in result.row().items():
            cells.append(f"{value:.1f}" if name == "perplexity" else f"{100 * value:.0f}")
            if name in ("RM", "RC"):
                low, high = interval(value, len(result.conflict))
                cells.append(f"{100 * low:.0f}–{100 * high:.0f}")
        table.add_row(*cells)
    open_console().print(table)
    typer.echo(
        "RM, RC: conflicts answered from memory, from the context; gold, irrel., closed: right with a true context, an "
        "irrelevant one, none; ppl: perplexity of neutral text."
    )
    told = f"{found.followed['memory']} conflicts that followed memory against {found.followed['context']}"
    contrast = "no passage against a false one" if found.direction.note["contrast"] == "passage" else told
    typer.echo(f"{found.direction}, from {contrast}")
    for side in ("context", "memory"):
        if not getattr(found.direction, side):
            typer.echo(f"Toward the {side} no strength helped in total: that side is refused.")
