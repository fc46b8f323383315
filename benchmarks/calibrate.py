"""Does ``ckcontrol calibrate`` find the setting that further questions want? Capitals, half of their passages false.

    python benchmarks/calibrate.py files FOLDER     # asked.jsonl (40), held.jsonl (97), true.jsonl (true passages)
    ckcontrol calibrate - FOLDER/asked.jsonl --json > FOLDER/asked.json     # likewise held and true
    python benchmarks/calibrate.py splits FOLDER    # the 137 questions, split anew 200 times: what would be proposed?

The last one needs no model: every question was answered at every setting. It proposes as calibrate does from some
questions, and compares with what is best on the others.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np

from ckcontrol.control import Control
from ckcontrol.eval.calibrate import OFF, _chosen
from ckcontrol.eval.figures.intervals import difference
from ckcontrol.eval.items.shipped_facts import load_capitals

SIZES = (20, 40, 60, 80)
SPLITS = 200


def write_files(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    facts = load_capitals()
    random.Random(0).shuffle(facts)
    for name, some, half in (("asked", facts[:40], 2), ("held", facts[40:137], 2), ("true", facts[:40], 0)):
        rows = []
        for place, fact in enumerate(some):
            passage = fact.passage_false if half and place % half == 0 else fact.passage_true
            row = {"question": fact.question, "answers": fact.answers, "wrong": fact.false_answer}
            rows.append(json.dumps({**row, "passages": [passage]}, ensure_ascii=False))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def split(folder: Path) -> None:
    told = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("asked", "held")]
    names = [setting["name"] for setting in told[0]["settings"]]
    controls = [
        Control("dial", adaptive=True) if name == "adaptive" else Control("dial", float(name.removeprefix("alpha ")))
        for name in names
    ]
    right = np.array([[name in q["right"] for name in names] for one in told for q in one["questions"]], float)
    off, counts = names.index(OFF), right.sum(axis=0)
    print(f"{len(right)} questions, right: " + ", ".join(f"{n} {int(c)}" for n, c in zip(names, counts, strict=True)))
    print("questions | left off | proposed, below best by > its interval | worse than off | points below the best")
    for size in SIZES:
        rng, left, below, worse, gaps = random.Random(1), 0, 0, 0, 0.0
        for _ in range(SPLITS):
            order = rng.sample(range(len(right)), len(right))
            asked, held = right[order[:size]], right[order[size:]] > 0
            place, best = _chosen(asked, controls)[1], int(held.sum(axis=0).argmax())
            gap = difference(list(held[:, place]), list(held[:, best]), [str(i) for i in range(len(held))])
            left += place == off
            below += gap.high < 0 and place != off
            worse += held[:, place].sum() < held[:, off].sum()
            gaps += gap.value
        print(f"{size:9} | {left:8} | {below:38} | {worse:14} | {-100 * gaps / SPLITS:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["files", "splits"])
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    write_files(given.folder) if given.what == "files" else split(given.folder)
