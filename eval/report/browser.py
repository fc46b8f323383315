"""The item browser: one <details> per item, its passages and what every arm answered, shaded by confidence gain.

Knows chosen items and items.html; needs no script. Everything that a model, a data set or a file wrote is cut to a
length, and the whole is bounded: what does not fit is counted, never dropped unseen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...rates import count
from ...views import describe
from ...views.html import templates
from ...views.safe_text import clean
from ..figures.rows import number
from ..records import Record
from .answers import SYMBOLS, ChosenItem, TaskItems, failure
from .runs import Run

__all__ = ["BYTES", "browser", "key"]

BYTES = 6_000_000  # of one run's items
TOKENS = 120  # shown per answer
PASSAGES, LETTERS = 5, 1500  # shown per item, and of each


class SampleToken(NamedTuple):
    """What a sample records of a token and its mark shows."""

    text: str
    gain: float
    tau: float
    switched: bool


@dataclass(frozen=True)
class SampleText:
    """A sample as a view reads it: see `ckcontrol.views.shape.RunningText`."""

    text: str
    tokens: Sequence[SampleToken]
    finish_reason: str


class Excerpt(NamedTuple):
    """What is shown of a sample: why it failed, or tokens and how many more there are, or text; None is a dash."""

    text: str | None = None
    tokens: Sequence[describe.Shown[SampleToken]] = ()
    more: str = ""
    failure: str | None = None


def browser(run: Run, choices: list[TaskItems], room: int = BYTES) -> str:
    """Return the items of every task as HTML of about `room` bytes at most."""
    tasks = []
    for choice in choices:
        blocks = []
        for chosen in choice.items:
            block = _item(run, chosen)
            if len(block) > room:
                break
            room -= len(block)
            blocks.append(block)
        hidden = choice.total - len(blocks)
        note = (
            f"{count(len(blocks), 'item')} of {choice.total:,}, those on which the methods disagree most, the states "
            f"in turn; {hidden:,} not shown. The methods were judged differently on {choice.disagreed:,}."
        )
        tasks.append((choice.task, note, blocks))
    unread = max((choice.unread for choice in choices), default=0)
    return _macro("browser", tasks, count(unread, "line") if unread else "")


def key() -> str:
    """Return the line that explains symbols and shades."""
    return _macro("key", SYMBOLS)


def _macro(name: str, *given: Any) -> str:
    """Return what a macro of items.html makes: markup."""
    made: str = getattr(templates("ckcontrol.eval.report").get_template("items.html").module, name)(*given)
    return made


def _item(run: Run, chosen: ChosenItem) -> str:
    record = chosen.record
    tally = Counter(chosen.verdicts.values())
    marks = " ".join(f"{symbol}{tally[word]}" for word, symbol in SYMBOLS.items() if tally[word])
    told = ", ".join(f"{tally[word]} {word}" for word in SYMBOLS if tally[word])
    arms = [arm.name for arm in run.arms if arm.name in chosen.samples]
    arms += sorted(set(chosen.samples) - set(arms))
    answers = [
        (name, SYMBOLS[word], word, word in ("wrong", "failed"), _said(record, chosen.samples[name]))
        for name in arms
        for word in [chosen.verdicts[name]]
    ]
    passages = [clean(text, LETTERS) for text in record.passages[:PASSAGES]]
    left = len(record.passages) - PASSAGES
    more = count(left, "more passage") if left > 0 else ""
    return _macro("item", record, _wanted(record), passages, more, answers, marks, told)


def _wanted(record: Record) -> list[tuple[str, str, int]]:
    """Return whose answer, the first of its texts, and how many more there are."""
    if record.choices:
        return [("Wanted", "not given" if record.answer_index is None else record.choices[record.answer_index], 0)]
    lines = [("True", record.par_answers)]
    if record.ctx_answers and record.ctx_answers != record.par_answers:
        lines.append(("The passages say", record.ctx_answers))
    return [(name, " / ".join(texts[:6]), max(len(texts) - 6, 0)) for name, texts in lines if texts]


def _said(record: Record, sample: dict[str, Any]) -> Excerpt:
    if sample.get("error") is not None:
        return Excerpt(failure=failure(sample))
    if record.choices:
        place = sample.get("choice")
        if not isinstance(place, int) or not 0 <= place < len(record.choices):
            return Excerpt()
        return Excerpt(clean(record.choices[place], 240))
    text = str(sample.get("text", ""))
    tokens = _tokens(sample)
    shown = describe.shown(SampleText(text, tokens, str(sample.get("finish", "length"))))[:TOKENS]
    more = len(tokens) - len(shown)
    return Excerpt(clean(text), shown, count(more, "token") if more else "")


def _tokens(sample: dict[str, Any]) -> list[SampleToken]:
    """Return what a view needs of every token; a sample without a complete trace has none."""
    told = sample.get("tokens")
    if not isinstance(told, dict):
        return []
    columns = [told.get(name) for name in ("text", "gain", "tau", "switched")]
    if not all(isinstance(column, list) and len(column) == len(columns[0] or ()) for column in columns):
        return []
    rows = zip(*(column or [] for column in columns), strict=True)
    return [SampleToken(str(text), number(gain), number(tau), bool(on)) for text, gain, tau, on in rows]
