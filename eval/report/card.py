"""The run card: what was run, on what, with what, and what was left out.

Knows run.json and results.json and passes on what they say, unknown keys included; judges nothing and draws nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...rates import count
from ...views.safe_text import clean
from .runs import Run

__all__ = ["Card", "card", "differences", "rejected", "value_text"]

Lines = list[tuple[str, str]]  # how a line looks ("", "mono" or "pre"), and what it says, cleaned and cut
Rows = list[tuple[str, Lines]]
LATER = ("schema", "arms", "tasks", "prompts", "unread")  # these have their own tables
FIRST = ("model", "model_fingerprint", "dtype", "device", "started", "seed", "style", "options", "versions")


class Card(NamedTuple):
    """The three lists of a run card: names, and the lines of each."""

    facts: Rows
    prompts: Rows
    arms: Rows


def card(run: Run) -> Card:
    """Return the run card: the facts of the run, its prompts, its arms and their controls."""
    told = run.card
    keys = [key for key in FIRST if key in told] + sorted(set(told) - set(FIRST) - set(LATER))
    facts: Rows = [(key.replace("_", " "), [("", value_text(told[key]))]) for key in keys]
    facts.append(("results.json", [("mono", f"sha256 {_sha256(run)}")]))
    failed = sum(int(cell.get("errors") or 0) for cell in run.results.get("cells", ()))
    facts.append(("failed samples", [("", f"{failed:,}, counted and never averaged")]))
    facts += [(f"data: {name}", _task(run, name)) for name in sorted(told.get("tasks", {}))]
    facts += [("each method alone", _speed(run.speed))] if run.speed else []
    prompts: Rows = [
        (f"prompt: {name}", [("pre", _prompt(fields))]) for name, fields in sorted(told.get("prompts", {}).items())
    ]
    arms: Rows = [
        (
            str(arm.get("name")),
            [("", value_text({k: v for k, v in arm.items() if k != "name" and v not in (None, {}, "")}))],
        )
        for arm in told.get("arms", ())
    ]
    return Card(facts, prompts, arms)


def rejected(run: Run, name: str) -> str:
    """Return how many records of a task were rejected and why, in words, and the first rows that are no records."""
    task, unread = run.card["tasks"][name], run.card.get("unread")
    reasons = {str(why): int(n) for why, n in dict(task.get("rejected") or {}).items()}
    if not sum(reasons.values()):
        return "none rejected"
    why = ", ".join(f"{n:,} {clean(reason, 80)}" for reason, n in sorted(reasons.items()) if n)
    first = "; ".join(clean(str(line), 150) for line in _listed(unread, name)[:3])
    return f"{sum(reasons.values()):,} rejected: {why}{first and f'; first: {first}'}"


def differences(runs: Sequence[Run]) -> list[str]:
    """Return what differs between runs: fields of the card, and data, settings and records of shared tasks."""
    fields = sorted({key for run in runs for key in run.card} - {"started", "arms", "tasks", "schema", "unread"})
    found = [name for name in fields if len({_json(run.card.get(name)) for run in runs}) > 1]
    for task in sorted(set.intersection(*({*run.card.get("tasks", {})} for run in runs))):
        for key in ("sha256", "settings", "records"):
            if len({_json(run.card["tasks"][task].get(key)) for run in runs}) > 1:
                found.append(f"{key} of {task}")
    return [clean(name.replace("_", " "), 80) for name in found]


def _speed(told: Mapping[str, Any]) -> Lines:
    peak = told.get("peak_rss_mb")
    process = "" if peak is None else f"; the process took {peak:,} MB at most"
    about = f"{count(int(told.get('records') or 0), 'question')} one at a time, {told.get('rounds')} rounds{process}."
    lines = [("", clean(about, 200))]
    for row in told.get("arms", ()):
        ratio, memory = row.get("against_off"), row.get("peak_cuda_mb")
        beside = "" if ratio is None or row.get("arm") == "off" else f", {ratio:.2f} of off"
        beside += "" if memory is None else f", {memory:,} MB"
        figures = f"{row.get('seconds'):.2f} s per answer, {row.get('tokens_per_s'):.1f} tokens/s{beside}"
        lines.append(("", f"{clean(str(row.get('arm')), 60)}: {figures}"))
    return lines


def _listed(unread: Any, name: str) -> list[Any]:
    lines = unread.get(name) if isinstance(unread, Mapping) else None
    return lines if isinstance(lines, list) else []


def _task(run: Run, name: str) -> Lines:
    task = run.card["tasks"][name]
    records = task.get("records")
    plain = [
        f"{records:,} records" if isinstance(records, int) else "",
        rejected(run, name),
        f"kind {task.get('kind')}",
        f"licence {task.get('licence') or 'unknown'}",
        f"source {task.get('source')}",
    ]
    lines = [
        ("", clean("; ".join(filter(None, plain)), 1000)),
        ("mono", f"sha256 {clean(str(task.get('sha256')), 80)}"),
    ]
    return [*lines, ("", value_text(task["settings"]))] if task.get("settings") else lines


def value_text(value: Any) -> str:
    """Return an entry of the card in words: "family llama, layers 9" of an object."""
    if isinstance(value, Mapping):
        return clean(", ".join(f"{key} {_plain(part)}" for key, part in value.items()), 3000)
    return clean(_plain(value), 1000)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _prompt(fields: Any) -> str:
    if not isinstance(fields, Mapping):
        return clean(_plain(fields), 3000)
    return "\n\n".join(f"{clean(str(k), 60)}:\n{clean(_plain(v), 3000)}" for k, v in fields.items())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _sha256(run: Run) -> str:
    return hashlib.sha256((run.folder / "results.json").read_bytes()).hexdigest()
