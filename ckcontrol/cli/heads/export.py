"""``ckcontrol heads export``: a mask as an ordinary checkpoint or a LoRA adapter, compared with the hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...errors import HeadsError
from .. import options
from ..files import check_folder

__all__ = ["export"]

AGAINST = "Reloaded, against the model whose heads are masked as it runs"


def export(
    heads: Annotated[Path, typer.Argument(metavar="FILE", help="A mask, or scores with --prune.")],
    model: options.Model = "demo",
    prune: options.Prune = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a checkpoint here.", show_default=False)
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a LoRA adapter here.", show_default=False)
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Write a model with its heads pruned, for any server. The folder appears once the reloaded copy agrees."""
    from ...heads.choosing.select import read_mask
    from ...heads.export import export_checkpoint, export_lora

    if out is None and lora is None:
        raise HeadsError("nothing to write.", "Give --out FOLDER, --lora FOLDER, or both.")
    for path in (out, lora):
        if path is not None and path.exists():
            raise HeadsError(f"{str(path)!r} exists.", "Give a new folder: exports overwrite nothing.")
        if path is not None:
            check_folder(path)
    mask = read_mask(heads, prune)
    loaded, tokenizer = options.load(model, device, dtype)
    mask.check(loaded)
    if out is not None:
        agreement = export_checkpoint(loaded, mask, out, tokenizer=tokenizer)
        typer.echo(f"Wrote {out}. {AGAINST}: {agreement}.")
    if lora is not None:
        typer.echo(f"Wrote {lora}. {AGAINST}: {export_lora(loaded, mask, lora, tokenizer=tokenizer)}.")
