"""Draws a `DemoResult`: in the terminal and as one HTML page, with the same tables, notes and token views.

Knows rich, its template (demo.html) and the result; computes no verdict. What an answer relied on is told by a symbol
and a word, never by colour alone; in the totals each symbol is one question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..rates import count
from ..views.html import templates
from ..views.safe_text import clean, short
from .result import ALPHAS, DemoResult, DemoRow

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["SYMBOLS", "demo_html", "notes", "print_demo"]

SYMBOLS = {"passage": "■", "memory": "◆", "both": "◧", "neither": "○", "agrees": "✓"}
KEY = "■ relied on the passage · ◆ on memory · ◧ names both · ○ names neither · ✓ agrees with passage and truth"
RIGHT = ("memory", "agrees")


def notes(result: DemoResult) -> list[str]:
    """Return what an honest reader should know beside the table."""
    false, known = result.false_rows(), result.false_rows(known=True)
    knows = sum(row.knows for row in result.rows)
    lines = [
        f"Closed book, the model knows {knows} of {len(result.rows)} facts (its answer names them). "
        f"Of the {len(false)} that a false passage contradicts it knows {len(known)}."
        + (" On the others memory has little to win with." if len(known) < len(false) else "")
    ]
    ends = [verdicts for row in result.rows for verdicts in zip(result.columns, row.verdicts, strict=True)]
    lost = Counter(name for name, verdict in ends if verdict == "neither")
    first = result.columns[0]
    if lost[first]:
        lines.append(f"At {first}, {count(lost[first], 'answer')} named neither. All are shown as they came.")
    missed = [row for row in result.rows if not row.expected]
    if missed:
        lines.append(f"For {count(len(missed), 'question')} retrieval ranked another passage first (marked).")
    lines.append(
        "An answer is judged by whole-word mention of the truth or of the passage's claim, nothing finer. "
        f"{len(result.rows)} questions and one model show how the dial works, not how well it works."
    )
    return lines


def _groups(result: DemoResult) -> list[tuple[str, Sequence[DemoRow]]]:
    groups = [
        ("false passage, fact known", result.false_rows(known=True)),
        ("false passage, fact not known", result.false_rows(known=False)),
        ("true passage", result.true_rows()),
    ]
    return [(f"{name} ({len(rows)})", rows) for name, rows in groups if rows]


def _tally(counts: Counter[str]) -> list[tuple[str, str]]:
    """Return a row of symbols, one per question, and the same in words."""
    order = [name for name in SYMBOLS if counts[name]]
    return [(SYMBOLS[name] * counts[name], f"{counts[name]} {name}") for name in order]


def _says(row: DemoRow) -> str:
    return row.item.claim if row.expected else "(another passage was retrieved)"


# --- terminal ---


def print_demo(result: DemoResult, console: Console) -> None:
    """Print the dial question by question, the notes, and two telling questions with their answers."""
    from rich.text import Text

    from ..views.terminal import legend

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style), highlight=False)

    line("\nWhom the answers believe, as the dial turns", "bold")
    line(_about(result))
    line(KEY, "dim")
    for label, rows in _groups(result):
        console.print(_turned(result, label, rows, console.width))
    for note in notes(result):
        line(f"· {note}", "dim")
    for row in result.telling():
        says = f"  the passage says: {_says(row)}" + " (false)" * (row.item.false and row.expected)
        console.print(Text().append(f"\n{clean(row.item.question)}", "bold").append(says, "dim"))
        console.print(_said(result, row, console.width))
    console.print(legend(console))
    line(f"\nTook {_times(result)}.", "dim")


def _about(result: DemoResult) -> str:
    return (
        f"{result.model} answered {len(result.rows)} questions, each with the passage that search ranked first among "
        f"{result.corpus_size}; {len(result.false_rows())} of these passages are false on purpose."
    )


def _times(result: DemoResult) -> str:
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items())
    return f"{sum(result.seconds.values()):.0f} s: {parts}"


def _turned(result: DemoResult, label: str, rows: Sequence[DemoRow], width: int) -> Text:
    """Return some questions with a mark per setting, and below them how many answers are right at it."""
    from rich.text import Text

    cell = 2 if len(rows) < 10 else 3
    dial = cell * len(ALPHAS) - cell + 1
    aside = width >= 76  # else the marks stand below each question
    room = min(max(len(row.item.question) for row in rows), width - dial - 14) if aside else 0
    text = Text(f"\n{label}", "bold")

    def put(name: str, marks: Sequence[str], last: str, style: str = "") -> None:
        name = short(name, room if aside else width - 2)
        lead = f"  {name}".ljust(room + 4) if aside else f"  {name}\n  " if name else "  "
        marked = "".join(mark.ljust(cell) for mark in marks).rstrip()
        text.append(f"\n{lead}", style).append(f"{marked}  ".ljust(dial + 2), "bold").append(last, "bold")

    middle = "0.5".center(dial - 2)
    text.append("\n" + " " * (room + 4 if aside else 2) + f"passage {'─' * (dial - 15)} memory", "dim")
    put("", ["0" + middle + "1"], "adaptive", "dim")
    for row in rows:
        put(row.item.question, [SYMBOLS[verdict] for verdict in row.dial], SYMBOLS[row.verdicts[-1]])
    right = [[verdict in RIGHT for verdict in (*row.dial, row.verdicts[-1])] for row in rows]
    *counts, last = (str(sum(column)) for column in zip(*right, strict=True))
    put("right answers", counts, last, "dim")
    return text


def _pointer(name: str) -> str:
    """Return a small dial that stands where a setting of that name does."""
    if not name.startswith("alpha "):
        return "by itself".ljust(11)
    place = round(10 * float(name.removeprefix("alpha ")))
    return "".join("●" if i == place else "┼" if i == 5 else "─" for i in range(11))


def _said(result: DemoResult, row: DemoRow, width: int) -> Table:
    """Return the answers to one question, each beside the dial; token by token where they were traced."""
    from rich.table import Table
    from rich.text import Text

    from ..views.terminal import answer_text

    grid = Table.grid(padding=(0, 2), pad_edge=False)
    for _ in range(2 + (width >= 76)):
        grid.add_column(no_wrap=True)
    grid.add_column()
    for name, answer, verdict in zip(result.columns, row.answers, row.verdicts, strict=True):
        drawn = [Text(f"  {_pointer(name)}", "bold")] if width >= 76 else []
        grid.add_row(*drawn, Text(f"{name}"), Text(f"{SYMBOLS[verdict]} {verdict}", "bold"), answer_text(answer))
    return grid


# --- HTML ---


def turned(row: DemoRow) -> str:
    """Return in words what a question's answers relied on from one end of the dial to the other."""
    return ", ".join(f"{verdict} {low:g}" + f" to {high:g}" * (low < high) for verdict, low, high in row.turns)


def demo_html(result: DemoResult) -> str:
    """Return the page: totals, every question, two token views, notes. It loads nothing and runs nothing."""
    totals = [[label, *map(_tally, result.totals(group))] for label, group in _groups(result)]
    rows = [[row, row, row, *zip(row.answers, row.verdicts, strict=True)] for row in result.rows]
    told = {"result": result, "totals": totals, "rows": rows, "notes": notes(result), "times": _times(result)}
    names = {"says": _says, "symbols": SYMBOLS, "key": KEY, "turned": turned, "about": _about(result)}
    return templates("ckcontrol.demo").get_template("demo.html").render(told, **names)
