"""HTML views: an answer as a fragment for notebooks, and whole pages that need no network and no script.

Knows templates, and the one way in which text gets into them: cleaned, cut and escaped. Knows records by their shape.
A page forbids every load by its own policy besides, so a hostile token is text and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from . import describe
from .canvas import Canvas, svg
from .palette import STEPS, palette_rules, step
from .safe_text import DISPLAY_LIMIT, escape
from .shape import AnswerShape

__all__ = ["answer_html", "answer_page", "passages_html", "stylesheet", "templates"]

VIEWS = "ckcontrol.views"


@cache
def templates(room: str = VIEWS) -> Environment:
    """Return the templates beside the code of a package; they can extend and import those of the views.

    Whatever they print is cleaned, cut to 400 characters and escaped; ``|cut(n)`` sets another length, ``|cut(none)``
    none, and ``|svg`` draws a canvas. Nothing else is markup but what a template says itself.
    """
    rooms = dict.fromkeys((room, VIEWS))
    made = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in rooms]),
        autoescape=True,
        finalize=_cut,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"cut": _cut, "svg": _svg}
    made.globals |= {"describe": describe, "palette_rules": palette_rules(), "shade": _shade, "token_rows": _token_rows}
    return made


def _cut(value: object, limit: int | None = DISPLAY_LIMIT) -> Markup:
    """Return text as markup that says the same; what is markup already stays."""
    return value if isinstance(value, Markup) else Markup(escape(str(value), limit))


def _svg(canvas: Canvas) -> Markup:
    return Markup(svg(canvas))  # its words were escaped as they were drawn


def _shade(gain: float | None) -> str:
    return f"ck-g{step(gain) + STEPS}"


def stylesheet() -> str:
    """Return the CSS of fragments and pages."""
    return templates().get_template("page.css").render()


def answer_html(answer: AnswerShape, *, style: bool = True) -> str:
    """Return the token view as a self-contained fragment.

    Args:
        answer: What to draw.
        style: Put the style sheet into the fragment; False inside a page, which has it already.
    """
    return _part("answer_html", answer, style)


def passages_html(answer: AnswerShape, captions: Sequence[str] = (), *, notice: str | None = None) -> str:
    """Return the passages as they stood in the prompt, each under its caption; see `answer_page`."""
    return _part("passages_html", _captioned(answer, captions), notice)


def answer_page(answer: AnswerShape, captions: Sequence[str] = (), *, notice: str | None = None) -> str:
    """Return a page with one answer: its tokens, its passages and every recorded figure.

    Args:
        answer: What to draw.
        captions: Plain text over each passage, e.g. where it comes from; none, or one per passage.
        notice: A plain sentence under the passages.
    """
    told = {"answer": answer, "captioned": _captioned(answer, captions), "notice": notice}
    return templates().get_template("answer.html").render(told)


def _part(name: str, *given: Any) -> str:
    return str(getattr(templates().get_template("parts.html").module, name)(*given)).strip()


def _captioned(answer: AnswerShape, captions: Sequence[str]) -> list[tuple[str | None, str]]:
    above: Sequence[str | None] = captions or [None] * len(answer.passages)
    return list(zip(above, answer.passages, strict=True))


def _token_rows(answer: AnswerShape) -> list[list[Any]]:
    return [
        [shown, f"{describe.MARK} yes" if shown.token.switched else "no", *describe.figures(shown.token)]
        for shown in describe.shown(answer)
    ]
