"""The run card: what was run, on what, with what, and what was left out.

Knows run.json and results.json and prints what they say, unknown keys included; judges nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ckcontrol.views.safe_text import clean, escape

from .number_texts import count
from .runs import Run

__all__ = ["card", "differences", "rejected"]

LATER = ("schema", "arms", "tasks", "prompts")  # these have their own tables
FIRST = ("model", "model_fingerprint", "dtype", "device", "started", "seed", "style", "options", "versions")


def card(run: Run) -> str:
    """Return the run card as HTML."""
    told = run.card
    keys = [key for key in FIRST if key in told] + sorted(set(told) - set(FIRST) - set(LATER))
    rows = [(key.replace("_", " "), _value(told[key])) for key in keys]
    rows.append(("results.json", f'<span class="ev-mono">sha256 {_sha256(run)}</span>'))
    failed = sum(int(cell.get("errors") or 0) for cell in run.results.get("cells", ()))
    rows.append(("failed samples", f"{failed:,}, counted and never averaged"))
    rows += [(f"data: {name}", _task(task)) for name, task in sorted(told.get("tasks", {}).items())]
    prompts = [(f"prompt: {name}", _pre(fields)) for name, fields in sorted(told.get("prompts", {}).items())]
    arms = [
        (str(arm.get("name")), _value({k: v for k, v in arm.items() if k != "name" and v not in (None, {}, "")}))
        for arm in told.get("arms", ())
    ]
    rows += [("each method alone", _speed(run.speed))] if run.speed else []
    return (
        f"{_list(rows)}\n<details><summary>Prompts</summary>{_list(prompts)}</details>\n"
        f"<details><summary>{count(len(arms), 'arm')} and their controls</summary>{_list(arms)}</details>"
    )


def rejected(task: Mapping[str, Any]) -> str:
    """Return how many records of a task were rejected and why, in words."""
    reasons = {str(why): int(n) for why, n in dict(task.get("rejected") or {}).items()}
    if not sum(reasons.values()):
        return "none rejected"
    why = ", ".join(f"{n:,} {clean(reason, 80)}" for reason, n in sorted(reasons.items()) if n)
    return f"{sum(reasons.values()):,} rejected: {why}"


def differences(runs: Sequence[Run]) -> list[str]:
    """Return what runs beside each other do not share: fields of the card, data and prompts of shared tasks."""
    fields = sorted({key for run in runs for key in run.card} - {"started", "arms", "tasks", "schema"})
    found = [name for name in fields if len({_json(run.card.get(name)) for run in runs}) > 1]
    for task in sorted(set.intersection(*({*run.card.get("tasks", {})} for run in runs))):
        for key in ("sha256", "settings", "records"):
            if len({_json(run.card["tasks"][task].get(key)) for run in runs}) > 1:
                found.append(f"{key} of {task}")
    return [clean(name.replace("_", " "), 80) for name in found]


def _speed(told: Mapping[str, Any]) -> str:
    lines = []
    for row in told.get("arms", ()):
        ratio = row.get("against_off")
        memory = row.get("peak_cuda_mb")
        beside = "" if ratio is None or row.get("arm") == "off" else f", {ratio:.2f} of off"
        beside += "" if memory is None else f", {memory:,} MB"
        lines.append(
            f"{escape(str(row.get('arm')), 60)}: {row.get('seconds'):.2f} s an answer, "
            f"{row.get('tokens_per_s'):.1f} tokens/s{beside}"
        )
    peak = told.get("peak_rss_mb")
    process = "" if peak is None else f"; the process took {peak:,} MB at most"
    about = f"{count(int(told.get('records') or 0), 'question')} one at a time, {told.get('rounds')} rounds{process}."
    return "<br>".join([escape(about, 200), *lines])


def _task(task: Mapping[str, Any]) -> str:
    records = task.get("records")
    plain = [
        f"{records:,} records" if isinstance(records, int) else "",
        rejected(task),
        f"kind {task.get('kind')}",
        f"licence {task.get('licence') or 'unknown'}",
        f"source {task.get('source')}",
    ]
    settings = _value(task["settings"]) if task.get("settings") else ""
    return (
        f"{escape('; '.join(filter(None, plain)), 1000)}"
        f'<br><span class="ev-mono">sha256 {escape(str(task.get("sha256")), 80)}</span>'
        f"{f'<br>{settings}' if settings else ''}"
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return escape(", ".join(f"{key} {_plain(part)}" for key, part in value.items()), 3000)
    return escape(_plain(value), 1000)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _pre(fields: Any) -> str:
    if not isinstance(fields, Mapping):
        return f"<pre>{escape(_plain(fields), 3000)}</pre>"
    return (
        "<pre>" + "\n\n".join(f"{escape(str(k), 60)}:\n{escape(_plain(v), 3000)}" for k, v in fields.items()) + "</pre>"
    )


def _list(rows: Sequence[tuple[str, str]]) -> str:
    parts = "\n".join(f"<dt>{escape(name, 80)}</dt><dd>{body}</dd>" for name, body in rows)
    return f'<dl class="ev-card">\n{parts}\n</dl>'


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _sha256(run: Run) -> str:
    return hashlib.sha256((run.folder / "results.json").read_bytes()).hexdigest()
