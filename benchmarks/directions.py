"""A direction beside other ways to turn a model, on the test facts of `ckcontrol steer find`, and what a step costs.

Facts that the model knows, of the split that played no part in finding the direction (by subject), as chat questions:
with a false passage (ParR: the answer names memory's answer; ConR: the passage's) and with a true one (helpful: the
right answer). Whole greedy answers; 95 % Wilson intervals, and answers won and lost in ParR against `off`.

    python benchmarks/directions.py direction.safetensors --facts facts.jsonl --json out.json
    python benchmarks/directions.py direction.safetensors --facts facts.jsonl --mask context.json memory.json
    python benchmarks/directions.py direction.safetensors --dial dial/ --speed
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import ckcontrol as ck
from ckcontrol.decoding.inputs import stream_of
from ckcontrol.decoding.streams import TwoStreams
from ckcontrol.decoding.weight_rows import DIALS
from ckcontrol.eval.metrics import mentions, wilson

ALPHAS = (0.0, 1.0, 0.25, 0.75)
Around = Callable[[], AbstractContextManager[Any]]


def arms(
    model: Any, direction: ck.heads.Direction, masks: list[str], dial: bool
) -> list[tuple[str, ck.Control, Around]]:
    """Name, control and what changes the model; the unmodified model first, then by what matters most."""
    off, made = ck.Control("off"), [("off", ck.Control("off"), nullcontext)]
    sides = [a for a in ALPHAS if (direction.context if a < 0.5 else direction.memory)]
    made += [(f"direction a={a:g}", off, partial(ck.heads.added, model, direction, a)) for a in sides]
    made += [(f"weights a={a:g}", ck.Control("weights", a), nullcontext) for a in ALPHAS if dial]
    for path in masks:
        made.append((f"mask {Path(path).stem}", off, partial(ck.heads.pruned, model, ck.heads.HeadMask.load(path))))
    for ends in (ALPHAS[:2], ALPHAS[2:]):
        for method in ("ck-plug", "dial"):
            made += [(f"{method} a={a:g}", ck.Control(method, a), nullcontext) for a in ends]
    return made


def ask(model: Any, tokenizer: Any, questions: list[str], passages: list[str], control: ck.Control) -> list[str]:
    """Answer in batches of 16, of similar length."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i] + passages[i]))
    texts = [""] * len(questions)
    for start in range(0, len(order), 16):
        rows = order[start : start + 16]
        given = [questions[i] for i in rows], [[passages[i]] for i in rows]
        answers = ck.generate(model, tokenizer, *given, control=control, max_new_tokens=12, trace=False)
        for i, answer in zip(rows, answers, strict=True):
            texts[i] = answer.text
    return texts


def panel(model: Any, tokenizer: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Ask every arm; print and, after each, write its row."""
    direction = ck.heads.Direction.load(args.direction)
    facts = {fact.id: fact for fact in ck.heads.read_facts(args.facts) if fact.question}
    seed = int(direction.note.get("seed", 0))
    records, _ = ck.heads.build_records(model, tokenizer, list(facts.values()), seed=seed)
    test = [record for record in records if record.known and record.split == "test"][: args.limit]
    asked = [facts[record.id] for record in test]
    false = [fact.states(record.context) for fact, record in zip(asked, test, strict=True)]
    true = [fact.states(fact.answer) for fact in asked]
    questions = [fact.question for fact in asked]
    print(f"{len(test)} test facts; {direction!r}; greedy, 12 tokens", flush=True)
    rows: list[dict[str, Any]] = []
    base: list[bool] = []
    for name, control, around in arms(model, direction, args.mask, bool(args.dial)):
        with around():
            conflicts = ask(model, tokenizer, questions, false, control)
            helped = ask(model, tokenizer, questions, true, control)
        hits = {
            "parr": [mentions(text, record.aliases) for text, record in zip(conflicts, test, strict=True)],
            "conr": [mentions(text, record.context) for text, record in zip(conflicts, test, strict=True)],
            "helpful": [mentions(text, record.aliases) for text, record in zip(helped, test, strict=True)],
        }
        base = base or hits["parr"]
        row: dict[str, Any] = {"name": name, "n": len(test)}
        for key, found in hits.items():
            row[key], row[f"{key}_ci"] = sum(found) / len(found), wilson(sum(found), len(found))
        row["won"] = sum(now and not was for now, was in zip(hits["parr"], base, strict=True))
        row["lost"] = sum(was and not now for now, was in zip(hits["parr"], base, strict=True))
        row["answers"] = [conflicts, helped]
        rows.append(row)
        cells = (f"{k} {100 * row[k]:.0f} [{100 * row[f'{k}_ci'][0]:.0f}, {100 * row[f'{k}_ci'][1]:.0f}]" for k in hits)
        print(f"{name:20} {'  '.join(cells)}  ParR +{row['won']} -{row['lost']}", flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def speed(model: Any, tokenizer: Any, args: argparse.Namespace, repeats: int = 9) -> None:
    """CPU seconds per decode step of B rows that go on from one prompt, ways in turn; the median over rounds.

    Seconds of this process, not of the clock: neighbours on the machine then count for little.
    """
    pair = ck.build_pair(tokenizer, "Tell a long story about Lima.", ["The capital of Peru is Lima, by the sea."])
    bare = ck.load(args.model)[0] if args.dial else model  # without a dial's hooks
    ways: dict[str, tuple[Any, bool, str, Around]] = {
        "plain": (bare, False, "", nullcontext),
        "two streams": (bare, True, "", nullcontext),
    }
    if args.direction:
        direction = ck.heads.Direction.load(args.direction)
        alpha = 0.0 if direction.context else 1.0
        ways["direction"] = (model, False, "", partial(ck.heads.added, model, direction, alpha))
    if args.dial:
        names = [DIALS[model][a] for a in (0.0, 1.0)]
        ways |= {
            "weights, none": (model, False, "", nullcontext),
            "weights, one adapter": (model, False, names[0], nullcontext),
            "weights, two": (model, False, "+".join(names), nullcontext),
        }
    for batch in (1, 8, 32):
        found: dict[str, list[float]] = {name: [] for name in ways}
        running = {}
        for name, (which, two, _, around) in ways.items():
            streams = TwoStreams(
                stream_of(which, [pair.contextual], 0), stream_of(which, [pair.parametric], 0) if two else None,
                share=two, reserve=64,
            )  # fmt: skip
            with around(), torch.no_grad():
                streams.prefill()
                streams.select(torch.zeros(batch, dtype=torch.long))
            running[name] = streams
        for _ in range(repeats):
            for name, (_, _, adapters, around) in ways.items():
                if adapters:
                    each = adapters.split("+")
                    running[name].contextual.adapters = tuple(each[i % len(each)] for i in range(batch))
                with around(), torch.no_grad():
                    start = time.process_time()
                    running[name].step(torch.full((batch,), 198))
                    found[name].append(time.process_time() - start)
        plain = median(found["plain"])
        told = (f"{name} {1000 * median(v):.1f} ms ({plain / median(v):.2f} of plain)" for name, v in found.items())
        print(f"batch {batch}: {', '.join(told)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("direction", nargs="?", help="what `ckcontrol steer find` wrote")
    parser.add_argument("--dial", help="what `ckcontrol weights mix` wrote")
    parser.add_argument("--facts")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--mask", nargs="*", default=[], metavar="FILE")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.facts and not args.direction:
        parser.error("--facts asks the test facts of a direction: name its file")
    torch.manual_seed(0)
    model, tokenizer = ck.load(args.model)
    if args.dial:
        ck.weights.load(model, args.dial)
    if args.facts:
        panel(model, tokenizer, args)
    if args.speed:
        speed(model, tokenizer, args)


if __name__ == "__main__":
    main()
