"""``ckcontrol weights train``: an adapter toward context or memory, from the preference pairs of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...errors import require
from ...rates import count
from ...views.safe_text import clean
from .. import options
from ..bars import Bars
from ..files import check_folder

__all__ = ["train"]


def train(
    pairs: Annotated[Path, typer.Argument(metavar="PAIRS", help="What `eval export-pairs` wrote for this direction.")],
    toward: Annotated[str, typer.Option(help="context or memory: which way the pairs lead.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Write the adapter here; a new folder.")],
    model: options.Model = "demo",
    steps: Annotated[int, typer.Option(help="Steps of training, which bound its time.")] = 60,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Answers per step.")] = 8,
    rank: Annotated[int, typer.Option(help="Rank of the adapter; both of a dial need the same.")] = 8,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="At the first step; falls to 0.")] = 2e-4,
    seed: Annotated[int, typer.Option(help="Draws first weights, order and what is held out.")] = 0,
    max_length: Annotated[int, typer.Option("--max-length", help="Longest prompt and answer, in tokens.")] = 1024,
    save_every: Annotated[int, typer.Option("--save-every", help="Steps between two checkpoints.")] = 20,
    max_harm: Annotated[
        float, typer.Option("--max-harm", help="Share of right answers held out that may go; more stops training.")
    ] = 0.1,
    one_sided: Annotated[bool, typer.Option("--one-sided", help="Take pairs that show one error alone.")] = False,
    guard: Annotated[
        Path | None,
        typer.Option(
            metavar="PAIRS",
            help="Further pairs, of questions in other words: asked at checkpoints, never trained on.",
            show_default=False,
        ),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Train a LoRA adapter toward context or memory on the chosen answers of pairs. Two of them make a dial.

    Interrupted, the same command goes on from the last checkpoint.
    """
    require("weights", peft="peft", trl="trl")
    from ...weights import train as train_adapter
    from ...weights.pairs import read_pairs
    from ...weights.train import partial

    check_folder(out)
    read_pairs(pairs, toward, one_sided=one_sided, seed=seed, guard=guard)  # refused before a model is loaded
    loaded = options.load(model, device, dtype)
    with Bars(kept=partial(out)) as bars:
        made = train_adapter(
            *loaded,
            pairs,
            out,
            toward=toward,
            steps=steps,
            batch_size=batch_size,
            rank=rank,
            learning_rate=learning_rate,
            seed=seed,
            max_length=max_length,
            save_every=save_every,
            max_harm=max_harm,
            one_sided=one_sided,
            guard=guard,
            on_progress=bars,
        )
    counts = [f"{state} {was} and {now} of {n}" for state, (n, was, now) in made.answers.items()]
    if counts:
        told = ", ".join(clean(state, 80) for state in counts)
        typer.echo(f"Held-out questions answered right, before and after: {told}.")
    else:
        typer.echo("No question was held out: the pairs are of fewer than 10 groups, or say no right names.")
    if made.steps < steps:
        typer.echo(
            f"Stopped: more than {made.steps} of {steps} steps cost over {max_harm:g} of those without a conflict."
        )
    typer.echo(clean(f"Wrote {out}: {count(made.pairs, 'pair')} toward {toward}.", 4000))
