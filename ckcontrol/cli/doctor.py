"""``ckcontrol doctor``: versions, device, cached models, and proof that the blend is live."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING

import typer

from ..views.safe_text import clean
from . import options

if TYPE_CHECKING:
    from ..doctor import Check

__all__ = ["doctor"]


def doctor(
    model: options.Model = "tiny",
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.AsJson = False,
) -> None:
    """Check this installation; exit 1 if a check fails.

    The checks run on a tiny random model, with nothing to download; --model runs them on another.
    """
    from .. import doctor as checks

    facts = checks.environment()
    loaded = options.load(model, device, dtype)
    facts["model"] = model
    facts["device"], facts["dtype"] = str(loaded[0].device), str(loaded[0].dtype).removeprefix("torch.")
    results = checks.check(*loaded)
    failed = [result for result in results if not result.ok]
    if json:
        data = {"ok": not failed, "environment": facts, "checks": [result.to_dict() for result in results]}
        typer.echo(json_module.dumps(data))
    else:
        _print(facts, results)
    if failed:
        raise typer.Exit(1)


def _print(facts: dict[str, str], results: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..views.terminal import open_console

    console = open_console()
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        grid.add_row(Text(name, "dim"), Text(clean(value)))
    console.print(grid)
    console.print()
    grid = Table.grid(padding=(0, 2))
    for result in results:
        mark = Text("ok", "green") if result.ok else Text("FAILED", "bold red")
        grid.add_row(mark, Text().append(result.name).append(f"\n{clean(result.detail)}", "dim"))
    console.print(grid)
