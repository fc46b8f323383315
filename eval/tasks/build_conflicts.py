"""A facts file to a set of canonical records, ready to be run or edited by hand.

Knows files; knows no model: a mapping or a file says which facts one knows, or nothing does.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckcontrol.errors import EvalError

from ..items.readers import read
from ..items.states import FIVE, build_states, completed
from ..records import Rejected
from .facts import load_facts

__all__ = ["Built", "build_conflicts", "read_known"]


@dataclass(frozen=True)
class Built:
    """What `build_conflicts` wrote.

    Attributes:
        path: The set, one canonical record per line.
        facts: How many facts were read.
        records: State to number of records.
        rejected: Lines of the facts file that are not facts.
        sha256: That of the facts.
    """

    path: Path
    facts: int
    records: dict[str, int]
    rejected: tuple[Rejected, ...]
    sha256: str


def build_conflicts(
    facts_file: str | os.PathLike[str] | None,
    types: Collection[str] = FIVE,
    out: str | os.PathLike[str] = "set.jsonl",
    *,
    known: Mapping[str, bool | None] | str | os.PathLike[str] | None = None,
    seed: int = 0,
    cloze: bool = False,
    leave_out: Collection[str] = (),
) -> Built:
    """Write the records of a facts file: the same bytes for the same facts, types, knowledge and seed.

    Without `known`, every type is made of every fact and ``meta.known`` is null.

    Args:
        facts_file: Lines as `StateFact.from_dict` reads them; None takes the shipped facts.
        types: Which of `FIVE`.
        out: Where to write; overwritten.
        known: Fact id to whether the model knows it, or a file that says so; see `read_known`.
        seed: Draws false answers, irrelevant passages and the order of noisy ones.
        cloze: Ask with the clozes, as texts to complete.
        leave_out: Ids of facts that become no record, such as those of which a screening was uncertain.

    Raises:
        EvalError: No fact in the file, an unknown type, ids in `known` that no fact has, or nothing to write.
    """
    if isinstance(types, str):
        types = [types]
    facts, rejected, digest = load_facts(facts_file)
    if not facts:
        first = f"First: {rejected[0].detail}" if rejected else "Write one fact per line."
        raise EvalError(f"{str(facts_file)!r} holds no fact, and {len(rejected)} lines that are not facts.", first)
    probed = read_known(known) if isinstance(known, (str, os.PathLike)) else known
    strange = sorted(set(probed or {}) - {fact.id for fact in facts})
    if strange:
        raise EvalError(f"known names {strange[0]!r}, which is not a fact.", f"An id is like {facts[0].id!r}.")
    kept = [fact for fact in completed(facts, seed) if fact.id not in leave_out]
    records = build_states(kept, probed, types, seed, cloze=cloze)
    if not records:
        raise EvalError(f"no fact makes any of {', '.join(types)}.", "helpful needs unknown facts, the others known.")
    lines = [json.dumps(record.to_dict(), ensure_ascii=False, sort_keys=True) for record in records]
    path = Path(out)
    try:
        path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise EvalError(f"{str(out)!r} cannot be written: {error.strerror}.", "Write somewhere else.") from error
    states = Counter(record.state for record in records)
    return Built(path, len(facts), {state: states[state] for state in FIVE if states[state]}, tuple(rejected), digest)


def read_known(path: str | os.PathLike[str]) -> dict[str, bool]:
    """Return fact id -> known from a file: one JSON object, or lines ``{"id": ..., "known": true}``.

    Raises:
        EvalError: It cannot be read, or a value is neither true nor false.
    """
    rows = [row.data for row in read(path).rows]
    if len(rows) == 1 and isinstance(rows[0], Mapping) and set(rows[0]) != {"id", "known"}:
        said: list[tuple[Any, Any]] = list(rows[0].items())
    else:
        said = [(row.get("id"), row.get("known")) if isinstance(row, Mapping) else (row, None) for row in rows]
    for name, value in said:
        if not isinstance(name, str) or not isinstance(value, bool):
            raise EvalError(f"{str(path)!r}: {name!r} is said to be {value!r}.", "Known is true or false, by fact id.")
    return dict(said)
