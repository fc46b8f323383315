"""Facts: those we ship, or a facts file of the user's own. Whether a model knows them has not been probed yet.

The runner probes `Task.facts` closed-book and makes the five states of them with `build_states`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib.resources import files

from ckcontrol.errors import EvalError

from ..items.readers import Row, parse, read, sha256
from ..items.shipped_facts import Capital, load_capitals
from ..items.states import StateFact
from ..records import Rejected, by_row
from . import tristate

__all__ = ["LICENCE", "SOURCE", "load_facts", "read_facts", "shipped"]

SOURCE = "shipped with ckcontrol: capitals.jsonl and facts.jsonl, adapted as NOTICE states"
LICENCE = "GeoNames: CC BY 4.0; us: BSD-3-Clause; periodictable: public domain"


def load_facts(
    place: str | os.PathLike[str] | None, *, file: str = "", revision: str = ""
) -> tuple[list[StateFact], list[Rejected], str]:
    """Return the facts of a place, the rows that are not facts, and the SHA-256 of what was read.

    Args:
        place: As in `readers.read`; None: the facts we ship.
        file: As in `readers.read`.
        revision: As in `readers.read`.
    """
    if place is None:
        rows, digest = shipped()
        return *read_facts(rows), digest
    data = read(place, file=file, revision=revision)
    facts, rejected = read_facts(data.rows)
    return facts, by_row(data.rejected, rejected), data.sha256


def shipped() -> tuple[list[Row], str]:
    """Return the rows of the shipped facts, capitals first, and the SHA-256 over the sums of both files."""
    folder = files("ckcontrol.eval") / "data"
    rows = [Row("capitals.jsonl", number, _capital(fact)) for number, fact in enumerate(load_capitals())]
    sums = [sha256((folder / "capitals.jsonl").read_bytes())]
    more = folder / "facts.jsonl"
    if more.is_file():
        rows += [row for row in parse(more.read_bytes(), "facts.jsonl") if isinstance(row, Row)]
        sums.append(sha256(more.read_bytes()))
    names = ("capitals.jsonl", "facts.jsonl")
    listing = "".join(f"{digest}  {name}\n" for name, digest in zip(names, sums, strict=False))
    return rows, sha256(listing.encode())


def read_facts(rows: Iterable[Row]) -> tuple[list[StateFact], list[Rejected]]:
    """Return the facts of some rows, and the rows that are not facts or repeat an id."""
    found: dict[str, StateFact] = {}
    rejected = []
    for row in rows:
        try:
            fact = StateFact.from_dict(tristate.fact(row.data))
        except EvalError as error:
            rejected.append(Rejected(f"{row.file}:{row.number}", "malformed", str(error)))
            continue
        if fact.id in found:
            rejected.append(Rejected(fact.id, "id given twice", f"{row.file}:{row.number}"))
        else:
            found[fact.id] = fact
    return list(found.values()), rejected


def _capital(fact: Capital) -> dict[str, object]:
    found = re.search(rf"(?<!\w){re.escape(fact.answer)}(?!\w)", fact.passage_true)
    start, end = found.span() if found else (0, 0)
    rest = fact.question.removeprefix("What is the capital of ").rstrip("?")
    return {
        "relation": "capital",
        "subject": fact.subject,
        "question": fact.question,
        "answer": fact.answer,
        "aliases": list(fact.aliases),
        "false_answer": fact.false_answer,
        "cloze": f"The capital of {rest} is",
        "context_template": f"{fact.passage_true[:start]}{{answer}}{fact.passage_true[end:]}",
    }
