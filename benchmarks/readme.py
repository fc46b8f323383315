"""Fill the marked blocks of README.md and docs: the three answers (run live) and the tables (from benchmarks/results).

python benchmarks/readme.py            # rewrite them
python benchmarks/readme.py --check    # exit 1 if the tables differ from what the results say; runs no model
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "What is the capital of France?"
PASSAGE = "The capital of France is Lyon, where the government sits."
SHOWN = ["closed-book", "off", "prompt", "ck-plug@0", "ck-plug@0.25", "ck-plug@0.75", "ck-plug@1", "ck-plug-adaptive"]
SHOWN += ["cad@0.25", "cad@0.75", "adacad", "coiecd", "acd", "arr"]


def dial() -> str:
    """Ask the README's question at three alphas."""
    import ckcontrol as ck

    model, tokenizer = ck.load("demo")
    lines = [f"Question   {QUESTION}", f"Passage    {PASSAGE}   (false)", ""]
    for alpha in (0.0, 0.5, 1.0):
        answer = ck.generate(
            model, tokenizer, QUESTION, [PASSAGE], control=ck.Control(alpha=alpha), max_new_tokens=24, trace=False
        )
        lines.append(f"alpha {alpha:<4} {answer.text}")
    return "```\n" + "\n".join(lines) + "\n```"


def states(data: dict[str, Any]) -> str:
    """Render what every method does in the five states."""
    cells = {(c["state"], c["arm"]): c for c in data["cells"] if c["task"] == "facts"}
    worse = {
        (p["state"], p["arm"]): p["difference"]
        for p in data["pairs"]
        if (p["task"], p["metric"], p["against"]) == ("facts", "accuracy", "off") and (p["p_holm"] or 1) < 0.05
    }
    n = {state: cells[state, "off"]["n"] for state in ("conflict", "agree", "helpful", "irrelevant", "noisy")}
    lines = [
        f"SmolLM2-135M-Instruct, shipped facts, greedy, {data['date']} (`benchmarks/eval_results.py`):",
        "",
        f"| | conflict (n={n['conflict']}): ParR | ConR | neither | agree ({n['agree']}) | helpful ({n['helpful']}) | "
        f"irrelevant ({n['irrelevant']}) | noisy ({n['noisy']}) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in SHOWN:
        figures = cells["conflict", arm]["metrics"]
        shown = [
            f"{figures[m]['value']:.2f} [{figures[m]['low']:.2f}, {figures[m]['high']:.2f}]" for m in ("parr", "conr")
        ]
        shown.append(f"{figures['neither']['value']:.2f}")
        for state in ("agree", "helpful", "irrelevant", "noisy"):
            mark = {True: " ▲", False: " ▼"}.get(worse[state, arm] > 0, "") if (state, arm) in worse else ""
            shown.append(f"{cells[state, arm]['metrics']['accuracy']['value']:.2f}{mark}")
        name = {"off": "`off` (plain RAG)"}.get(arm, f"`{arm.replace('@', ' alpha=')}`")
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def reach(data: dict[str, Any]) -> str:
    """Render how far the dials move MR on every task of conflict."""
    told = [c for c in data["cells"] if "mr" in c["metrics"]]
    told.sort(key=lambda c: c["state"] == "conflict")  # that state, where a task has several
    cells = {(c["task"], c["arm"]): c for c in told}
    tasks = sorted({task for task, _ in cells})
    alphas = ("0", "0.25", "0.5", "0.75", "1")
    lines = ["| MR | n | " + " | ".join(f"`{m}` {a}" for m in ("ck-plug", "cad") for a in alphas) + " |"]
    lines.append("|---|---|" + "---|" * 10)
    for task in tasks:
        values = []
        for arm in (f"{m}@{a}" for m in ("ck-plug", "cad") for a in alphas):
            figure = cells[task, arm]["metrics"]["mr"]
            values.append("–" if figure["value"] is None else f"{figure['value']:.2f}")
        lines.append(f"| {task} | {cells[task, 'off']['n']} | {' | '.join(values)} |")
    return "\n".join(lines)


def speed(data: dict[str, Any]) -> str:
    """Render the speed table."""
    lines = [
        f"{data['date']}, {data['threads']} threads, {data['dtype'].removeprefix('torch.')}, "
        f"parametric prompt {data['parametric']} tokens, {data['new']} new tokens (`benchmarks/two_stream.py`):",
        "",
        "| batch | context | decode, vs plain | decode, vs guidance_scale | first token, vs plain |",
        "|---|---|---|---|---|",
    ]
    for row in data["rows"]:
        first = row["first"]["ours"] / row["first"]["plain"]
        lines.append(
            f"| {row['batch']} | {row['context']} | {row['ratio']['plain']:.2f}x | {row['ratio']['cfg']:.2f}x | "
            f"{first:.2f}x time |"
        )
    return "\n".join(lines)


def scifact(data: dict[str, Any]) -> str:
    """Render retrieval quality."""
    rows = data["scifact"]["rows"]
    lines = [
        f"SciFact (300 claims, 5,183 abstracts), all-MiniLM-L6-v2, {data['scifact']['date']} "
        "(`benchmarks/retrieval.py scifact`):",
        "",
        "| abstracts | search | nDCG@10 | recall@10 |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r['texts']} | {r['mode']} | {r['ndcg@10']:.3f} | {r['recall@10']:.3f} |" for r in rows]
    return "\n".join(lines)


def kinds(data: dict[str, Any]) -> str:
    """Render the kinds of index."""
    rows = data["kinds"]["rows"]
    lines = [
        f"{rows[0]['rows']:,} synthetic vectors of 384, 10 neighbours, one query at a time on two cores, "
        f"{data['kinds']['date']} (`benchmarks/retrieval.py kinds`):",
        "",
        "| kind | dtype | effort | build | resident | p50 | p95 | recall@10 | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{r['kind']}` | {r['dtype']} | {r['effort']} | {r['build_s']:,.0f} s | {r['resident_mb']:,} MB | "
        f"{r['p50_ms']:.1f} ms | {r['p95_ms']:.1f} ms | {r['recall@10']:.3f} | "
        f"{'auto' if r['auto'] and r['effort'] == 'default' else ''} |"
        for r in rows
    ]
    return "\n".join(lines)


def overhead(data: dict[str, Any]) -> str:
    """Render what a search costs over raw FAISS."""
    rows = data["overhead"]["rows"]
    lines = [
        f"`index.search` over {rows[0]['passages']:,} passages against raw FAISS on the same file, embedding excluded, "
        f"{data['overhead']['date']} (`benchmarks/retrieval.py overhead`):",
        "",
        "| kind | dtype | p50 | raw FAISS p50 | ratio |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['kind']} | {r['dtype']} | {r['p50_ms']:.2f} ms | {r['raw_p50_ms']:.2f} ms | {r['ratio']:.2f}x |"
        for r in rows
    ]
    return "\n".join(lines)


def ndcg(data: dict[str, Any]) -> str:
    """Render the best line of retrieval quality."""
    rows = {r["mode"]: r for r in data["scifact"]["rows"] if r["texts"].startswith("whole")}
    return ", ".join(f"{mode} {rows[mode]['ndcg@10']:.3f}" for mode in ("dense", "bm25", "hybrid")) + "."


def ask(data: dict[str, Any]) -> str:
    """Render the whole pipeline: the share of answers that name the truth, or the claim of the false passage."""
    rows = {(r["group"], r["label"]): r for r in data["rows"]}
    labels = list(dict.fromkeys(r["label"] for r in data["rows"]))
    groups = list(dict.fromkeys(r["group"] for r in data["rows"]))
    hit = ", ".join(f"{name} {rate['share']:.2f}" for name, rate in data["hit"].items())
    lines = [
        f"SmolLM2-135M-Instruct, {data['passages']} passages, {data['false']} false, {data['asked']} questions, "
        f"k={data['k']} {data['mode']}, greedy, {data['date']} (`benchmarks/ask.py`). The passage that answers is "
        f"found: {hit}.",
        "",
        "| passage, and the fact closed-book | n | names | " + " | ".join(labels) + " |",
        "|---|---|---|" + "---|" * len(labels),
    ]
    for group in groups:
        for column in ("truth", "claim"):
            if column == "claim" and not group.startswith("false"):
                continue
            cells = [rows[group, label][column] for label in labels]
            told = " | ".join(f"{c['share']:.2f} [{c['ci'][0]:.2f}, {c['ci'][1]:.2f}]" for c in cells)
            lines.append(f"| {group} | {rows[group, labels[0]]['n']} | {column} | {told} |")
    return "\n".join(lines)


BLOCKS = (  # page, block, results, what renders them
    ("docs/measured.md", "states", "docs/results/smollm2-135m-instruct/figures.json", states),
    ("docs/measured.md", "reach", "docs/results/smollm2-135m-instruct/figures.json", reach),
    ("docs/measured.md", "speed", "benchmarks/results/two_stream.json", speed),
    ("docs/measured.md", "ndcg", "benchmarks/results/retrieval.json", ndcg),
    ("docs/measured.md", "ask", "benchmarks/results/ask.json", ask),
    ("docs/retrieval.md", "scifact", "benchmarks/results/retrieval.json", scifact),
    ("docs/retrieval.md", "kinds", "benchmarks/results/retrieval.json", kinds),
    ("docs/retrieval.md", "overhead", "benchmarks/results/retrieval.json", overhead),
)


def fill(text: str, name: str, block: str) -> str:
    """Replace what stands between a block's markers."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"a page has no block {name!r}")
    return pattern.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text)


def main() -> None:
    check = "--check" in sys.argv[1:]
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in dict.fromkeys(row[0] for row in BLOCKS)}
    filled = dict(pages)
    for page, block, results, render in BLOCKS:
        data = json.loads((ROOT / results).read_text(encoding="utf-8"))
        filled[page] = fill(filled[page], block, render(data))
    if check:
        stale = [name for name in pages if pages[name] != filled[name]]
        sys.exit(f"{', '.join(stale)} stale: run make readme" if stale else 0)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    filled["README.md"] = fill(filled.get("README.md", readme), "dial", dial())
    for name, text in filled.items():
        (ROOT / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
