"""The dial on whole answers against every other method: the runs, then figures and tables of docs/research/dial.md.

The method and its equation: ckcontrol/policies/dial.py. `dial@0.5` is the plain model, `dial@1` the closed book.

    python benchmarks/dial.py run --data FOLDER --model demo --run runs/dial-smol [--facts FILE]
    python benchmarks/dial.py report --run runs/dial-smol --run runs/dial-gemma --out runs/dial-report

FOLDER holds counterfact/, nq_swap/ and ramdocs/ (docs/eval.md); nothing of their text is written. Facts, the shipped
ones or `--facts`, count where the SHA-256 of their id is odd: the method was developed on the others, which neither
part uses. An interrupted run goes on. The report reads finished runs, in minutes on one core (dial_figures.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dial_figures import (
    CONFLICTS,
    FAMILIES,
    LIMITS,
    METHODS,
    RIVALS,
    Answers,
    Line,
    adaptive,
    context_end,
    fluency,
    frontier,
    in_report_half,
    monotone,
    table,
)

from ckcontrol.errors import CKError
from ckcontrol.eval.items.readers import read
from ckcontrol.eval.items.states import FIVE
from ckcontrol.eval.report.grid import Grid, GridCell, markdown_grid, plain
from ckcontrol.eval.run_files import write_bytes
from ckcontrol.eval.tasks.facts import read_facts, shipped

CARD = ("model", "model_fingerprint", "dtype", "device", "versions", "options", "style", "seed", "started", "tasks")
SIGNS = {"better": 1, "worse": -1, "even": 0}

# --- the run --------------------------------------------------------------------------------------------------------


def write_facts(source: str | None, path: Path) -> int:
    """Write the facts of the report half of a facts file, or of the shipped ones; return how many."""
    rows = list(read(source).rows) if source else shipped()[0]
    kept = []
    for row in rows:
        facts, _ = read_facts([row])
        if facts and in_report_half(facts[0].id):
            kept.append(json.dumps(row.data, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, "".join(kept).encode())
    return len(kept)


def run(args: argparse.Namespace) -> None:
    """Make the run, in shards side by side."""
    facts = args.run / "facts.jsonl"
    print(f"{write_facts(args.facts, facts)} facts of the report half", file=sys.stderr)
    limits = {task: max(1, round(limit * args.limit_scale)) for task, limit in LIMITS.items()}
    places = {task: facts if task == "facts" else Path(args.data) / task for task in LIMITS}
    tasks = ",".join(f"{task}={places[task]}?limit={limits[task]}" for task in LIMITS)
    if args.cloze:
        tasks = tasks.replace(f"{facts}?", f"{facts}?cloze=1&")
    command = ["-m", "ckcontrol", "eval", "run", "--model", args.model, "--dtype", args.dtype, "--tasks", tasks]
    command += [
        "--methods",
        ",".join(m for m in METHODS if m not in args.without),
        "--max-new-tokens",
        "20",
        "--out",
        str(args.run),
    ]
    command += ["--device", args.device] if args.device else []
    threads = str(max(1, (os.cpu_count() or 1) // args.processes))
    started = [
        subprocess.Popen(
            [sys.executable, *command, *(["--shard", f"{i + 1}/{args.processes}"] if args.processes > 1 else [])],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"},
        )
        for i in range(args.processes)
    ]
    if any([process.wait() for process in started]):
        sys.exit("a shard failed; the same command goes on")


# --- the report ---------------------------------------------------------------------------------------------------


def study(folder: Path) -> dict[str, Any]:
    """Return every figure of one run."""
    answers = Answers(folder)
    gains, costs = context_end(answers)
    return {
        "run": {key: answers.card.get(key) for key in CARD},
        "missing": answers.missing,
        "left_out": answers.left_out,
        "same": answers.same(),
        "table": table(answers),
        "frontier": frontier(answers),
        "context end": gains,
        "context end, cost": costs,
        "monotone": monotone(answers),
        "adaptive": adaptive(answers),
        "fluency": fluency(answers),
    }


def comparisons(found: Mapping[str, Any]) -> list[Line]:
    """Return every comparison of the dial with something else, with its section."""
    areas = [told for line in found["frontier"] for key, told in line.items() if ": dial" in key]
    ours = [row for row in found["context end, cost"] if row["arm"].startswith("dial")]
    named = {"memory side": areas, "context end": found["context end"], "cost of the context end": ours}
    named["adaptive"] = found["adaptive"]
    return [{"section": section, **row} for section, rows in named.items() for row in rows]


def percent(found: Line | None) -> GridCell:
    """Return a share with its interval."""
    if found is None or found["value"] is None:
        return GridCell("–")
    return GridCell(f"{100 * found['value']:.1f}", _span(found, 100))


def points(row: Line | None, scale: float = 100, digits: int = 1) -> GridCell:
    """Return a difference with its interval, marked where it is clear."""
    if row is None:
        return GridCell("–")
    text = f"{scale * row['difference']:+.{digits}f}"
    return GridCell(text, _span(row, scale, "+", digits), SIGNS[row.get("verdict", "even")])


def _span(row: Line, scale: float, sign: str = "", digits: int = 1) -> str:
    if row["low"] is None or row["high"] is None:
        return ""
    return f"[{scale * row['low']:{sign}.{digits}f}, {scale * row['high']:{sign}.{digits}f}]"


def markdown(found: Mapping[str, Any]) -> str:
    """Return the tables of one run."""
    run = found["run"]
    sizes = ", ".join(f"{name} {task['records']}" for name, task in (run["tasks"] or {}).items())
    blocks = [f"## {plain(str(run['model']))}"]
    blocks.append(plain(f"{run['dtype']}, seed {run['seed']}, {run['started']}; records or facts: {sizes}."))
    if found["left_out"]:
        blocks.append(f"{found['left_out']} records of development facts are left out.")
    if found["missing"]:
        blocks.append(f"Not in this run, so in no table: {plain(', '.join(found['missing']))}.")
    for arm, told in found["same"].items():
        other = "off" if arm == "dial@0.5" else "closed-book"
        blocks.append(plain(f"{arm}: {told['differ']} of {told['n']} answers differ from {other}."))
    blocks += [*_summary(comparisons(found)), *_table(found["table"]), *_frontier(found["frontier"])]
    blocks += [*_context_end(found), *_monotone(found["monotone"]), *_adaptive(found["adaptive"])]
    return "\n\n".join([*blocks, *_fluency(found["fluency"])])


def _summary(rows: Sequence[Line]) -> list[str]:
    counts = Counter((row["section"], row["verdict"]) for row in rows)
    grid = Grid(["dial against the others", "worse", "not told apart", "better"])
    for section in dict.fromkeys(row["section"] for row in rows):
        grid.rows.append([GridCell(section), *(GridCell(str(counts[section, v])) for v in ("worse", "even", "better"))])
    blocks = ["### Where it loses and where it wins", markdown_grid(grid)]
    for verdict, title in (("worse", "Worse, all of them."), ("better", "Better, all of them.")):
        listed = Grid(["section", "data", "figure", "arm", "against", "difference"], caption=title)
        for row in (row for row in rows if row["verdict"] == verdict):
            names = (row["section"], f"{row['task']}, {row['state']}", row["metric"], row["arm"], row["against"])
            listed.rows.append([*map(GridCell, names), points(row)])
        blocks.append(markdown_grid(listed) if listed.rows else f"{title} None.")
    return blocks


def _table(rows: Sequence[Line]) -> list[str]:
    grids = {
        "Facts, %. Conflict: memory's (ParR) and the passage's answer (ConR); then accuracy by state.": [
            *((name, f"facts conflict {name.lower()}") for name in ("ParR", "ConR", "neither")),
            *((state, f"facts {state} accuracy") for state in FIVE[1:]),
        ],
        "Other conflicts, %. MR = ParR / (ParR + ConR).": [
            (f"{task} {name}", f"{task} conflict {name.lower()}")
            for task in CONFLICTS[1:]
            for name in ("ParR", "ConR", "MR")
        ],
        "RAMDocs, %: all right answers and no wrong one named (set), a right one named first (accuracy).": [
            ("set", "ramdocs set_em"),
            ("accuracy", "ramdocs accuracy"),
        ],
    }
    blocks = ["### Every arm"]
    failed = sum(row["errors"] for row in rows)
    if failed:
        blocks.append(f"{failed} answers failed and count nowhere.")
    for caption, columns in grids.items():
        grid = Grid(["arm", *(head for head, _ in columns)], caption=caption)
        grid.rows = [[GridCell(row["arm"]), *(percent(row[key]) for _, key in columns)] for row in rows]
        blocks.append(markdown_grid(grid))
    return blocks


def _frontier(rows: Sequence[Line]) -> list[str]:
    few = "dial, four settings"
    caption = (
        "Facts: the best accuracy with helpful passages that a setting with ParR of at least p in conflicts still has,"
    )
    caption += (
        " as the mean over p from 0 to 100 %. Lots: settings may be mixed by lot. Plain and closed book belong to all."
    )
    caption += f" {few}: {', '.join(FAMILIES[few])}, as many as ck-plug has: more settings are a finer staircase."
    caption += " Marks: the interval excludes 0."
    kinds = ("staircase: dial", f"staircase: {few}", "hull: dial", f"hull: {few}")
    heads = ["family", "settings", "area", "dial minus it", f"{few}, minus it"]
    grid = Grid([*heads, "area, lots", "dial minus it, lots", f"{few}, minus it, lots"], caption=caption)
    for row in rows:
        a, b, c, d = (points(row.get(kind)) for kind in kinds)
        areas = [GridCell(f"{100 * row[kind]:.1f}") for kind in ("staircase", "hull")]
        grid.rows.append([GridCell(row["family"]), GridCell(str(row["settings"])), areas[0], a, b, areas[1], c, d])
    return ["### Memory side", markdown_grid(grid)]


def _context_end(found: Mapping[str, Any]) -> list[str]:
    blocks = ["### Context end"]
    for task in CONFLICTS:
        rows = {(row["arm"], row["against"]): row for row in found["context end"] if row["task"] == task}
        if not rows:
            continue
        rivals = list(dict.fromkeys(rival for _, rival in rows))
        figures = {rival: next(row["b"] for (_, r), row in rows.items() if r == rival) for rival in rivals}
        best = max(rivals, key=figures.__getitem__)
        told = ", ".join(f"{rival} {100 * figures[rival]:.1f}" for rival in rivals)
        caption = (
            f"{task}, conflicts: ConR, %, and its difference in points to plain and CAD. {told}; the best is {best}."
        )
        grid = Grid(["arm", "ConR", "best of plain and CAD", *(f"minus {rival}" for rival in rivals)], caption=caption)
        for arm in dict.fromkeys(arm for arm, _ in rows):
            own = GridCell(f"{100 * rows[arm, best]['a']:.1f}")
            grid.rows.append(
                [GridCell(arm), own, points(rows[arm, best]), *(points(rows.get((arm, r))) for r in rivals)]
            )
        blocks.append(markdown_grid(grid))
    costs = {(row["arm"], row["state"]): row for row in found["context end, cost"]}
    caption = "Facts: accuracy minus that of off, in points, where the passages are right, beside the point or mixed."
    grid = Grid(["arm", *FIVE[1:]], caption=caption)
    for arm in dict.fromkeys(arm for arm, _ in costs):
        grid.rows.append([GridCell(arm), *(points(costs.get((arm, state))) for state in FIVE[1:])])
    return [*blocks, markdown_grid(grid)]


def _monotone(rows: Sequence[Line]) -> list[str]:
    caption = (
        "Conflicts: MR, %, from the context end to memory. Reversals: pairs of settings whose order is clearly wrong"
    )
    caption += (
        " (paired, 5 %, uncorrected). Levels: the first setting, and each that lies clearly above the level before."
    )
    grid = Grid(["data", "method", "MR", "steps down", "reversals", "levels", "settings"], caption=caption)
    for row in rows:
        values = " ".join("–" if value is None else f"{100 * value:.0f}" for value in row["mr"])
        counts = (row["down"], row["reversals"], row["levels"], len(row["arms"]))
        grid.rows.append(
            [GridCell(row["task"]), GridCell(row["method"]), GridCell(values), *(GridCell(str(n)) for n in counts)]
        )
    return ["### Monotony and levels", markdown_grid(grid)]


def _adaptive(rows: Sequence[Line]) -> list[str]:
    kinds = list(dict.fromkeys((row["task"], row["state"], row["metric"]) for row in rows))
    caption = (
        "Accuracy of dial-adaptive minus the rival's, in points. Five states: the same weight each; in a conflict the"
    )
    caption += (
        " passage is wrong and memory's answer true. Four: without conflicts. counterfact and nq_swap hold conflicts"
    )
    caption += " alone, so there whatever keeps to memory is right."
    names = [f"{task} {'set' if metric == 'set_em' else state}" for task, state, metric in kinds]
    grid = Grid(["dial-adaptive minus", *names], caption=caption)
    at = {(row["against"], row["task"], row["state"], row["metric"]): row for row in rows}
    own = {kind: next(row["a"] for row in rows if (row["task"], row["state"], row["metric"]) == kind) for kind in kinds}
    grid.rows.append([GridCell("(its own, %)"), *(GridCell(f"{100 * own[kind]:.1f}") for kind in kinds)])
    for rival in RIVALS:
        if any((rival, *kind) in at for kind in kinds):
            grid.rows.append([GridCell(rival), *(points(at.get((rival, *kind))) for kind in kinds)])
    return ["### Adaptive", markdown_grid(grid) if kinds else "No dial-adaptive in this run."]


def _fluency(rows: Sequence[Line]) -> list[str]:
    caption = (
        "Beside off: perplexity of the answers under the model without passages, as a ratio by data set; over all data"
    )
    caption += (
        " sets the repeated 4-grams and the answers that ended by themselves in points, and the length in tokens."
    )
    grid = Grid(["arm", *(f"ppl {task}" for task in LIMITS), "repeat4", "eos", "length"], caption=caption)
    for row in rows:
        cells = []
        for task in LIMITS:
            told = row[task]
            cells.append(
                GridCell("–") if told is None else GridCell(f"{told['difference']:.2f}", _span(told, 1, "", 2))
            )
        cells += [points(row[name], scale) for name, scale in (("repeat4", 100), ("eos", 100), ("length", 1))]
        grid.rows.append([GridCell(row["arm"]), *cells])
    return ["### How the answers read", markdown_grid(grid)]


def report(args: argparse.Namespace) -> None:
    """Write figures.json and tables.md."""
    studies = {folder.name: study(folder) for folder in args.run}
    reading = (
        "Brackets: 95 % intervals, clustered by question; differences are paired by record. ▲ better, ▼ worse: paired"
    )
    reading += (
        " test, p < 0.05 after Holm's correction over the comparisons of one data set and state in a table, unless"
    )
    reading += " it says otherwise."
    made = "Made by `python benchmarks/dial.py` on facts whose id has an odd SHA-256: none it was developed on."
    blocks = [made, reading, *(markdown(found) for found in studies.values())]
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(studies, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    write_bytes(args.out / "figures.json", (text + "\n").encode())
    write_bytes(args.out / "tables.md", ("\n\n".join(blocks) + "\n").encode())
    print(f"wrote {args.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("run", help="answer everything")
    making.add_argument("--data", required=True, help="folder of counterfact/, nq_swap/, ramdocs/")
    making.add_argument("--model", default="demo")
    making.add_argument("--run", type=Path, required=True)
    making.add_argument("--facts", help="a facts file; the shipped ones")
    making.add_argument("--dtype", default="float32")
    making.add_argument("--device", help="as `ckcontrol eval run` takes it")
    making.add_argument("--limit-scale", type=float, default=1.0)
    making.add_argument("--without", nargs="*", default=[], help="methods to leave out, to save time")
    making.add_argument("--cloze", action="store_true", help="facts as texts to complete, for a base model")
    making.add_argument("--processes", type=int, default=2)
    making.set_defaults(do=run)
    telling = commands.add_parser("report", help="figures and tables of finished runs")
    telling.add_argument("--run", type=Path, action="append", required=True)
    telling.add_argument("--out", type=Path, required=True)
    telling.set_defaults(do=report)
    args = parser.parse_args()
    try:
        args.do(args)
    except CKError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
