"""``ckcontrol export-hub``: a folder for the Hugging Face Hub that steers `model.generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export_hub"]


def export_hub(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write it; made if need be.")],
) -> None:
    """Write a custom generation repository: `model.generate(custom_generate=FOLDER, trust_remote_code=True)`.

    Upload it to the Hub to steer by its name. Files of its own from before are replaced, others left alone.
    """
    from .. import hub

    for path in hub.export_hub(folder):
        typer.echo(f"Wrote {path}")
