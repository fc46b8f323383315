"""Names to tasks: finds the adapter, reads the data, keeps what is clean, counts the rest and takes a sample.

Knows the adapters; knows no model and no score.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ckcontrol.errors import EvalError, did_you_mean

from ..items.readers import Data, read
from ..items.states import FIVE, StateFact, build_states, completed, rank
from ..records import Record, Rejected, by_row, unclean
from . import (
    confiqa,
    conflictqa,
    context_faithful_nq,
    counterfact,
    kilt,
    memotrap,
    mquake,
    nq_swap,
    paraconflict,
    ramdocs,
    record_files,
    rgb,
    tristate,
)
from . import facts as facts_task
from .base import Adapter

__all__ = ["ADAPTERS", "Task", "load_task", "sample", "task_names"]

_ALL = (
    nq_swap.ADAPTER,
    context_faithful_nq.ADAPTER,
    confiqa.ADAPTER,
    mquake.ADAPTER,
    counterfact.ADAPTER,
    paraconflict.ADAPTER,
    memotrap.ADAPTER,
    conflictqa.ADAPTER,
    ramdocs.ADAPTER,
    rgb.ADAPTER,
    kilt.ADAPTER,
    tristate.ADAPTER,
    record_files.FLASHRAG,
    record_files.JSONL,
)
ADAPTERS: dict[str, Adapter] = {adapter.name: adapter for adapter in _ALL}
_FACTS = {"states": "", "relations": "", "cloze": ""}
_WHERE = {"file": "", "revision": ""}


@dataclass(frozen=True)
class Task:
    """Records that are scored together, and where they come from.

    Attributes:
        name: The adapter's name; for a file of canonical records, the file's.
        records: In the order of the data.
        rejected: What did not become a record, each with its reason.
        source: Where the data comes from.
        licence: Its terms.
        sha256: That of the bytes that were read.
        kind: "generate", or "choices" for comparison by likelihood.
        settings: Options, cleaning and sampling, as the run card states them.
        facts: What the records of task `facts` were made of, for `build_states`; otherwise empty.
    """

    name: str
    records: tuple[Record, ...]
    rejected: tuple[Rejected, ...]
    source: str
    licence: str
    sha256: str
    kind: str = "generate"
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    facts: tuple[StateFact, ...] = ()

    @property
    def reasons(self) -> dict[str, int]:
        """How many were rejected for which reason, the most frequent first."""
        return dict(Counter(item.reason for item in self.rejected).most_common())

    @property
    def unread(self) -> tuple[str, ...]:
        """Of each row that is no record or repeats an id, a line with its place and what is wrong."""
        return tuple(item.told for item in self.rejected if item.reason in ("malformed", "id given twice"))


class _Spec(NamedTuple):
    name: str
    place: str
    options: dict[str, str]


def task_names() -> list[str]:
    """Return the names that `load_task` knows."""
    return sorted([*ADAPTERS, "facts"])


def load_task(spec: str, *, limit: int | None = None, seed: int = 0, clean: bool = True) -> Task:
    """Read a data set and return its records.

    Args:
        spec: ``name=path`` or ``name:path`` for an adapter and a file, folder or Hugging Face id; ``name`` alone for
            what is shipped or the adapter's own data set on the Hub; or the path of canonical records. Options
            follow as in a web address: ``mquake=edits.json?questions=all``.
        limit: At most so many records (of `facts`: facts), spread evenly over the groups; a smaller sample is part
            of a larger one. The option ``?limit=50`` takes precedence.
        seed: Draws the sample, and the false answers of facts.
        clean: Reject conflicts that cannot be scored; see `unclean`.

    Raises:
        EvalError: An unknown name or option, no such file, a file that is not what the name says, or nothing left.
        MissingExtra: The format needs a package that is not installed.

    Example:
        >>> task = load_task("facts?relations=capital", limit=2)
        >>> [(record.state, record.meta["relation"]) for record in task.records]
        [('conflict', 'capital'), ('conflict', 'capital')]
    """
    if limit is not None and limit < 1:
        raise EvalError(f"limit={limit} leaves nothing.", "Give at least 1, or None for everything.")
    name, place, given = _parsed(spec)
    if "limit" in given:
        limit = _count(given.pop("limit"))
    if name == "facts":
        return _facts(place, given, limit, seed)
    adapter = ADAPTERS[name]
    options = _options(name, given, {**adapter.options, **_WHERE})
    data = _read(adapter, place, options)
    own = {key: options[key] for key in adapter.options}
    records, rejected = _sorted_out(adapter.convert(data.rows, own))
    if clean and adapter.clean:
        records, dirty = _cleaned(records, adapter.clean, adapter.supported)
        rejected += dirty
    rejected = by_row(data.rejected, rejected)
    if not records:
        raise _nothing(spec, name, rejected)
    settings: dict[str, Any] = {**own, "clean": adapter.clean if clean else "", "files": data.files}
    notes = sorted({str(record.meta["note"]) for record in records if record.meta.get("note")})
    if notes:
        settings["notes"] = notes
    if limit is not None:
        settings |= {"limit": limit, "seed": seed, "of": len(records)}
    return Task(
        name=Path(place).name.split(".")[0] if name == "jsonl" else name,
        records=tuple(records if limit is None else sample(records, limit, seed)),
        rejected=tuple(rejected),
        source=f"{adapter.source} ({data.source})" if data.source.startswith("https:") else adapter.source,
        licence=adapter.licence,
        sha256=data.sha256,
        kind="choices" if all(record.choices for record in records) else "generate",
        settings=settings,
    )


def sample(records: Sequence[Record], limit: int, seed: int = 0) -> list[Record]:
    """Return at most `limit` records in their order: one from every group, then a second from every group, and so on.

    Which groups come first, and which of their records, depends on the seed and the names alone.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    turns = []
    for group, members in groups.items():
        order = sorted(members, key=lambda record: rank(seed, record.id))
        turns += [(turn, rank(seed, "group", group), record.id) for turn, record in enumerate(order)]
    chosen = {name for _, _, name in sorted(turns)[:limit]}
    return [record for record in records if record.id in chosen]


def _parsed(spec: str) -> _Spec:
    place, mark, query = spec.rpartition("?")
    if not mark or not re.fullmatch(r"\w+=[^&]*(&\w+=[^&]*)*", query):
        place, query = spec, ""
    options = dict(part.split("=", 1) for part in query.split("&")) if query else {}
    if place in task_names():
        return _Spec(place, "", options)
    named = re.fullmatch(r"(\w+)[=:](.+)", place, re.DOTALL)
    if named and named[1] in task_names():
        return _Spec(named[1], named[2], options)
    if place and Path(place).exists():
        return _Spec("jsonl", place, options)
    raise EvalError(f"no task and no file {place!r}.", did_you_mean(named[1] if named else place, task_names()))


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise EvalError(f"limit={text} is not a number of records.", "Write ?limit=50")
    return int(text)


def _options(name: str, given: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    for key in given:
        if key not in known:
            raise EvalError(f"task {name!r} has no option {key!r}.", did_you_mean(key, known))
    return {**known, **given}


def _read(adapter: Adapter, place: str, options: Mapping[str, str]) -> Data:
    if place and adapter.load:
        return adapter.load(place, options)
    if place:
        return read(place, file=options["file"], revision=options["revision"])
    if adapter.hub:
        return read(adapter.hub, file=options["file"] or adapter.pattern, revision=options["revision"])
    raise EvalError(f"task {adapter.name!r} needs its data: {adapter.source}.", f"Write {adapter.name}=path.")


def _sorted_out(made: Iterable[Record | Rejected]) -> tuple[list[Record], list[Rejected]]:
    """Separate records from rejections; an id that has come before is rejected."""
    records: dict[str, Record] = {}
    rejected = []
    for item in made:
        if isinstance(item, Rejected):
            rejected.append(item)
        elif item.id in records:
            rejected.append(Rejected(item.id, "id given twice", item.question[:80]))
        else:
            records[item.id] = item
    return list(records.values()), rejected


def _cleaned(records: Iterable[Record], by: str, supported: bool) -> tuple[list[Record], list[Rejected]]:
    kept, rejected = [], []
    for record in records:
        fault = unclean(record, by, supported)
        if fault is None:
            kept.append(record)
        else:
            rejected.append(Rejected(record.id, *fault))
    return kept, rejected


def _nothing(spec: str, name: str, rejected: Sequence[Rejected]) -> EvalError:
    why = ", ".join(f"{reason} ({n})" for reason, n in Counter(item.reason for item in rejected).most_common())
    first = next((item.told for item in rejected if item.detail), "")
    return EvalError(
        f"{spec!r} holds no record of {name!r}; rejected: {why or 'nothing'}.",
        f"First: {first}" if first else "Check that the file is what the name says.",
    )


def _facts(place: str, given: Mapping[str, str], limit: int | None, seed: int) -> Task:
    options = _options("facts", given, {**_FACTS, **_WHERE} if place else _FACTS)
    where = {key: options[key] for key in _WHERE} if place else {}
    facts, rejected, digest = facts_task.load_facts(place or None, **where)
    if not facts:
        raise _nothing(place, "facts", rejected)
    wanted = [name for name in options["relations"].split(",") if name]
    known = sorted({fact.relation for fact in facts})
    for name in wanted:
        if name not in known:
            raise EvalError(f"no relation {name!r} among the facts.", did_you_mean(name, known))
    facts = completed([f for f in facts if not wanted or f.relation in wanted], seed)
    options["states"] = ",".join(FIVE) if options["states"] == "all" else options["states"]
    states = [state for state in options["states"].split(",") if state] or ["conflict"]
    settings: dict[str, Any] = {key: options[key] for key in _FACTS} | {"seed": seed, "relations": wanted or known}
    if limit is not None:
        settings |= {"limit": limit, "of": len(facts)}
        # Relations take turns, so that a small sample holds some of each.
        every = [Record(f.id, f.question, group=f.relation, state="closed") for f in facts]
        chosen = {record.id for record in sample(every, limit, seed)}
        kept = [fact for fact in facts if fact.id in chosen]
    else:
        kept = facts
    return Task(
        name="facts",
        records=tuple(build_states(kept, None, states, seed, cloze=options["cloze"] not in ("", "0"))),
        rejected=tuple(rejected),
        source="a file of the user's own" if place else facts_task.SOURCE,
        licence="as the file's owner says" if place else facts_task.LICENCE,
        sha256=digest,
        settings=settings,
        facts=tuple(kept),
    )
