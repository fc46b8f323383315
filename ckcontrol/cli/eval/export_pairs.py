"""``ckcontrol eval export-pairs``: the errors of a run as preference pairs, for trainers that take them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...views.safe_text import clean
from .. import files

__all__ = ["export_pairs"]


def export_pairs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the pairs go, as JSON lines.")],
    toward: Annotated[str, typer.Option(help="Which source wins a conflict: context or memory.")] = "context",
    balance: Annotated[
        bool, typer.Option("--balance/--all", help="As many pairs of one error as of the other; or all.")
    ] = True,
    same_words: Annotated[
        bool,
        typer.Option(
            "--same-words/--as-said", help="Two answers in one text's words, but for the name; or as the run has them."
        ),
    ] = True,
    seed: Annotated[int, typer.Option(help="Draws which pairs are left out.")] = 0,
) -> None:
    """Write what a model should have said beside what it said, as TRL's DPO trainer reads it.

    The errors are KnowPO's two: the passages should have been followed and were not, or were and should not have been.
    """
    from ...eval.preferences import ERRORS
    from ...eval.preferences import export_pairs as export

    files.check_writable(out)
    made = export(folder, out, toward=toward, balance=balance, same_words=same_words, seed=seed)
    for error in ERRORS:
        found, kept = (
            {state: count for (of, state), count in counts.items() if of == error} for counts in (made.found, made.kept)
        )
        if not found:
            _say(f"No pair shows {error}: a model trained on these learns one direction only.")
            continue
        parts = ", ".join(f"{state} {kept.get(state, 0)} of {count}" for state, count in found.items())
        _say(f"{error}: {sum(kept.values())} of {sum(found.values())} ({parts})")
    if not (folder / "results.json").exists():
        _say(f"{folder} is not finished: these are of the answers it has so far. The command that began it goes on.")
    if made.substituted:
        _say(f"In {made.substituted} of them one text is the other with the name replaced: no arm wrote it.")
    _say(f"Wrote {out}")


def _say(text: str) -> None:
    typer.echo(clean(text, 4000), err=True)
