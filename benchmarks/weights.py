"""The dial in the weights measured from facts to figures: splits, neutral text, and the table of several runs.

`split` writes the shipped facts as train, dev, report (by a hash of the subject, so that a country's capital,
currency and continent stand on one side) and unseen (a relation held out entirely); with `--counterfact` those of a
file of CounterFact instead, as sentences to complete, each with its own false answer. `perplexity` reads neutral
text, that of the panel for head masks, at every adapter of some dials. `table` puts the cells of runs of the same
records beside each other, unfinished ones as far as they are: one run per merging method, the first with everything
that they are compared with. `beside` asks the records of a run of the plain model while a direction is added to it or
heads are pruned, which no option of `eval run` does; what is known stays what the unchanged model knows. `gates`
reads a run with `off`, `dial@1`, `weights@0` and `weights@1` and asks what an adaptive form could win: each question
takes one of the two adapters by a signal that is there before its answer, with the threshold that is best on these
very answers.
What is between, asking, exporting, training and mixing, are the commands of docs/research/weights.md.

    python benchmarks/weights.py split facts/
    python benchmarks/weights.py perplexity dial-linear/ dial-ties/
    python benchmarks/weights.py beside runs/linear --tasks asked.jsonl --dtype bfloat16 \
        --direction direction.safetensors --mask context.json memory.json
    python benchmarks/weights.py gates runs/linear
    python benchmarks/weights.py table runs/linear runs/ties runs/linear-* --json benchmarks/results/weights.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from areas import hull, rates, spread

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.weight_rows import BASE, DIALS, rows_take
from ckcontrol.eval.figures.cells import Cell, collect
from ckcontrol.eval.figures.intervals import holm
from ckcontrol.eval.items.states import FIVE, StateFact, completed
from ckcontrol.eval.metrics import mentions
from ckcontrol.eval.run_files import items, read_card, samples
from ckcontrol.eval.running.arms import arms_for
from ckcontrol.eval.running.engine import Local
from ckcontrol.eval.running.runner import run
from ckcontrol.eval.tasks.facts import shipped
from ckcontrol.eval.tasks.load import load_task
from ckcontrol.heads.choosing.panel import NEUTRAL, perplexity
from ckcontrol.retrieval.embed import Embedder

SHARES = (("train", 60), ("dev", 75), ("report", 100))  # per cent of the subjects, up to
METRICS = ("parr", "conr", "accuracy")
ENDS = ["off", "dial@1"]  # the plain model and the closed book
LABEL = "beside.txt"  # in the folder of a run that `beside` made: what its answers of `off` are called


def hashed(text: str) -> int:
    """Return a number that depends on a text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def counterfact(path: Path) -> list[dict[str, Any]]:
    """Return the edits of a file of CounterFact as facts; a relation is a prompt without its subject.

    Those whose prompt names the answer are left out.
    """
    facts = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        cloze, subject = row["prompt"].strip(), row["subject"]
        fact = {"relation": cloze.replace(subject, "_"), "subject": subject, "cloze": cloze}
        fact |= {"question": f"Complete the sentence: {cloze} ...", "answer": row["target_true"].strip()}
        if not mentions(cloze, [fact["answer"]]):
            facts.append(fact | {"false_answer": [row["target_new"].strip()]})
    return facts


def split(out: Path, unseen: str, most: int, share: int, edits: str | None) -> None:
    """Write the files of facts, and ``asked.jsonl``: some of report and of unseen."""
    files: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in SHARES} | {"unseen": []}
    facts = counterfact(Path(edits)) if edits else [dict(row.data) for row in shipped()[0]]
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


def beside(folder: Path, tasks: str, model_name: str, dtype: str, direction: str | None, masks: list[str]) -> None:
    """Write, beside a run's folder, one run of `off` per end of a direction and per head mask."""
    model, tokenizer = ck.load(model_name, dtype=dtype)
    ways = [(Path(mask).stem, partial(ck.heads.pruned, model, ck.heads.HeadMask.load(mask))) for mask in masks]
    if direction:
        found = ck.heads.Direction.load(direction)
        sides = ((0.0, found.context), (1.0, found.memory))
        ways += [(f"direction@{at:g}", partial(ck.heads.added, model, found, at)) for at, given in sides if given]
    card = read_card(folder)
    options = GenerateOptions(max_new_tokens=card["options"]["max_new_tokens"])
    for label, changed in ways:
        out = folder.with_name(f"{folder.name}-{label}")
        out.mkdir(exist_ok=True)
        shutil.copy(folder / "probe.jsonl", out)
        (out / LABEL).write_text(label)
        engine = Local(model, tokenizer, model_name, options=options)
        with changed():
            run(engine, [load_task(tasks)], arms_for(["off"]), out, batch_size=card["batch_size"])
        print(label, flush=True)


def gates(folder: Path) -> None:
    """Print the mean of the five states for each adapter alone and for each signal that picks one of the two."""
    cells = {(state, arm): cell for (_, state, arm), cell in collect(items(folder), samples(folder)).items()}
    said = {(line["arm"], line["id"]): line["tokens"] for line in samples(folder) if "arm" in line}
    asked = {item["id"]: item for item in items(folder)}
    embedder, names = Embedder("demo"), sorted(asked)
    ends = [embedder.encode([asked[name][field] for name in names]) for field in ("question", "context")]
    scores = dict(zip(names, (ends[0] * ends[1]).sum(1).tolist(), strict=True))
    rows = []
    for state in FIVE:
        metric = "parr" if state == "conflict" else "accuracy"
        for name in cells[state, "off"].rows:
            right = [cells[state, f"weights@{end}"].rows[name][1][metric][0] for end in (0, 1)]
            plain, memory = said["off", name], said["dial@1", name]
            signals = {
                "what memory knows": float(asked[name]["meta"]["known"]),
                "first step: minus confidence gain": -plain["gain"][0],
                "retrieval: minus score": -scores[name],
                "closed book: minus surprise": -math.hypot(*memory["logp_par"]),
            }
            rows.append((state, right, signals))

    def mean(signal: str, threshold: float) -> float:
        states = [[right[signals[signal] > threshold] for of, right, signals in rows if of == state] for state in FIVE]
        return 100 * sum(sum(values) / len(values) for values in states) / len(states)

    for signal in rows[0][2]:
        values = sorted({signals[signal] for _, _, signals in rows})
        best = max(mean(signal, at) for at in (-math.inf, *values))
        ends = mean(signal, math.inf), mean(signal, -math.inf)
        told = f"context's adapter {ends[0]:.1f}, memory's {ends[1]:.1f}, picked by {signal} {best:.1f}"
        print(told + (f", at 0 {mean(signal, 0.0):.1f}" if signal.startswith("first") else ""))


def gathered(folders: list[str]) -> tuple[dict[str, dict[tuple[str, str], Cell]], list[str]]:
    """Return the cells of runs of the same records, arm -> task and state -> cell, and the dials' merging methods.

    A dial's arms are named by its merging method; of an arm that several runs have, the first run's answers count.
    """
    found: dict[str, dict[tuple[str, str], Cell]] = {}
    methods = []
    for folder in map(Path, folders):
        card = read_card(folder)
        method = (card.get("dial") or {}).get("method", "")
        label = folder / LABEL
        methods += [method] if method else []
        here: dict[str, dict[tuple[str, str], Cell]] = {}
        for (task, state, arm), cell in collect(items(folder), samples(folder)).items():
            arm = label.read_text() if label.exists() else arm.replace("weights@", f"{method}@")
            here.setdefault(arm, {})[task, state] = cell
        found = here | found
    return found, methods


def pooled(cells: dict[tuple[str, str], Cell], tasks: set[str], state: str) -> Cell:
    """Return the samples of some tasks in one state as one cell."""
    out = Cell()
    for (task, of), cell in cells.items():
        if of == state and task in tasks:
            out.rows |= {f"{task} {i}": row for i, row in cell.rows.items()}
    return out


def table(folders: list[str]) -> dict[str, Any]:
    """Return, by set of tasks, answers and areas, in per cent.

    Answers: per arm and state n, each metric as value, low, high, and the same less off's and less dial's at the same
    alpha, paired. Areas: under ParR against helpful, of each family's settings and the two that anyone has, the
    plain model and the closed book (`benchmarks/areas.py`, hull), and less dial's; p is corrected (Holm) over
    the merging methods.
    """
    arms, methods = gathered(folders)
    names = sorted({task for cells in arms.values() for task, _ in cells})
    out: dict[str, Any] = {}
    for tasks in [{name} for name in names] + ([set(names)] if len(names) > 1 else []):
        rows = []
        for state in FIVE:
            cells = {arm: pooled(found, tasks, state) for arm, found in arms.items()}
            for arm, cell in cells.items():
                if not cell.rows:
                    continue
                row: dict[str, Any] = {"arm": arm, "state": state, "n": len(cell.rows)}
                dial = f"dial@{arm.partition('@')[2]}" if arm.partition("@")[0] in methods else ""
                for name in METRICS if state == "conflict" else METRICS[2:]:
                    if cell.has(name):
                        told = cell.estimate(name)
                        row[name] = [round(100 * x, 1) for x in (told.value, told.low, told.high)]
                        for other in {"off", dial} & {*cells} - {arm}:
                            if less := cell.minus(cells[other], name):
                                row[f"{name} less {other}"] = [
                                    round(100 * x, 1) for x in (less.value, less.low, less.high)
                                ]
                rows.append(row)
                print(json.dumps(row), flush=True)
        families = {name: [arm for arm in arms if arm.partition("@")[0] == name] for name in ("dial", "ck-plug")}
        ends = [arm for arm in arms if arm in {f"{methods[0]}@0", f"{methods[0]}@1"}] if methods else []
        for name in methods:
            families[name] = [*ends, *(arm for arm in arms if arm.partition("@")[0] == name and arm not in ends)]
        families = {name: [*ENDS, *members] for name, members in families.items() if members} | {"no method": ENDS}
        told = {"answers": rows, "means": means(arms, methods, tasks), "areas": areas(arms, families, methods, tasks)}
        out[" and ".join(sorted(tasks))] = told
    return out


def means(arms: Any, methods: list[str], tasks: set[str]) -> list[dict[str, Any]]:
    """Return per arm the mean of the five states, a conflict by memory's answer, and its paired differences.

    They are from off, from dial and, for a merging method, from the first one, each at the same alpha.
    """
    names = [name for name in arms if all(pooled(arms[name], tasks, state).rows for state in FIVE)]
    blocks = [
        ([pooled(arms[name], tasks, state) for name in names], "parr" if state == "conflict" else "accuracy")
        for state in FIVE
    ]
    if not names or not all(cell.has(metric) for cells, metric in blocks for cell in cells):
        return []
    found, t, groups = rates(*blocks)
    values = 100 * sum(found) / len(FIVE)
    rows = []
    for at, name in enumerate(names):
        row: dict[str, Any] = {"arm": name, "mean": spread(values[:, at], t, groups)}
        family, _, alpha = name.partition("@")
        others = ["off", f"dial@{alpha}", *(f"{methods[0]}@{alpha}" for _ in methods[:1] if family in methods)]
        for other in others:
            if other in names and other != name:
                row[f"less {other}"] = spread(values[:, at] - values[:, names.index(other)], t, groups)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def areas(arms: Any, families: dict[str, list[str]], methods: list[str], tasks: set[str]) -> list[dict[str, Any]]:
    """Return one row per family; see `table`."""
    needed = sorted({arm for members in families.values() for arm in members})
    both = [[pooled(arms.get(arm, {}), tasks, state) for arm in needed] for state in ("conflict", "helpful")]
    if not all(cell.rows for cells in both for cell in cells):
        return []
    (parr, helpful), t, groups = rates((both[0], "parr"), (both[1], "accuracy"))
    found = {}
    for name, members in families.items():
        at = [needed.index(arm) for arm in members]
        found[name] = hull(parr[:, at], helpful[:, at])
    rows = []
    for name, values in found.items():
        row: dict[str, Any] = {"family": name, "area": round(100 * float(values[0]), 1)}
        if name != "dial":
            less = spread(values - found["dial"], t, groups)
            row["less dial"] = [
                None if less[k] is None else round(100 * less[k], 1) for k in ("difference", "low", "high")
            ]
            gaps = (values - found["dial"])[1:]
            row["p"] = min(1.0, 2 * (1 + min((gaps <= 0).sum(), (gaps >= 0).sum())) / (1 + len(gaps)))
        rows.append(row)
    merged = [row for row in rows if row["family"] in methods]
    for row, p in zip(merged, holm([row["p"] for row in merged]), strict=True):
        row["p_holm"] = round(p, 4)
    for row in rows:
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("split", "perplexity", "beside", "gates", "table"))
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--unseen", default="us_state_capital", help="the relation that is held out")
    parser.add_argument("--asked", type=int, default=40, help="facts of asked.jsonl")
    parser.add_argument("--of-unseen", type=int, default=14, help="how many of them are of the relation held out")
    parser.add_argument("--counterfact", metavar="FILE", help="split: facts of this file instead of the shipped ones")
    parser.add_argument("--tasks", default="", help="beside: the facts of the run")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--direction")
    parser.add_argument("--mask", nargs="*", default=[])
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.what == "beside":
        given = f"facts={args.tasks}", args.model, args.dtype, args.direction, args.mask
        beside(Path(args.folders[0]), *given)
        return
    if args.what == "gates":
        gates(Path(args.folders[0]))
        return
    if args.what == "split":
        split(Path(args.folders[0]), args.unseen, args.asked, args.of_unseen, args.counterfact)
        return
    made = neutral(args.model, args.folders) if args.what == "perplexity" else table(args.folders)
    if args.json:
        Path(args.json).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
