"""Terminal views: an answer coloured by confidence gain, its tokens as a table, and the passages a search found.

Knows records by their shape, and rich. Knows nothing of models or of HTML (`html.py` is the other view). rich is
imported when something is drawn, so importing this module costs nothing. All text passes `safe_text.clean`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import describe, palette
from .safe_text import clean
from .shape import AnswerShape, HitShape

if TYPE_CHECKING:
    from rich.console import Console
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

__all__ = ["answer_table", "answer_text", "legend", "print_answer", "print_hits", "print_table"]

WIDE = 116  # columns from which the token table shows everything
BAR = 8  # cells on each side of zero


def _style(gain: float | None, switched: bool = False) -> Style:
    from rich.style import Style

    shade = palette.step(gain)
    if shade == 0:
        return Style(underline=switched or None, bold=switched or None)
    theme = palette.LIGHT  # text colour is set as well, so the pair is readable on any terminal background
    return Style(color=theme.text, bgcolor=theme.scale()[shade], underline=switched or None, bold=switched or None)


def answer_text(answer: AnswerShape) -> Text:
    """Return the answer as rich text: gain as background, switched tokens underlined after a ▸ mark."""
    from rich.text import Text

    if not answer.tokens:
        return Text(clean(answer.text, None))
    text = Text()
    for shown in describe.shown(answer):
        token = shown.token
        text.append(shown.lead)
        text.append((describe.MARK if token.switched else "") + shown.body, _style(token.gain, token.switched))
    return text


def legend() -> Text:
    """Return the lines that explain colours and marks."""
    from rich.text import Text

    line = Text().append("gain, nats ", "dim")
    for gain, label in ((-3.0, " ≤−3 "), (-1.5, " −1.5 "), (0.0, " 0 "), (1.5, " +1.5 "), (3.0, " ≥+3 ")):
        line.append(label, _style(gain))
    texts = describe.legend_words
    line.append(f"\norange: {texts['confused']} · blue: {texts['surer']}\n", "dim")
    return line.append(f"{describe.MARK}word", _style(0.0, True)).append(f" {texts['switched']}", "dim")


def print_answer(answer: AnswerShape, console: Console | None = None) -> None:
    """Print question, answer token by token, legend and summary; warn if the policy never acted."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = console or Console()
    heading = Text().append(clean(answer.question), "bold").append(f"  {describe.control_label(answer)}", "dim")
    console.print(heading, highlight=False)
    console.print(Padding(answer_text(answer), (1, 2)))
    if answer.tokens:
        console.print(legend())
    _print_footer(answer, console)


def print_table(answer: AnswerShape, console: Console | None = None, *, summary: bool = True) -> None:
    """Print one row per token with every recorded figure, then the summary; narrow consoles get no bar."""
    from rich.console import Console

    console = console or Console()
    console.print(answer_table(answer, console.width))
    if summary:
        _print_footer(answer, console)


def _print_footer(answer: AnswerShape, console: Console) -> None:
    from rich.text import Text

    for name, text, surprise in describe.draft_lines(answer):
        console.print(Text().append(f"{name}: ", "bold").append(text).append(f"  {surprise}", "dim"), highlight=False)
    console.print(Text(describe.summary_line(answer), style="dim"), highlight=False)
    notice = describe.warning(answer)
    if notice:
        console.print(Text(f"! {notice}", style="bold yellow"), highlight=False)


def print_hits(
    hits: Sequence[HitShape], query: str, console: Console | None = None, *, notice: str | None = None
) -> None:
    """Print each passage's rank, score, source and metadata, and below them the part of its text nearest the query."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    for hit in hits:
        label = Text(describe.hit_label(hit), "bold").append(f"  {describe.hit_metadata(hit)}".rstrip(), "dim not bold")
        console.print(label, soft_wrap=True, highlight=False)  # never cut: the end of a path is what tells files apart
        console.print(Text("    " + describe.excerpt(hit.passage.text, query, console.width - 4)), highlight=False)
    if notice:
        console.print(Text(f"! {notice}", style="bold yellow"), highlight=False)


def answer_table(answer: AnswerShape, width: int = 140) -> Table:
    """Return the token table for a console of `width` columns.

    Ranks count from 0, the stream's favourite; ``par`` is memory, ``ctx`` is with the passages.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    wide = width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("", no_wrap=True, width=1)
    table.add_column("token", no_wrap=True, max_width=24 if wide else 14, overflow="ellipsis")
    if wide:
        table.add_column("confused│surer", no_wrap=True, width=2 * BAR + 3)
    figures = ["gain", "H par", "H ctx", "tau", "rank par", "rank ctx", "p par", "p ctx", "p final"]
    for name in figures:
        table.add_column(name if wide else name.replace(" ", "\n"), no_wrap=True, justify="right")
    for shown in describe.shown(answer):
        token = shown.token
        table.add_row(
            Text(describe.MARK if token.switched else "", style="bold"),
            Text().append(shown.name, _style(token.gain, token.switched)),
            *([_bar(token.gain)] if wide else []),
            *describe.figures(token),
        )
    return table


def _bar(gain: float | None) -> Text:
    """Return a bar that grows left of the rule for a negative gain and right of it for a positive one."""
    from rich.text import Text

    share = min(abs(gain or 0.0) / palette.SATURATION, 1.0)
    length = round(share * BAR)
    left, right = (length, 0) if (gain or 0.0) < 0 else (0, length)
    bar = Text(" " * (BAR - left))
    bar.append("█" * left, palette.MIDDLE["confused"]).append("│", "dim")
    bar.append("█" * right, palette.MIDDLE["surer"])
    return bar.append(" " * (BAR - right))
