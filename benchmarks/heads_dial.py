"""Pruned heads and the dial together: does pruning add to decoding, or decoding to pruning?

Known country capitals with a false passage, as in capitals.py, without the subjects by which heads were ranked. Each
setting of ck-plug runs on the whole model and with the k best memory or context heads pruned in both streams, or with
mask files. Printed: ParR and ConR with 95 % Wilson intervals, the change against the same setting unpruned, in answers
won and lost, and the share of answers that stay right with a true passage.

    python benchmarks/heads_dial.py heads.json --k 5 --json out.json
    python benchmarks/heads_dial.py heads.json --mask context.json memory.json
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

from capitals import ask

import ckcontrol as ck
from ckcontrol.eval.items.shipped_facts import load_capitals
from ckcontrol.eval.metrics import mentions, wilson
from ckcontrol.heads.mask import HeadMask

SETTINGS = {
    "off": ck.Control("off"),
    "ck-plug a=0": ck.Control("ck-plug", 0.0),
    "ck-plug a=0.25": ck.Control("ck-plug", 0.25),
    "ck-plug a=0.75": ck.Control("ck-plug", 0.75),
    "ck-plug a=1": ck.Control("ck-plug", 1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--mask", nargs="*", metavar="FILE", help="mask files, instead of --k")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--json")
    args = parser.parse_args()
    model, tokenizer = ck.load(args.model)
    scores = ck.heads.HeadScores.load(args.heads)
    ranked = {record.subject for record in scores.records if record.split == "find"}
    facts = [fact for fact in load_capitals() if fact.subject not in ranked][: args.limit]
    options: dict[str, Any] = {"batch": 16, "max_new_tokens": 16}
    closed = ask(model, tokenizer, facts, [[]] * len(facts), trace=False, **options)
    known = [fact for fact, answer in zip(facts, closed, strict=True) if mentions(answer.text, fact.answers)]
    print(f"{len(known)} of {len(facts)} known; k={args.k}; greedy, 16 tokens")
    masks: dict[str, HeadMask | None] = {"none": None}
    for which in args.mask or (f"memory:{args.k}", f"context:{args.k}"):
        masks[Path(which).stem] = HeadMask.load(which) if args.mask else ck.heads.mask_for(scores, which)
    rows = []
    for label in args.settings:
        control = SETTINGS[label]
        base: list[tuple[bool, bool]] = []
        for which, mask in masks.items():
            with nullcontext() if mask is None else ck.heads.pruned(model, mask):
                answers = ask(
                    model, tokenizer, known, [[f.passage_false] for f in known], control=control, trace=False, **options
                )
                true = ask(
                    model, tokenizer, known, [[f.passage_true] for f in known], control=control, trace=False, **options
                )
            hits = [
                (mentions(a.text, f.answers), mentions(a.text, f.false_answer))
                for f, a in zip(known, answers, strict=True)
            ]
            base = base or hits
            row: dict[str, Any] = {"label": label, "pruned": which, "n": len(hits)}
            for place, name in enumerate(("parr", "conr")):
                count = sum(hit[place] for hit in hits)
                row[name], row[f"{name}_ci"] = count / len(hits), wilson(count, len(hits))
                row[f"{name}_won"] = sum(h[place] and not b[place] for h, b in zip(hits, base, strict=True))
                row[f"{name}_lost"] = sum(b[place] and not h[place] for h, b in zip(hits, base, strict=True))
            row["neither"] = sum(not any(hit) for hit in hits) / len(hits)
            row["agree"] = sum(mentions(a.text, f.answers) for f, a in zip(known, true, strict=True)) / len(hits)
            rows.append(row)
            shares = "  ".join(
                f"{name} {row[name]:.2f} [{row[f'{name}_ci'][0]:.2f}, {row[f'{name}_ci'][1]:.2f}] "
                f"+{row[f'{name}_won']} -{row[f'{name}_lost']}"
                for name in ("parr", "conr")
            )
            print(f"{label:16}{which:12}{shares}  neither {row['neither']:.2f}  agree {row['agree']:.2f}", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"date": str(date.today()), "k": args.k, "rows": rows}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
