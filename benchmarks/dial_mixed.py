"""Answers of two facts from mixed sources: one known and contradicted, one unknown and supported.

Each question asks for both, a sentence each; the passage states the known one wrongly and the other rightly. Only an
answer that takes one from memory and one from the passage is right. Facts are the shipped ones, screened for the
model: known is right closed-book, unknown is wrong. Per control: share of answers with each fact right, with both,
and of answers with at least two sentences; `both` minus plain and segments minus whole answers with 95 % intervals of a
bootstrap over questions.

    python benchmarks/dial_mixed.py --limit 40 --json benchmarks/results/dial_mixed.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.prompts import PromptTemplate, build_pair
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.eval.items.states import StateFact, completed, rank
from ckcontrol.eval.judging.verdict import verdict
from ckcontrol.eval.running.fan import fan
from ckcontrol.eval.tasks.facts import load_facts
from ckcontrol.policies import sentence_end

RELATIONS = ("capital", "currency", "continent")
TEMPLATE = PromptTemplate(instruction="Answer both questions, each in a sentence of its own.\n\n")
SETTINGS = {"alpha 0.7": {"alpha": 0.7}, "alpha 0.8": {"alpha": 0.8}, "adaptive": {"adaptive": True}}
CONTROLS = {
    "off": ck.Control("off"),
    "closed-book": ck.Control("cad", alpha=1.0),
    **{name: ck.Control("dial", **how) for name, how in SETTINGS.items()},
    **{f"{name}, segments": ck.Control("dial", **how, segments=True) for name, how in SETTINGS.items()},
}


def screened(model: Any, tokenizer: Any, facts: Sequence[StateFact]) -> dict[str, bool]:
    """Return which facts the model answers rightly without passages."""
    known = {}
    for at in range(0, len(facts), 16):
        part = facts[at : at + 16]
        answers = ck.generate(
            model, tokenizer, [f.question for f in part], control=ck.Control("off"), max_new_tokens=20, trace=False
        )
        for fact, answer in zip(part, answers, strict=True):
            known[fact.id] = verdict(answer.text, (), fact.answers).parametric
    return known


def interval(values: Sequence[float], draws: int = 4000) -> str:
    """Mean in points with its 95 % percentile bootstrap interval."""
    r = random.Random(0)
    means = sorted(fmean(r.choices(values, k=len(values))) for _ in range(draws))
    low, high = means[int(0.025 * draws)], means[int(0.975 * draws)]
    return f"{100 * fmean(values):+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"


Item = tuple[StateFact, StateFact, bool]


def judged(items: Sequence[Item], said: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """Return whether each answer has the contradicted fact as memory knows it, and the supported one."""
    memory = [verdict(text, a.false_answers, a.answers).parametric for text, (a, _, _) in zip(said, items, strict=True)]
    context = [verdict(text, (), b.answers).parametric for text, (_, b, _) in zip(said, items, strict=True)]
    return memory, context


def told(model: str, items: Sequence[Item], texts: dict[str, list[str]]) -> dict[str, Any]:
    """Return what is kept of a run."""
    rows = {name: dict(zip(("memory", "context"), judged(items, said), strict=True)) for name, said in texts.items()}
    return {"model": Path(model).name, "n": len(items), "controls": rows}


def table(items: Sequence[Item], texts: dict[str, list[str]]) -> str:
    """Return the figures as a table in Markdown."""
    both: dict[str, list[float]] = {}
    heads = ["control", "contradicted: right", "supported: right", "both", "both - plain", "- whole", "two sentences"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, said in texts.items():
        memory, context = judged(items, said)
        both[name] = [float(m and c) for m, c in zip(memory, context, strict=True)]
        whole = name.removesuffix(", segments")
        against = [
            interval([x - y for x, y in zip(both[name], both[other], strict=True)]) if other != name else ""
            for other in ("off", whole)
        ]
        several = fmean(sentence_end(text) is not None for text in said)
        rates = [f"{100 * fmean(map(float, x)):.0f}" for x in (memory, context, both[name])]
        lines.append(f"| {name} | {' | '.join([*rates, *against])} | {100 * several:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--probe", type=int, default=200, help="facts that are screened")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model, tokenizer = ck.load(given.model)
    facts = [fact for fact in completed(load_facts(None)[0]) if fact.relation in RELATIONS]
    facts = sorted(facts, key=lambda fact: rank(0, "mixed", fact.id))[: given.probe]
    began = time.process_time()
    known = screened(model, tokenizer, facts)
    sides = [[fact for fact in facts if known[fact.id] == side] for side in (True, False)]
    items = [
        (a, b, int(rank(0, a.id, b.id), 16) % 2 == 0)
        for a, b in zip(*sides, strict=False)
        if a.subject != b.subject and not {*a.answers, *a.false_answers} & {*b.answers}
    ][: given.limit]
    pairs, questions = [], []
    for a, b, first in items:
        stated = [a.told(a.false_answers[0]), b.told(b.answer)]
        asked = [a.question, b.question]
        if not first:
            stated, asked = stated[::-1], asked[::-1]
        questions.append(" ".join(asked))
        pairs.append(build_pair(tokenizer, questions[-1], [" ".join(stated)], template=TEMPLATE))
    texts: dict[str, list[str]] = {name: [] for name in CONTROLS}
    for at in range(0, len(pairs), 8):
        made = fan(
            model,
            pairs[at : at + 8],
            [control.policy() for control in CONTROLS.values()],
            options=GenerateOptions(max_new_tokens=given.new_tokens),
            ends=sorted(eos_ids(model, tokenizer)),
            pad=tokenizer.pad_token_id or 0,
            vocab_size=len(tokenizer),
            questions=questions[at : at + 8],
            read=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
        )
        for answers in made:
            for name, answer in zip(CONTROLS, answers, strict=True):
                texts[name].append(tokenizer.decode(answer.ids, skip_special_tokens=True).strip())
        used = time.process_time() - began
        print(f"{min(at + 8, len(items))} of {len(items)} answered, {used:.0f} s of CPU", file=sys.stderr, flush=True)
        if given.json:
            given.json.write_text(json.dumps(told(given.model, items[: at + 8], texts), ensure_ascii=False) + "\n")
    print(f"n = {len(items)} ({len(sides[0])} known, {len(sides[1])} unknown of {len(facts)}), {date.today()}\n")
    print(table(items, texts))
    for i in range(min(3, len(items))):
        print(f"\n{questions[i]} ({items[i][0].answer}; {items[i][1].answer})")
        for name in ("off", "closed-book", "alpha 0.8", "alpha 0.8, segments"):
            print(f"  {name}: {texts[name][i]!r}")


if __name__ == "__main__":
    main()
