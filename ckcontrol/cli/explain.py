"""``ckcontrol explain``: one answer, and why each of its tokens was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ControlError
from ..views.safe_text import escape_json
from . import files, options
from .request import Request

__all__ = ["explain"]


def explain(
    question: options.Question,
    passage: options.PassageFiles = [],  # noqa: B006  typer copies it
    passage_text: options.PassageTexts = [],  # noqa: B006
    model: options.Model = "demo",
    method: options.Method = "ck-plug",
    alpha: options.Alpha = None,
    param: options.Params = [],  # noqa: B006
    max_new_tokens: options.Tokens = 64,
    sample: options.Sample = False,
    temperature: options.Temperature = 1.0,
    seed: options.Seed = None,
    truncate: options.Truncate = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page as well.", show_default=False)
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Answer as `run` does and show, token by token, what memory and passages said.

    Blue: the passages made the model surer. Orange: they confused it. ▸ and underlined: the policy acted.
    """
    from ..views.html import answer_page
    from ..views.terminal import print_answer, print_table

    request = Request(
        question=question,
        passages=files.read_passages(passage, passage_text),
        model=model,
        method=method,
        alpha=alpha,
        params=files.parse_params(param),
        options={
            "max_new_tokens": max_new_tokens,
            "do_sample": sample,
            "temperature": temperature,
            "seed": seed,
        },
        device=device,
        dtype=dtype,
        truncate=truncate,
    )
    if html is not None:
        check_writable(html)
    answer = request.answer()
    if json:
        typer.echo(escape_json(answer.to_json()))
    else:
        print_answer(answer)
        print_table(answer, summary=False)
    if html is not None:
        html.write_text(answer_page(answer), encoding="utf-8")
        typer.echo(f"Wrote {html}", err=json)


def check_writable(path: Path) -> None:
    """Refuse an output file that cannot be made, before anything slow.

    Raises:
        ControlError: It is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise ControlError(f"{str(path)!r} is a folder.", "Name a file.")
    if not path.absolute().parent.is_dir():
        raise ControlError(f"{str(path.parent)!r} is not a folder.", "Create it, or name another file.")
