"""``ckcontrol heads``: the sub-commands on attention heads; and ``find``, which scores them."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...rates import count
from ...views.safe_text import clean
from .. import options
from ..bars import Bars
from ..files import check_writable
from ..words import TextCommand, group
from .show import best_heads, figures, print_heads

if TYPE_CHECKING:
    from ...heads.finding.scores import HeadScores

__all__ = ["app", "find", "summary"]

app = group()

Facts = Annotated[Path, typer.Option("--facts", metavar="FILE", help="JSON lines: relation, subject, answer, cloze.")]
Relations = Annotated[list[str], typer.Option("--relation", help="Use only this relation. Repeatable.")]


@app.command("find", cls=TextCommand)
def find(
    facts: Facts,
    model: options.Model = "demo",
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the scores are written.")] = Path("heads.json"),
    relation: Relations = [],  # noqa: B006  typer copies it
    form: Annotated[
        list[str], typer.Option("--format", help="substitution, coherent, qa. Repeatable; the first gets all columns.")
    ] = ["substitution"],  # noqa: B006
    n: Annotated[
        int | None, typer.Option("--n", help="Score this many facts; 200 are stable.", show_default="all")
    ] = None,
    known: options.Known = "ranked",
    seed: Annotated[int, typer.Option(help="Seeds false answers and splits.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Facts scored at once.")] = 4,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.AsJson = False,
) -> None:
    """Score every head: how much it moves the answer towards memory, and towards the context.

    Exact path patching on the facts the model knows. Interrupted? The same command goes on where it stopped.
    """
    from ...heads.finding.facts import read_facts
    from ...heads.finding.find import check_settings
    from ...heads.finding.find import find as run

    check_writable(out)
    check_settings(form, n, known, batch_size)
    given = read_facts(facts, relation)
    loaded = options.load(model, device, dtype)
    with Bars(kept=f"{out}.partial") as bars:
        scores = run(
            *loaded,
            given,
            out,
            formats=form,
            n=n,
            known=known,
            seed=seed,
            batch_size=batch_size,
            on_progress=bars,
        )
    if json:
        typer.echo(json_module.dumps(summary(scores)))
    else:
        _print(scores)
    typer.echo(f"Wrote {out}", err=json)


def summary(scores: HeadScores, k: int = 5) -> dict[str, Any]:
    """Return a finished run in short: counts, stability, and the k best heads of each source with their figures."""
    told: dict[str, Any] = {"facts": len(scores.records), "settings": dict(scores.settings)}
    for source in ("memory", "context"):
        told[source] = best_heads(scores, source, k)
        for row in told[source]["heads"]:
            del row["formats"]
    return told


def _print(scores: HeadScores) -> None:
    told = summary(scores)
    read, why = scores.settings["facts_read"], dict(sorted(scores.settings["left_out"].items()))
    why["left out by --n"] = read - told["facts"] - sum(why.values())
    left = ", ".join(f"{facts} {reason}" for reason, facts in why.items() if facts)
    typer.echo(clean(f"{count(told['facts'], 'fact')} scored of {read}" + (f" ({left})" if left else "")))
    for source in ("memory", "context"):
        print_heads(
            source,
            told[source],
            ("layer", "head", "logit difference", "± se", "same sign"),
            lambda row: (str(row["layer"]), str(row["head"]), f"{row['mean']:.3f}", *figures(row)),
        )
