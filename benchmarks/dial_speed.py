"""What two drafts cost: whole answers under `dial` beside token policies and the unmodified model, in one run.

The shipped capitals with their false passages, padded by neutral sentences to about `--context` tokens, in batches;
every control has its turn in every round. Prints median seconds of CPU time a batch (on a GPU take gpu.py), and the
ratios to the unmodified model. Answers differ in length between controls: each ratio is also given per token of the
answers, drafts that were not given left out.

    python benchmarks/dial_speed.py --batch 1 8 --context 64 512
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

import ckcontrol as ck
from ckcontrol.eval.items.shipped_facts import load_capitals

CONTROLS = {
    "off": ck.Control("off"),
    "ck-plug": ck.Control("ck-plug", alpha=0.25),
    "dial": ck.Control("dial", alpha=0.6),
    "dial, segments": ck.Control("dial", alpha=0.6, segments=True),
    "dial, alpha 0.3": ck.Control("dial", alpha=0.3),
    "trustmargin": ck.Control("trustmargin"),
}
FILLER = "The region is known for its hills, its rivers and its long winters. "


def measure(
    model: Any, tokenizer: Any, batch: int, context: int, rounds: int, new: int
) -> dict[str, tuple[float, int]]:
    """Median seconds of CPU time of a batch and the tokens of its answers, by control."""
    facts = load_capitals()[:batch]
    room = len(tokenizer(FILLER)["input_ids"])
    passages = [[fact.passage_false + " " + FILLER * max(0, context // room - 2)] for fact in facts]
    taken: dict[str, list[float]] = {name: [] for name in CONTROLS}
    tokens: dict[str, int] = {}
    for turn in range(rounds + 1):
        for name, control in CONTROLS.items():
            start = time.process_time()
            answers = ck.generate(
                model,
                tokenizer,
                [fact.question for fact in facts],
                passages,
                control=control,
                max_new_tokens=new,
                trace=False,
            )
            if turn:
                taken[name].append(time.process_time() - start)
            tokens[name] = sum(len(answer.token_ids) for answer in answers)
    return {name: (median(values), tokens[name]) for name, values in taken.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--context", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=24)
    given = parser.parse_args()
    model, tokenizer = ck.load(given.model)
    for batch in given.batch:
        for context in given.context:
            found = measure(model, tokenizer, batch, context, given.rounds, given.new_tokens)
            seconds, tokens = found["off"]
            for name, (took, made) in found.items():
                row = {"batch": batch, "context": context, "control": name, "seconds": round(took, 3), "tokens": made}
                row |= {"to off": round(took / seconds, 2), "per token": round(took / made * tokens / seconds, 2)}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
