"""``ckcontrol calibrate``: your own questions at every setting, and the one to use; or to leave it off."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EvalError
from ..views.safe_text import clean, escape_json
from . import files, options
from .bars import Bars

if TYPE_CHECKING:
    from ..answer import Answer
    from ..control import Control
    from ..eval.calibrate import Calibration, Question, Setting

__all__ = ["calibrate"]

SHOWN = 5  # questions that a setting loses, in full


def calibrate(
    index: Annotated[
        str, typer.Argument(metavar="INDEX", help="The index's folder; - where questions bring passages.")
    ],
    questions: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines or CSV: question, answers; also wrong, passages.")
    ],
    model: options.Model = "demo",
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many passages.")] = 4,
    mode: options.Search = options.Mode.dense,
    where: options.Where = [],  # noqa: B006  typer copies it
    embedder: options.Embedder = None,
    max_new_tokens: options.Tokens = 64,
    system: options.System = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Questions decoded together.")] = 8,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.AsJson = False,
) -> None:
    """Ask your own questions at every setting of the dial and propose one, with what it would win and lose.

    Says "leave it off" where no setting beats the unmodified model by more than chance and the choice among settings
    explain, and when the questions are too few to tell.
    """
    from ..eval.calibrate import calibrate as calibrated
    from ..eval.calibrate import read_questions

    given = options.Answering(model=model, max_new_tokens=max_new_tokens, system=system, device=device, dtype=dtype)
    template, drawn, conditions = given.template(), given.drawn(trace=True), files.parse_where(where)
    for name, value in (("where", where), ("embedder", embedder)):
        if index == "-" and value:
            raise EvalError(f"--{name} without an index does nothing.", "Give an index in place of -, or leave it out.")
    asked, rejected = read_questions(questions)
    for row in rejected:
        typer.echo(clean(f"Left out {row.told}"), err=True)
    missing = [question for question in asked if question.passages is None]
    if index == "-" and missing:
        raise EvalError(f"{missing[0].id} brings no passages.", "Give an index in place of -, or passages in each row.")
    opened = None if index == "-" else options.open_index(Path(index), embedder)
    loaded = given.load()
    if opened is not None and missing:
        hits = opened.search([question.text for question in missing], k, where=conditions, mode=mode.value)
        found = {
            question.id: tuple(hit.passage.text for hit in each if hit.passage.text.strip())
            for question, each in zip(missing, hits, strict=True)
        }
        asked = [replace(question, passages=found.get(question.id, question.passages)) for question in asked]

    def answer(some: Sequence[Question], control: Control) -> Iterable[Answer]:
        from ..decoding.generate import generate

        made: list[Answer] = generate(
            *loaded,
            [question.text for question in some],
            [list(question.passages or ()) for question in some],
            control=control,
            template=template,
            truncate="passages",
            options=drawn,
        )
        return made

    with Bars() as bars:
        result = calibrated(asked, answer, batch=batch, on_progress=lambda done, n: bars("Answering", done, n))
    if json:
        typer.echo(escape_json(json_module.dumps(result.to_dict(), ensure_ascii=False)))
    else:
        _print(result, index)
    if rejected:
        raise typer.Exit(3)


def _print(result: Calibration, index: str) -> None:
    from rich.table import Table

    from ..views.terminal import open_console

    console = open_console()
    n = len(result.questions)
    table = Table(title=f"{n} questions, right answers", title_justify="left")
    for name in ("setting", "right", "%", "against 0.5, points", "won", "lost", "p"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for setting in result.settings:
        gap = setting.against
        told = "" if setting is result.off else f"{gap.value:+.0%} [{gap.low:+.0%}, {gap.high:+.0%}]".replace("%", "")
        marked = f"{setting.name} (the unmodified model)" if setting is result.off else setting.name
        style = "bold" if setting is result.proposed else ""
        beside = ("", "", "") if setting is result.off else (str(gap.up), str(gap.down), f"{setting.p:.2g}")
        table.add_row(marked, str(sum(setting.right)), f"{setting.share:.0%}", told, *beside, style=style)
    console.print(table)
    for line in _said(result, index):
        console.print(line, markup=False, highlight=False)


def _said(result: Calibration, index: str) -> Iterable[str]:
    from ..eval.calibrate import FEW

    n, off, chosen = len(result.questions), result.off, result.proposed
    if result.closed_book:
        yield f"For {result.closed_book} of them no passage was found: no setting changes their answer."
    if not any(map(any, (setting.right for setting in result.settings))):
        yield (
            f"No answer was right at any setting, so nothing can be told of {n} questions. Look at the answers "
            "(--json): are they cut off (--max-new-tokens), or is the right one spelt otherwise than under answers?"
        )
        return
    if chosen is off:
        best = result.best
        yield (
            "Leave it off: no setting beats the unmodified model by more than chance explains. "
            f"{off.share:.0%} of {n} are right."
        )
        if best is not off:
            name, evidence = f"{best.name}{_tied(best, result)}", _evidence(best, result)
            yield f"The best was {name}, {evidence}; a proposal needs p below 0.05."
        elif not any(setting.against.up or setting.against.down for setting in result.settings):
            yield "No setting changes whether any answer is right."
        if n < FEW:
            told = f"a gain of 20 points is found by 40 in four of five tries, by {FEW} nearly always."
            yield f"{n} questions are few: {told}"
        return
    yield (
        f"Use {chosen.name}{_tied(chosen, result)}: {chosen.share:.0%} of {n} are right, {off.share:.0%} with the "
        f"unmodified model, {_evidence(chosen, result)}. On questions that did not choose it: {result.unseen:.0%}."
    )
    lost = result.changed(chosen, lost=True)
    yield f"It loses {len(lost)}" + (":" if lost else ".")
    for question, was, now in lost[:SHOWN]:
        yield clean(f"  {question.text}\n    was  {was}\n    now  {now}", 400)
    if len(lost) > SHOWN:
        yield f"  and {len(lost) - SHOWN} more: --json has all of them."
    option = "--param adaptive=true" if chosen.control.alpha is None else f"--alpha {chosen.control.alpha:g}"
    code = "adaptive=True" if chosen.control.alpha is None else f"alpha={chosen.control.alpha:g}"
    yield (
        f'Next: ckcontrol ask {index} "..." {option}, or ck.Control({code})'
        if index != "-"
        else f"Next: ck.Control({code})"
    )


def _tied(setting: Setting, result: Calibration) -> str:
    """Return which other settings are right as often, in brackets; "" where none is."""
    others = [s.name for s in result.settings if s is not setting and sum(s.right) == sum(setting.right)]
    return f" (as good: {', '.join(others)})" if others else ""


def _evidence(setting: Setting, result: Calibration) -> str:
    """Return how many questions speak for a setting, and how likely chance would have them do so."""
    gap, tried = setting.against, len(result.settings) - 1
    return (
        f"{_points(setting)} points: {gap.up} won and {gap.down} lost, p = {setting.p:.2g} "
        f"(paired swap test, one-sided, corrected for the best of {tried})"
    )


def _points(setting: Setting) -> str:
    gap = setting.against
    return f"{100 * gap.value:+.0f} [{100 * gap.low:+.0f}, {100 * gap.high:+.0f}]"
