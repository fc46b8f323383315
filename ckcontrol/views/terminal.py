"""Terminal views: an answer coloured by confidence gain, its tokens as a table, and the passages a search found.

Knows records by their shape, and rich. Knows nothing of models or of HTML (`html.py` is the other view). rich is
imported when something is drawn, so importing this module costs nothing. All text passes `safe_text.clean`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import describe, palette
from .safe_text import clean
from .shape import AnswerShape, HitShape, SentenceShape

if TYPE_CHECKING:
    from rich.console import Console
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "answer_table",
    "answer_text",
    "legend",
    "open_console",
    "print_answer",
    "print_cited",
    "print_hits",
    "print_sources",
    "print_table",
]

UNBOUNDED = 160  # columns where there is no terminal, and so no edge
LONGEST_TOKEN = 24  # columns
BAR = 8  # cells on each side of zero

FIGURES = ("gain", "H par", "H ctx", "tau", "rank par", "rank ctx", "p par", "p ctx", "p final")
DROPPED_FIRST = ("H par", "H ctx", "rank par", "rank ctx", "p par", "p ctx", "p final", "tau")  # gain stays

STANCES = {"supports": "the same", "contradicts": "another", "silent": "not counted"}
NOT_COUNTED = (
    "Not counted: an answer that says nothing or is not in its passage's words, or a passage without a name of the "
    "question."
)


def open_console() -> Console:
    """Return a console on stdout: as wide as its terminal or COLUMNS say, and 160 columns in a pipe or a file."""
    from rich.console import Console

    return Console() if _is_terminal() or os.environ.get("COLUMNS") else Console(width=UNBOUNDED)


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


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


def legend(console: Console) -> Text:
    """Return the lines that explain the marks and, where the console has them, the colours."""
    from rich.text import Text

    line, texts = Text(), describe.legend_words
    if console.color_system is not None and not console.no_color:
        line.append("gain, nats ", "dim")
        for gain, label in ((-3.0, " ≤−3 "), (-1.5, " −1.5 "), (0.0, " 0 "), (1.5, " +1.5 "), (3.0, " ≥+3 ")):
            line.append(label, _style(gain))
        line.append(f"\norange: {texts['confused']} · blue: {texts['surer']}\n", "dim")
    return line.append(f"{describe.MARK}word", _style(0.0, True)).append(f" {texts['switched']}", "dim")


def print_answer(answer: AnswerShape, console: Console | None = None) -> None:
    """Print question, answer token by token, legend and summary; warn if the policy never acted."""
    from rich.padding import Padding
    from rich.text import Text

    console = console or open_console()
    heading = Text().append(clean(answer.question), "bold").append(f"  {describe.control_label(answer)}", "dim")
    console.print(heading, highlight=False)
    console.print(Padding(answer_text(answer), (1, 2)))
    if answer.tokens:
        console.print(legend(console))
    _print_footer(answer, console)


def print_table(answer: AnswerShape, console: Console | None = None, *, summary: bool = True) -> None:
    """Print one row per token with the figures that the console has room for, then the summary."""
    console = console or open_console()
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
        console.print(Text(f"! {clean(notice, 2000)}", style="bold yellow"), highlight=False)


def print_cited(sentences: Sequence[SentenceShape], hits: Sequence[HitShape], console: Console | None = None) -> None:
    """Print each sentence of an answer after the ranks of the passages that support it, or ``memory``."""
    from rich.text import Text

    console = console or open_console()
    marks = ["".join(f"[{hits[place].rank}]" for place in s.passages) or "memory" for s in sentences]
    for mark, sentence in zip(marks, sentences, strict=True):
        told = " ".join(clean(sentence.text, None).split())
        console.print(
            Text(mark.ljust(max(map(len, marks))), "bold").append(f"  {told}", "not bold"),
            highlight=False,
            soft_wrap=True,
        )
    if sentences:
        console.print()


def print_sources(answer: AnswerShape, console: Console | None = None) -> None:
    """Print a row per source, if any: its own answer beside the one given, and how long both surprise it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console or open_console()
    if not any(source.stance for source in answer.sources):
        if [source.name for source in answer.sources] == ["memory", "all"]:
            console.print(Text("One passage: the usual two streams, with nothing to weigh across sources.", "dim"))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("source", "its answer", "nats", "own", "in its words"):
        table.add_column(name, justify="right" if name in ("nats", "own") else "left", no_wrap=name != "in its words")
    for source in answer.sources:
        surprises = describe.number(source.surprise), describe.number(source.surprise_own)
        table.add_row(
            Text(clean(source.name)),
            STANCES.get(source.stance, ""),
            *surprises,
            Text(" ".join(clean(source.text, 200).split())),
        )
    console.print(table)
    if any(source.stance == "silent" for source in answer.sources):
        console.print(Text(NOT_COUNTED, "dim"), highlight=False)
    count = any(source.stance not in ("", "silent") for source in answer.sources[1:-1])
    agreed = "The passages' answers that count agree." if count else "No answer of a passage by itself counts."
    told = "The answers disagree." if answer.disputed else agreed
    console.print(Text(told, "bold yellow" if answer.disputed else "dim"), highlight=False)


def print_hits(
    hits: Sequence[HitShape], query: str, console: Console | None = None, *, notice: str | None = None
) -> None:
    """Print each passage's rank, score, source and metadata, and below them the part of its text nearest the query.

    That is a line of the console; without one, in a pipe or a file, a passage's whole text is one line.
    """
    from rich.text import Text

    whole = console is None and not _is_terminal()
    console = console or open_console()
    for hit in hits:
        label = Text(describe.hit_label(hit), "bold").append(f"  {describe.hit_metadata(hit)}".rstrip(), "dim not bold")
        console.print(label, soft_wrap=True, highlight=False)  # never cut: the end of a path is what tells files apart
        room = len(hit.passage.text) if whole else console.width - 4
        text = Text("    " + describe.excerpt(hit.passage.text, query, room))
        console.print(text, soft_wrap=whole, highlight=False)
    if notice:
        console.print(Text(f"! {clean(notice, 2000)}", style="bold yellow"), highlight=False)


def answer_table(answer: AnswerShape, width: int = 140) -> Table:
    """Return the token table for a console of `width` columns: token, gain, and what else there is room for.

    Ranks count from 0, the stream's favourite; ``par`` is memory, ``ctx`` is with the passages. What was left out is
    named below the table.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    tokens = describe.shown(answer)
    cells = [dict(zip(FIGURES, describe.figures(shown.token), strict=True)) for shown in tokens]
    texts = {name: max([cell_len(row[name]) for row in cells], default=0) for name in FIGURES}

    longest = max([cell_len(shown.name) for shown in tokens], default=5)

    def needed(names: Sequence[str], *, bar: bool = False, folded: bool = True) -> int:
        token = max(min(longest, 14 if folded else LONGEST_TOKEN), 5)
        heads = {name: max(map(len, name.split(" " if folded else "\0"))) for name in names}
        widths = [1, token, *([2 * BAR + 3] if bar else []), *(max(texts[name], heads[name]) for name in names)]
        return sum(widths) + 2 * len(widths)

    wide = needed(FIGURES, bar=True, folded=False) <= width
    figures, left_out = list(FIGURES), []
    for name in DROPPED_FIRST:
        if wide or needed(figures) <= width:
            break
        figures.remove(name)
        left_out.append(name)
    token = LONGEST_TOKEN if wide else max(min(14 + width - needed(figures), LONGEST_TOKEN), 4)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    if left_out:
        table.caption = Text(f"No room here for {', '.join(name for name in FIGURES if name in left_out)}.", "dim")
        table.caption_justify = "left"
    table.add_column("", no_wrap=True, width=1)
    table.add_column("token", no_wrap=True, max_width=token, overflow="ellipsis")
    if wide:
        table.add_column("confused│surer", no_wrap=True, width=2 * BAR + 3)
    for name in figures:
        table.add_column(name if wide else name.replace(" ", "\n"), no_wrap=True, justify="right")
    for shown, row in zip(tokens, cells, strict=True):
        gain = shown.token.gain
        table.add_row(
            Text(describe.MARK if shown.token.switched else "", style="bold"),
            Text().append(shown.name, _style(gain, shown.token.switched)),
            *([_bar(gain)] if wide else []),
            *(row[name] for name in figures),
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
