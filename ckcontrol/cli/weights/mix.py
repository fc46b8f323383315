"""``ckcontrol weights``: the dial in the weights; and ``mix``, which makes one of two adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...views.safe_text import clean
from .. import options
from ..files import check_folder
from ..words import TextCommand, group

__all__ = ["app", "mix"]

app = group()


@app.command("mix", cls=TextCommand)
def mix(
    context: Annotated[Path, typer.Argument(metavar="CONTEXT", help="Folder of the adapter toward context.")],
    memory: Annotated[Path, typer.Argument(metavar="MEMORY", help="Folder of the adapter toward memory.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Write the dial here; a new folder.")],
    model: options.Model = "demo",
    steps: Annotated[int, typer.Option(help="Positions from 0 to 1; odd.")] = 9,
    method: Annotated[str, typer.Option(help="scale, linear, ties, dare_ties, dare_linear or svd.")] = "scale",
    density: Annotated[float, typer.Option(help="Share of values that ties and dare keep.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Draws what dare drops.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Mix two LoRA adapters to a dial: one adapter per alpha, merged by PEFT; 0.5 is the model without any."""
    from ...weights import mix as mix_adapters

    check_folder(out)
    loaded, _ = options.load(model, device, dtype)
    made = mix_adapters(loaded, context, memory, out, steps=steps, method=method, density=density, seed=seed)
    typer.echo(clean(f"Wrote {out}: {len(made.adapters) - 1} adapters by {made.method}, and the base at 0.5.", 4000))
