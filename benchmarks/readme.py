"""Fill the README's marked blocks: the three answers (run live) and the two tables (from benchmarks/results).

python benchmarks/readme.py            # rewrite README.md
python benchmarks/readme.py --check    # exit 1 if the tables differ from what the results say; runs no model
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
QUESTION = "What is the capital of France?"
PASSAGE = "The capital of France is Lyon, where the government sits."
SHOWN = ["off", "ck-plug a=0", "ck-plug a=0.25", "ck-plug a=0.75", "ck-plug a=1", "ck-plug adaptive"]
SHOWN += ["cad a=0.25", "cad a=0.75", "cad a=1", "adacad", "coiecd", "acd", "arr"]


def dial() -> str:
    """Ask the README's question at three alphas."""
    import ckcontrol as ck

    model, tokenizer = ck.load("demo")
    lines = [f"Question   {QUESTION}", f"Passage    {PASSAGE}   (false)", ""]
    for alpha in (0.4, 0.5, 1.0):
        answer = ck.generate(
            model, tokenizer, QUESTION, [PASSAGE], control=ck.Control(alpha=alpha), max_new_tokens=24, trace=False
        )
        lines.append(f"alpha {alpha:<4} {answer.text}")
    return "```\n" + "\n".join(lines) + "\n```"


def capitals(data: dict[str, Any]) -> str:
    """Render the conflict table."""
    rows = {row["label"]: row for row in data["rows"]}
    lines = [
        f"SmolLM2-135M-Instruct, {data['asked']} capitals asked, {data['known']} known closed-book, greedy, "
        f"{data['date']} (`benchmarks/capitals.py` prints all of it):",
        "",
        "| | ParR | ConR | neither |",
        "|---|---|---|---|",
    ]
    for label in SHOWN:
        row = rows[label]
        rates = (
            f"{row[name]:.2f} [{row[f'{name}_ci'][0]:.2f}, {row[f'{name}_ci'][1]:.2f}]" for name in ("parr", "conr")
        )
        name = f"`{label}` (plain RAG)" if label == "off" else f"`{label.replace('a=', 'alpha=')}`"
        lines.append(f"| {name} | {' | '.join(rates)} | {row['neither']:.2f} |")
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


def fill(text: str, name: str, block: str) -> str:
    """Replace what stands between a block's markers."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no block {name!r}")
    return pattern.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text)


def main() -> None:
    check = "--check" in sys.argv[1:]
    path = ROOT / "README.md"
    before = text = path.read_text(encoding="utf-8")
    for name, render in (("capitals", capitals), ("speed", speed)):
        data = json.loads((RESULTS / f"{'two_stream' if name == 'speed' else name}.json").read_text(encoding="utf-8"))
        text = fill(text, name, render(data))
    if check:
        sys.exit("README.md is stale: run make readme" if text != before else 0)
    path.write_text(fill(text, "dial", dial()), encoding="utf-8")


if __name__ == "__main__":
    main()
