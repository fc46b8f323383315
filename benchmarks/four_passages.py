"""Questions with four passages: one right, one false, one that was right once, and one beside the point.

Nobody's memory knows the answers: subjects and names are invented, from the lists below. Right is what holds now, and
its passage says since when; the old passage is dated too, and says that it is past; the false one has no date; the
fourth names the subject and answers another question. Which stands where follows from a hash of the question.

    python benchmarks/four_passages.py [--half develop|report] [--limit N]     prints records, one JSON object per line
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from itertools import product

from ckcontrol.eval.items.states import rank
from ckcontrol.eval.records import Record

PLACES = "Tellin Orvesta Kalmora Brunwick Sandrup Veltheim Marrowby Ostrava Linthal Grenholt".split()
NAMES = (
    "Ines Novak,Carl Brandt,Mara Ortega,Jonas Weidel,Petra Lund,Tomas Keller,Alma Ruiz,Henrik Dahl,Nora Fischer,"
    "Pavel Moravec,Lucia Romero,Erik Sandberg,Greta Hoffman,Oskar Lindqvist,Rosa Ferrari,Viktor Halasz"
).split(",")
STREETS = "Mill Lane,Harbour Street,Castle Road,Station Square,Orchard Way,Abbey Hill,Market Row,River Walk".split(",")
# What is asked of whom; how it is said now, falsely (no date) and of the past; what is beside the point.
KINDS = {
    "director": (
        "Who is the director of the {place} museum?",
        "Since {now}, {right} has been the director of the {place} museum.",
        "{false} is the director of the {place} museum, a visitor wrote.",
        "From {past} to {end}, {old} was the director of the {place} museum.",
        "The {place} museum opened to the public in 1954; {other} drew the plans of the house.",
        NAMES,
    ),
    "address": (
        "In which street is the {place} town library?",
        "The {place} town library moved in {now}; it is in {right} now.",
        "The {place} town library is in {false}, a guidebook says.",
        "Until {end}, the {place} town library was in {old}.",
        "The {place} town library lends 40,000 books, and its readers park in {other}.",
        STREETS,
    ),
    "mayor": (
        "Who is the mayor of {place}?",
        "{right} was elected mayor of {place} in {now} and is in office today.",
        "The mayor of {place} is called {false}, according to a letter to the editor.",
        "In {past}, {old} was the mayor of {place}; the term ended in {end}.",
        "{place} lies on a river. {other} painted its bridge in 1911.",
        NAMES,
    ),
    "prize": (
        "Who holds the record in the {place} marathon?",
        "In {now}, {right} set the record that still stands in the {place} marathon.",
        "{false} holds the record in the {place} marathon, some say.",
        "The record that {old} set in the {place} marathon in {past} was broken in {end}.",
        "The {place} marathon starts at the town hall; {other} founded it in 1978.",
        NAMES,
    ),
}


def four_passages() -> Iterator[Record]:
    """Yield every record, `ctx_answers` false or outdated, `par_answers` right; the types are in ``meta``."""
    for number, (place, kind) in enumerate(product(PLACES, KINDS)):
        question, now, false, past, beside, pool = KINDS[kind]
        names = sorted(pool, key=lambda name: rank(0, place, kind, name))[:4]
        seed = int(rank(0, place, kind), 16)
        years = {"now": 2018 + seed % 6, "past": 1996 + seed % 9, "end": 2011 + seed % 5}
        words = dict(zip(("right", "false", "old", "other"), names, strict=True)) | years | {"place": place}
        passages = {"right": now, "false": false, "old": past, "beside": beside}
        order = sorted(passages, key=lambda role: rank(0, place, kind, role))
        yield Record(
            f"four/{number}",
            question.format(**words),
            tuple(passages[role].format(**words) for role in order),
            (names[1], names[2], names[3]),
            (names[0],),
            "noisy",
            meta={"types": order, "kind": kind},
        )


def half(name: str) -> str:
    """Return which half an id belongs to: the rule was chosen on one, and the other is reported."""
    return "report" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 else "develop"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=["develop", "report"])
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    kept = [record for record in four_passages() if given.half in (None, half(record.id))]
    for record in kept[: given.limit]:
        print(json.dumps(record.to_dict(), ensure_ascii=False))


if __name__ == "__main__":
    main()
