"""Long answers under every kind of control: do they read like the unmodified model's?

Countries are to be described, half of them with a false passage on their capital. Per control: perplexity under the
contextual stream and under the parametric one, repeated 4-grams of words, answers that end by themselves, length; the
perplexities also as ratios to `off`, paired by question, with a 95 % bootstrap interval of the mean log ratio.

    python benchmarks/dial_long.py --limit 24 --json benchmarks/results/dial_long.json
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from datetime import date
from statistics import fmean
from typing import Any

import torch

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.prompts import PromptTemplate, build_pair
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.eval.items.shipped_facts import load_capitals
from ckcontrol.eval.judging.measures import repeated_ngrams
from ckcontrol.eval.running.fan import FanAnswer, fan

GRID = {
    "off": ck.Control("off"),
    "closed-book": ck.Control("cad", alpha=1.0),
    **{f"dial@{a}": ck.Control("dial", alpha=a) for a in (0.0, 0.25, 0.45, 0.55, 0.65, 0.75, 0.9)},
    "dial-adaptive": ck.Control("dial", adaptive=True),
    **{f"ck-plug@{a}": ck.Control("ck-plug", alpha=a) for a in (0.0, 0.25, 0.75, 1.0)},
    "CAD 0.5": ck.Control("cad", cad_alpha=0.5),
    "CAD 1": ck.Control("cad", cad_alpha=1.0),
    "static 0.6": ck.Control("cad", alpha=0.6),
    "arr": ck.Control("arr"),
}
TEMPLATE = PromptTemplate(instruction="Write a long and detailed answer of many sentences.\n\n")
QUESTION = "Describe {subject}: its capital, its land, its people, its history and its economy."


def surprise(made: FanAnswer, stream: str) -> float:
    """Mean negative log-probability of the answer's tokens, in nats."""
    return -fmean(max(value, -50.0) for value in getattr(made, stream))


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    r = random.Random(0)
    means = sorted(fmean(r.choices(values, k=len(values))) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


def figures(
    answers: Sequence[tuple[FanAnswer, str]], off: Sequence[tuple[FanAnswer, str]], ends: set[int]
) -> dict[str, Any]:
    """Figures of one control beside those of the unmodified model."""
    row: dict[str, Any] = {}
    for stream in ("logp_ctx", "logp_par"):
        mine = [surprise(made, stream) for made, _ in answers]
        logs = [a - surprise(made, stream) for a, (made, _) in zip(mine, off, strict=True)]
        row[stream] = {
            "perplexity": math.exp(fmean(mine)),
            "ratio": math.exp(fmean(logs)),
            "ratio_interval": [math.exp(value) for value in interval(logs)],
        }
    repeated = [repeated_ngrams(text) for _, text in answers]
    row["repeat4"] = fmean(value for value in repeated if value is not None)
    row["ended"] = fmean(made.ids[-1] in ends for made, _ in answers)
    row["length"] = fmean(len(made.ids) for made, _ in answers)
    return row


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--json")
    given = parser.parse_args()
    model, tokenizer = ck.load(given.model, dtype="float32")
    ends = eos_ids(model, tokenizer)
    facts = random.Random(0).sample(load_capitals(), given.limit)
    passages = [fact.passage_false if i % 2 else fact.passage_true for i, fact in enumerate(facts)]
    questions = [QUESTION.format(subject=fact.subject) for fact in facts]
    pairs = [build_pair(tokenizer, q, [p], template=TEMPLATE) for q, p in zip(questions, passages, strict=True)]
    started = time.perf_counter()
    made: list[list[FanAnswer]] = []
    for start in range(0, len(pairs), given.batch):
        made += fan(
            model,
            pairs[start : start + given.batch],
            [control.policy() for control in GRID.values()],
            options=GenerateOptions(max_new_tokens=given.new_tokens),
            ends=sorted(ends),
            pad=tokenizer.pad_token_id or 0,
            vocab_size=len(tokenizer),
        )
    answers = {
        name: [(row[i], tokenizer.decode(row[i].ids, skip_special_tokens=True)) for row in made]
        for i, name in enumerate(GRID)
    }
    for name, told in answers.items():
        print(f"--- {name}: {told[1][1][:300]!r}")
    table = {name: figures(told, answers["off"], set(ends)) for name, told in answers.items()}
    for name, row in table.items():
        ctx, par = row["logp_ctx"], row["logp_par"]
        print(
            f"{name:14s} ppl with passages {ctx['perplexity']:6.2f} x{ctx['ratio']:.2f} "
            f"[{ctx['ratio_interval'][0]:.2f}, {ctx['ratio_interval'][1]:.2f}]  without {par['perplexity']:7.2f} "
            f"x{par['ratio']:.2f}  repeat4 {row['repeat4']:.3f}  ended {row['ended']:.2f}  length {row['length']:.0f}"
        )
    if given.json:
        told = {"date": date.today().isoformat(), "model": given.model, "questions": given.limit}
        told |= {"new_tokens": given.new_tokens, "torch": torch.__version__, "controls": table}
        told["seconds"] = round(time.perf_counter() - started)
        with open(given.json, "w", encoding="utf-8") as file:
            file.write(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
