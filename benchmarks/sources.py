"""What several sources cost on a CPU: time and memory over plain RAG with the same passages in one prompt.

One question, N passages of 128 tokens each (invented words), greedy, no end token, one thread. Arms take turns; CPU
time of `ck.generate`, the least of the repeats; bytes of keys and values by `cache_bytes`. `plain` is `Control("off")`
on all passages, without a trace; `pair` the usual two streams; `sources` a control of tokens over all sources.

    python benchmarks/sources.py --counts 2 4 8 --json benchmarks/results/sources.json
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch

import ckcontrol as ck
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.sources import build_sources, cache_bytes
from ckcontrol.models.load import load

QUESTION = "Which of the towns named above has the oldest bridge?"
WORDS = "river bridge mill road town market old stone winter harbour letter glass field tower garden".split()


def passages_of(tokenizer: Any, count: int, tokens: int) -> list[str]:
    """Return passages of about `tokens` tokens."""
    dice, made = random.Random(0), []
    for _ in range(count):
        words: list[str] = []
        while len(tokenizer(" ".join(words))["input_ids"]) < tokens:
            words.append(dice.choice(WORDS))
        made.append(" ".join(words))
    return made


def cpu_seconds(work: Any) -> float:
    """Return the CPU time of one call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measure(model: Any, tokenizer: Any, count: int, tokens: int, new: int, repeats: int) -> dict[str, Any]:
    """Return times and bytes of one number of passages."""
    passages = passages_of(tokenizer, count, tokens)
    # No end token may cut an arm short.
    ends = [t for t in {tokenizer.eos_token_id, model.generation_config.eos_token_id} if isinstance(t, int)]

    def never(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, ends] = -torch.inf
        return scores

    steered = ck.Control("cad", alpha=0.4)
    arms = {
        "plain": {"control": ck.Control("off")},
        "pair": {"control": steered},
        "sources": {"control": steered, "sources": "each"},
        "replug": {"combine": "replug", "sources": "each"},
    }
    best: dict[str, float] = {}
    for name in [*arms] * repeats:
        how = {"max_new_tokens": new, "trace": False, "processors": [never], **arms[name]}
        spent = cpu_seconds(lambda how=how: ck.generate(model, tokenizer, QUESTION, passages, **how))  # type: ignore[misc]
        best[name] = min(spent, best.get(name, spent))
    made = build_sources(tokenizer, QUESTION, passages)
    whole = len(build_pair(tokenizer, QUESTION, passages).contextual) + new
    held = cache_bytes(model, whole), cache_bytes(model, sum(len(ids) + new for ids in made.ids))
    return {
        "passages": count,
        "new_tokens": new,
        "prompt_tokens": [len(ids) for ids in made.ids],
        "cpu_s": {name: round(value, 3) for name, value in best.items()},
        "over_plain": {name: round(value / best["plain"], 2) for name, value in best.items()},
        "cache_mib": [round(value / 2**20, 1) for value in held],
        "cache_over_plain": round(held[1] / held[0], 2),
    }


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(args.model, device="cpu")
    rows = []
    for count in args.counts:
        rows.append(measure(model, tokenizer, count, args.tokens, args.new, args.repeats))
        print(json.dumps(rows[-1]), flush=True)
        if args.json:
            args.json.write_text(
                json.dumps({"model": args.model, "tokens": args.tokens, "rows": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
