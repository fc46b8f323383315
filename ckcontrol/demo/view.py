"""Draws a `DemoResult`: in the terminal and as one HTML page, with the same tables, notes and token views.

Knows rich, its template (demo.html) and the result; computes no verdict. What an answer relied on is told by a symbol
and a word, never by colour alone; in the totals each symbol is one question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..views.html import templates
from ..views.safe_text import clean, short
from .result import DemoResult, DemoRow

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["SYMBOLS", "demo_html", "notes", "print_demo"]

SYMBOLS = {"passage": "■", "memory": "◆", "both": "◧", "neither": "○", "agrees": "✓"}
KEY = "■ relied on the passage · ◆ on memory · ◧ names both · ○ names neither · ✓ agrees with passage and truth"
WIDE = 118


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
        lines.append(f"At {first}, {_count(lost[first], 'answer')} named neither. All are shown as they came.")
    missed = [row for row in result.rows if not row.expected]
    if missed:
        lines.append(f"For {_count(len(missed), 'question')} retrieval ranked another passage first (marked).")
    lines.append(
        "An answer is judged by whole-word mention of the truth or of the passage's claim, nothing finer. "
        f"{len(result.rows)} questions and one model show how the dial works, not how well it works."
    )
    return lines


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


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
    """Print the questions, the totals, the notes and the token views of two telling questions."""
    from rich.padding import Padding
    from rich.text import Text

    from ..views.terminal import answer_text, legend

    console.print(Text("\nWhat each answer relied on", "bold"))
    console.print(Text(KEY, "dim"))
    if console.width >= WIDE:
        console.print(_matrix(result))
    else:
        for row in result.rows:
            console.print(_block(result, row))
    console.print(Text("\nTotals, one symbol per question", "bold"))
    console.print(_totals(result))
    for line in notes(result):
        console.print(Text(f"· {line}", "dim"), highlight=False)
    console.print(Text("\nWhy: confidence gain, token by token", "bold"))
    for row in result.telling():
        console.print(Text().append(f"\n{clean(row.item.question)}", "bold").append(f"  passage: {_says(row)}", "dim"))
        for name, answer, verdict in zip(result.columns, row.answers, row.verdicts, strict=True):
            console.print(Text(f"  {name}: {SYMBOLS[verdict]} {verdict}, {answer.switched} switched", "dim"))
            console.print(Padding(answer_text(answer), (0, 4)))
    console.print(legend())
    console.print(Text(f"\nTook {_times(result)}.", "dim"), highlight=False)


def _times(result: DemoResult) -> str:
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items())
    return f"{sum(result.seconds.values()):.0f} s: {parts}"


def _flag(row: DemoRow) -> Text:
    from rich.text import Text

    text = Text(clean(_says(row)))
    return text.append(" FALSE", "bold") if row.item.false and row.expected else text


def _known(row: DemoRow) -> Text:
    from rich.text import Text

    text = Text().append("✓ knows\n" if row.knows else "✗ does not know\n", "bold")
    return text.append(short(row.closed_book.text, 90), "dim")


def _matrix(result: DemoResult) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, expand=True, show_lines=True, padding=(0, 1), pad_edge=False)
    grid.add_column("question", ratio=5)
    grid.add_column("the passage says", ratio=3)
    grid.add_column("closed book", ratio=4)
    for name in result.columns:
        grid.add_column(name, ratio=5)
    for row in result.rows:
        cells = [
            Text().append(f"{SYMBOLS[verdict]} {verdict}\n", "bold").append(short(answer.text, 76), "dim")
            for answer, verdict in zip(row.answers, row.verdicts, strict=True)
        ]
        grid.add_row(Text(clean(row.item.question)), _flag(row), _known(row), *cells)
    return grid


def _block(result: DemoResult, row: DemoRow) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1), pad_edge=False)
    grid.add_column(width=11, no_wrap=True)
    grid.add_column(width=9, no_wrap=True)
    grid.add_column()
    grid.title, grid.title_justify = Text(f"\n{clean(row.item.question)}", "bold"), "left"
    grid.add_row("passage", Text("FALSE" if row.item.false else "true", "bold"), Text(clean(_says(row))))
    knows = Text("✓ knows" if row.knows else "✗ no", "bold")
    grid.add_row("closed book", knows, Text(short(row.closed_book.text, 110), "dim"))
    for name, answer, verdict in zip(result.columns, row.answers, row.verdicts, strict=True):
        said = Text(f"{SYMBOLS[verdict]} {verdict}", "bold")
        grid.add_row(name, said, Text(short(answer.text, 110), "dim"))
    return grid


def _totals(result: DemoResult) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_lines=True, pad_edge=False)
    grid.add_column("")
    for name in result.columns:
        grid.add_column(name)
    for label, rows in _groups(result):
        cells = []
        for counts in result.totals(rows):
            tally = _tally(counts)
            cell = Text().append("".join(symbols for symbols, _ in tally), "bold")
            cells.append(cell.append("\n" + "\n".join(words for _, words in tally), "dim"))
        grid.add_row(label, *cells)
    return grid


# --- HTML ---


def demo_html(result: DemoResult) -> str:
    """Return the page: totals, every question, two token views, notes. It loads nothing and runs nothing."""
    totals = [[label, *map(_tally, result.totals(group))] for label, group in _groups(result)]
    rows = [[row, row, row, *zip(row.answers, row.verdicts, strict=True)] for row in result.rows]
    told = {"result": result, "totals": totals, "rows": rows, "notes": notes(result), "times": _times(result)}
    return templates("ckcontrol.demo").get_template("demo.html").render(told, says=_says, symbols=SYMBOLS, key=KEY)
