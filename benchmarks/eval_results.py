"""The committed measurement: every method and alpha on five tasks, as a run, its report and the README's figures.

Needs the data sets (see docs/eval.md); nothing of their text is written. An interrupted run goes on.

    python benchmarks/eval_results.py --data FOLDER --run runs/results        # about an hour on two cores
    python benchmarks/eval_results.py --run runs/results --only-report

FOLDER holds nq_swap/, counterfact/, ramdocs/ and memotrap/. `--processes 2` makes two shards side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ckcontrol.eval.report import write_report

OUT = Path(__file__).resolve().parent.parent / "docs" / "results" / "smollm2-135m-instruct"
TASKS = "facts?limit=150,nq_swap={0}/nq_swap?limit=150,counterfact={0}/counterfact?limit=200,"
TASKS += "ramdocs={0}/ramdocs?limit=60,memotrap={0}/memotrap?limit=300"
KEPT = ("accuracy", "conr", "eos", "gate", "length", "mr", "neither", "parr", "ppl_closed", "repeat4", "set_em")
TESTED = ("accuracy", "conr", "parr")


def run(data: str, folder: Path, processes: int) -> None:
    """Make the run, in shards side by side."""
    command = ["-m", "ckcontrol", "eval", "run", "--model", "demo", "--dtype", "float32", "--methods", "all"]
    command += ["--max-new-tokens", "20", "--tasks", TASKS.format(data), "--out", str(folder)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    started = [
        subprocess.Popen(
            [sys.executable, *command, "--shard", f"{i + 1}/{processes}"],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"},
        )
        for i in range(processes)
    ]
    if any([process.wait() for process in started]):
        sys.exit("a shard failed; the same command goes on")


def figures(folder: Path) -> dict[str, Any]:
    """Return results.json without what no table shows, and with the date."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for cell in results["cells"]:
        cell["metrics"] = {name: value for name, value in cell["metrics"].items() if name in KEPT}
    results["pairs"] = [p for p in results["pairs"] if p["against"] == "off" and p["metric"] in TESTED]
    results["date"] = card["started"]
    for path in sorted(folder.glob("samples*.jsonl")):
        with open(path, encoding="utf-8") as lines:
            made = [json.loads(line) for line in lines if line.startswith('{"pass"')]
        results.setdefault("seconds", {})[path.name] = round(sum(line["seconds"] for line in made))
    return dict(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only-report", action="store_true")
    args = parser.parse_args()
    if not args.only_report:
        if args.data is None:
            parser.error("--data is needed, or --only-report")
        run(args.data, args.run, args.processes)
    OUT.mkdir(parents=True, exist_ok=True)
    aside = args.run / "report"
    write_report([args.run], aside, items=0)
    for name in ("report.md", "curves.svg", "four_states.svg"):
        shutil.copyfile(aside / name, OUT / name)
    text = json.dumps(figures(args.run), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    (OUT / "figures.json").write_text(text + "\n", encoding="utf-8")
    print(f"wrote {OUT}; README: make readme")


if __name__ == "__main__":
    main()
