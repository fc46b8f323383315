"""``ckcontrol run``: one question, its passages, one answer; and ``ckcontrol explain``, which is ``run --explain``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ControlError, PromptError, did_you_mean
from ..views.safe_text import escape_json
from . import files, options

if TYPE_CHECKING:
    from ..heads.directions.direction import Direction
    from ..heads.mask import HeadMask

__all__ = ["answer", "explain", "run"]

STREAMS = ("both", "contextual", "parametric")


def answer(
    question: options.Question,
    passage: options.PassageFiles = [],  # noqa: B006  typer copies it
    passage_text: options.PassageTexts = [],  # noqa: B006
    *,
    given: options.Answering,
    truncate: options.Truncate = False,
    sources: options.SourcesAs = None,
    heads: options.Heads = None,
    prune: options.Prune = None,
    prune_stream: options.PruneStream = "both",
    direction: options.DirectionFile = None,
    direction_alpha: options.DirectionAlpha = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show why each token was chosen.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page as well.", show_default=False)
    ] = None,
) -> None:
    """Answer a question from passages, from memory, or anywhere between. Prints the answer.

    Without --alpha the model is left as it is. Without passages it answers closed book. --heads and --prune switch
    attention heads off while it answers; they combine with every method, as does --direction.
    """
    if given.stream and explain:
        raise typer.BadParameter("--stream and --explain exclude each other.")
    if not question.strip():
        raise PromptError("the question is empty.", "Ask something with -q.")
    passages = files.read_passages(passage, passage_text)
    control = given.control()
    if not passages and (given.steers() or sources is not None):
        nothing = "nothing to steer" if sources is None else "no source but memory"
        typer.echo(f"There are no passages, so there is {nothing}: this is the model's own answer.", err=True)
    drawn = given.drawn(trace=given.json or explain or html is not None)
    variables, template = given.variables(), given.template()
    mask, lean = _mask(heads, prune, prune_stream), _lean(direction, direction_alpha)
    if html is not None:
        files.check_writable(html)
    model, tokenizer = given.load()

    from .. import generate

    with (
        nullcontext() if mask is None else _pruned(model, mask, prune_stream),
        nullcontext() if lean is None else _added(model, *lean),
    ):
        made = generate(
            model,
            tokenizer,
            question,
            passages,
            control=control,
            truncate="passages" if truncate else None,
            template=template,
            template_kwargs=variables,
            streamer=given.streamer(tokenizer),
            options=drawn,
            sources=sources and sources.value,
        )
    if html is not None:
        from ..views.html import answer_page

        html.write_text(answer_page(made), encoding="utf-8")  # first: a pipe that breaks must not cost the page
    if given.json:
        typer.echo(escape_json(made.to_json()))
    elif explain:
        from ..views.terminal import print_answer, print_table

        print_answer(made)
        print_table(made, summary=False)
    elif not given.stream:
        typer.echo(given.said(made))
    given.warn_of_cut(made)
    if made.sources and not given.json:
        from ..views.terminal import print_sources

        print_sources(made)
    if html is not None:
        typer.echo(f"Wrote {html}", err=given.json or not explain)


run = options.spread(answer)
explain = options.spread(
    answer,
    """Answer as `run` does and show, token by token, what memory and passages said.

    Blue: the passages made the model surer. Orange: they confused it. ▸ and underlined: the policy acted.
    """,
    explain=True,
    stream=False,
)


def _mask(heads: Path | None, prune: str | None, stream: str) -> HeadMask | None:
    """Read and check the heads to prune, before the model is loaded."""
    if stream not in STREAMS:
        raise ControlError(f"--prune-stream {stream!r}.", did_you_mean(stream, STREAMS))
    if heads is None:
        if prune is not None or stream != "both":
            raise ControlError("--prune without --heads.", "Name the file that `ckcontrol heads find` wrote.")
        return None
    from ..heads.choosing.select import read_mask

    return read_mask(heads, prune)


def _lean(path: Path | None, alpha: float | None) -> tuple[Direction, float] | None:
    """Read the direction and check how far to go along it, before the model is loaded."""
    if path is None or alpha is None:
        if (path is None) != (alpha is None):
            what = "--direction and --direction-alpha go together."
            raise ControlError(what, "Name the file, and give 0 for the context, 1 for memory, or between.")
        return None
    direction = options.read_direction(path)
    direction.coefficient(alpha)
    return direction, alpha


def _added(model: Any, direction: Direction, alpha: float) -> AbstractContextManager[None]:
    from ..heads import added

    return added(model, direction, alpha)


def _pruned(model: Any, mask: HeadMask, stream: str) -> AbstractContextManager[None]:
    from ..heads import pruned

    if stream == "both":
        return pruned(model, mask)
    return pruned(model, contextual=mask) if stream == "contextual" else pruned(model, parametric=mask)
