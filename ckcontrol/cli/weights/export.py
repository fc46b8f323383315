"""``ckcontrol weights export``: the model with one adapter of a dial in its weights, as an ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...errors import WeightsError
from ...views.safe_text import clean
from .. import options
from ..files import check_folder

__all__ = ["export"]


def export(
    dial: Annotated[Path, typer.Argument(metavar="DIAL", help="What `weights mix` wrote.")],
    alpha: Annotated[float, typer.Option(metavar="X", help="The adapter nearest to it is taken.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Write the model here; a new folder.")],
    model: options.Model = "demo",
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Write a model with one adapter of a dial in its weights, for any server.

    The folder appears once the reloaded copy agrees with the model and the adapter beside it.
    """
    from ...weights import export as export_model
    from ...weights.manifest import Manifest

    if out.exists():
        raise WeightsError(f"{str(out)!r} exists.", "Give a new folder: exports overwrite nothing.")
    check_folder(out)
    Manifest.read(dial)
    loaded, tokenizer = options.load(model, device, dtype)
    agreement = export_model(loaded, dial, alpha, out, tokenizer=tokenizer)
    typer.echo(clean(f"Wrote {out}. Reloaded, against the model with the adapter beside it: {agreement}.", 4000))
