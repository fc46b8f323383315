"""Which items are worth reading, and how each of their answers was judged.

Reads items.jsonl and samples.jsonl line by line, twice: once to see where the arms disagree, once to keep the samples
of the chosen items only. Knows records, verdicts and files; draws nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckcontrol.errors import EvalError

from ...views.safe_text import clean
from ..judging.measures import is_right
from ..judging.verdict import verdict
from ..records import STATES, Record
from ..run_files import misshapen, parsed, sample_files

__all__ = ["SYMBOLS", "ChosenItem", "TaskItems", "choose", "failure", "item_rows", "judge", "sample_rows"]

# What an answer named, in conflict; whether it was right, elsewhere. A symbol and a word: colour is never alone.
SYMBOLS = {
    "memory": "◆",
    "passages": "■",
    "both": "◧",
    "neither": "○",
    "right": "✓",
    "wrong": "✗",
    "failed": "!",
    "unjudged": "·",
}


@dataclass(frozen=True)
class ChosenItem:
    """An item and its samples, by arm."""

    record: Record
    samples: dict[str, dict[str, Any]]
    verdicts: dict[str, str]


@dataclass
class TaskItems:
    """The chosen items of one task.

    Attributes:
        task: Its name.
        total: Items of the task that have samples.
        disagreed: Of these, how many the arms judged differently.
        items: The chosen ones.
        unread: Lines of either file that could not be read, over all tasks.
    """

    task: str
    total: int = 0
    disagreed: int = 0
    items: list[ChosenItem] = field(default_factory=list)
    unread: int = 0


def judge(record: Record, sample: dict[str, Any]) -> str:
    """Return the word for one sample: a key of `SYMBOLS`. Text is judged in strict mode."""
    if sample.get("error") is not None:
        return "failed"
    if record.choices:
        if record.answer_index is None or sample.get("choice") is None:
            return "unjudged"
        return "right" if sample["choice"] == record.answer_index else "wrong"
    if not record.par_answers and not record.ctx_answers:
        return "unjudged"
    said = verdict(str(sample.get("text", "")), record.ctx_answers, record.par_answers)
    if record.state == "conflict":
        return {"parametric": "memory", "contextual": "passages"}.get(said.source, said.source)
    right = is_right(record, said)
    return "unjudged" if right is None else "right" if right else "wrong"


def choose(folder: Path, limit: int) -> list[TaskItems]:
    """Return at most `limit` items per task: those the arms disagree on most, the states in turn.

    Items without a sample are left out. Half-written and foreign lines are counted, not repaired.

    Args:
        folder: A run directory.
        limit: Items per task; 0 reads nothing.
    """
    if limit < 1 or not (folder / "items.jsonl").exists() or not sample_files(folder):
        return []
    unread: Counter[str] = Counter()
    records: dict[tuple[str, str], Record] = {}
    for row in item_rows(folder, unread):
        try:
            records[str(row["task"]), str(row["id"])] = Record.from_dict(row)
        except (EvalError, KeyError, TypeError):
            unread["lines"] += 1
    verdicts: dict[tuple[str, str], dict[str, str]] = {}
    for row in sample_rows(folder, unread):
        key, arm = (str(row.get("task")), str(row.get("id"))), str(row["arm"])
        if key in records and arm not in verdicts.setdefault(key, {}):  # as in the figures, the first counts
            verdicts[key][arm] = judge(records[key], row)
    choices: dict[str, TaskItems] = {}
    wanted: dict[tuple[str, str], ChosenItem] = {}
    for task in sorted({task for task, _ in verdicts}):
        keys = [key for key in verdicts if key[0] == task]
        told = choices[task] = TaskItems(task, len(keys), sum(_disagreement(verdicts[k]) > 0 for k in keys))
        for key in _pick(keys, records, verdicts, limit):
            wanted[key] = ChosenItem(records[key], {}, verdicts[key])
            told.items.append(wanted[key])
    for row in sample_rows(folder, Counter()):
        chosen = wanted.get((str(row.get("task")), str(row.get("id"))))
        if chosen is not None:
            chosen.samples.setdefault(str(row["arm"]), row)
    for told in choices.values():
        told.unread = unread["lines"]
    return list(choices.values())


def _pick(
    keys: list[tuple[str, str]],
    records: dict[tuple[str, str], Record],
    verdicts: dict[tuple[str, str], dict[str, str]],
    limit: int,
) -> list[tuple[str, str]]:
    """Pick items with the states in turn, so that conflicts do not crowd out questions with good passages."""
    queues = {
        state: sorted(
            (key for key in keys if records[key].state == state),
            key=lambda key: (-_disagreement(verdicts[key]), key),
        )
        for state in STATES
    }
    picked: list[tuple[str, str]] = []
    while len(picked) < limit and any(queues.values()):
        for queue in queues.values():
            if queue and len(picked) < limit:
                picked.append(queue.pop(0))
    order = {state: place for place, state in enumerate(STATES)}
    return sorted(picked, key=lambda key: (order[records[key].state], -_disagreement(verdicts[key]), key))


def _disagreement(verdicts: dict[str, str]) -> float:
    """Return the chance that two arms drawn at random were judged differently."""
    total = len(verdicts)
    return 1.0 - sum((n / total) ** 2 for n in Counter(verdicts.values()).values())


def item_rows(folder: Path, unread: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the items of a run, and count lines that cannot be read."""
    return _rows(folder / "items.jsonl", unread)


def sample_rows(folder: Path, unread: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the answers of a run, of all shards, without the lines that close passes; count what cannot be read."""
    for path in sample_files(folder):
        yield from (row for row in _rows(path, unread) if "arm" in row)


def _rows(path: Path, unread: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file. Only a line feed ends a line: texts hold other separators."""
    with open(path, "rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            row = parsed(line)
            if row is not None and ("arm" not in row or not misshapen({**row, "tokens": None})):
                yield row
            else:
                unread["lines"] += 1


def failure(sample: dict[str, Any]) -> str:
    """Return what a failed sample says, on one line."""
    return " ".join(clean(str(sample.get("error") or ""), 300).split())
