"""The dial in the weights measured from facts to figures: splits, neutral text, and the table of several runs.

`split` writes the shipped facts as train, dev, report (by a hash of the subject, so that a country's capital, currency
and continent stand on one side) and unseen (a relation held out entirely). `perplexity` reads neutral text, that of the
panel for head masks, at every adapter of some dials. `table` puts the cells of runs beside each other, unfinished ones
as far as they are, with the paired differences to `off`. What is between, asking, exporting, training and mixing, are
the commands of docs/research/weights.md.

    python benchmarks/weights.py split facts/
    python benchmarks/weights.py perplexity dial-linear/ dial-ties/
    python benchmarks/weights.py table runs/linear runs/ties --json benchmarks/results/weights.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

import ckcontrol as ck
from ckcontrol.decoding.weight_rows import BASE, DIALS, rows_take
from ckcontrol.eval.figures.aggregate import aggregate
from ckcontrol.eval.figures.cells import collect
from ckcontrol.eval.figures.compare import compare
from ckcontrol.eval.items.states import StateFact, completed
from ckcontrol.eval.run_files import items, read_card, samples
from ckcontrol.eval.tasks.facts import shipped
from ckcontrol.heads.choosing.panel import NEUTRAL, perplexity

SHARES = (("train", 60), ("dev", 75), ("report", 100))  # per cent of the subjects, up to
METRICS = ("parr", "conr", "accuracy")


def hashed(text: str) -> int:
    """Return a number that depends on a text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def split(out: Path, unseen: str, most: int, share: int) -> None:
    """Write the files of facts, and ``asked.jsonl``: some of report and of unseen."""
    files: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in SHARES} | {"unseen": []}
    facts = [dict(row.data) for row in shipped()[0]]
    for fact, made in zip(facts, completed([StateFact.from_dict(fact) for fact in facts]), strict=True):
        fact["false_answer"] = list(made.false_answers)  # of all facts: in one file a relation may stand alone
        at = hashed(f"0:{fact['subject']}") % 100
        name = "unseen" if fact["relation"] == unseen else next(name for name, end in SHARES if at < end)
        files[name].append(fact)
    for name, count in (("report", most - share), ("unseen", share)):
        rows = sorted(files[name], key=lambda fact: hashed(f"1:{fact['relation']}:{fact['subject']}"))
        files.setdefault("asked", []).extend(rows[:count])
    out.mkdir(parents=True, exist_ok=True)
    for name, facts in files.items():
        lines = "".join(json.dumps(fact, ensure_ascii=False) + "\n" for fact in facts)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}: {len(facts)} facts")


@torch.no_grad()
def neutral(model_name: str, dials: list[str]) -> dict[str, dict[str, float]]:
    """Return, by dial and alpha, the perplexity of neutral text; 0.5 is the model itself."""
    model, tokenizer = ck.load(model_name)
    texts = [tokenizer(text).input_ids for text in NEUTRAL]
    found: dict[str, dict[str, float]] = {}
    for folder in dials:
        ck.weights.load(model, folder)
        rows = {}
        for alpha, name in DIALS[model].items():
            with rows_take(None if name == BASE else (name,)):
                rows[f"{alpha:g}"] = round(perplexity(model, texts), 2)
        found[Path(folder).name] = rows
        ck.weights.unload(model)
        print(Path(folder).name, rows, flush=True)
    return found


def table(folders: list[str], without: str | None) -> list[dict[str, Any]]:
    """Return one row per run, arm and state: n, each metric as value, low, high, and the same less off's, paired."""
    rows = []
    for folder in map(Path, folders):
        asked = [item for item in items(folder) if item["meta"].get("relation") != without]
        card = read_card(folder)
        cells = aggregate(card, asked, samples(folder))["cells"]
        found = collect(asked, samples(folder))
        arms = [(arm["name"], "off") for arm in card["arms"]]
        longest = card["options"]["max_new_tokens"]
        less = {
            (row["state"], row["arm_a"], row["metric"]): [row[key] for key in ("difference", "low", "high")]
            for row in compare(found, found, arms=arms, metrics=METRICS, longest=longest)
        }
        for cell in cells:
            row = {"run": folder.name, "arm": cell["arm"], "state": cell["state"], "n": cell["n"]}
            for name in METRICS:
                if had := cell["metrics"].get(name):
                    row[name] = [round(100 * had[key], 1) for key in ("value", "low", "high")]
                    if change := less.get((cell["state"], cell["arm"], name)):
                        row[f"{name}_less_off"] = [round(100 * x, 1) for x in change]
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("split", "perplexity", "table"))
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--unseen", default="us_state_capital", help="the relation that is held out")
    parser.add_argument("--asked", type=int, default=40, help="facts of asked.jsonl")
    parser.add_argument("--of-unseen", type=int, default=14, help="how many of them are of the relation held out")
    parser.add_argument("--without", help="table: a relation to leave out")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.what == "split":
        split(Path(args.folders[0]), args.unseen, args.asked, args.of_unseen)
        return
    made = neutral(args.model, args.folders) if args.what == "perplexity" else table(args.folders, args.without)
    if args.json:
        Path(args.json).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
