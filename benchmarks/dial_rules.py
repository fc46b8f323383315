"""Rules that choose between drafts, compared on what dial_drafts.py wrote: in seconds, without a model.

    python benchmarks/dial_rules.py drafts/demo.jsonl drafts/qwen.jsonl

`dial` is the shipped policy itself. Per model: how each rule ranks answers that passages misled against those that only
passages gave (AUC), and what the dial's settings do in every state, minus the plain model, in
points, paired, with 95 % intervals of a bootstrap over questions.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ckcontrol as ck
from ckcontrol.policies import AnswerPolicy, Evidence, read_drafts
from ckcontrol.policies.dial import evidence

ALPHAS = (0.0, 0.25, 0.3, 0.4, 0.45, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9)
DRAWS = 4000
Rule = Callable[[float, float, float], float]
Control = Callable[["Question"], float]


@dataclass(frozen=True)
class Question:
    """One question and its drafts as evidence, unmodified first."""

    state: str
    group: str
    known: bool
    drafts: dict[str, tuple[Evidence, dict[str, float]]]
    popularity: float | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> Question:
        """Return the question of a line."""
        record, found = row["record"], row["drafts"]
        meta = record["meta"]
        passages = meta.get("docs") or [record["context"]]
        names = ["unmodified", "memory", "context"]
        columns = ("ctx", "par", "h_ctx", "h_par", "rank", "best")
        evidence = [Evidence(*(found[name][key] for key in columns)) for name in names]
        evidence = read_drafts(evidence, names, [found[name]["text"] for name in names], record["question"], passages)
        drafts = {name: (read, found[name]["judged"]) for name, read in zip(names, evidence, strict=True)}
        state = f"desk, {record['id'].rpartition('/')[2]}" if row["task"] == "desk" else meta["state"]
        popular = next((float(meta[key]) for key in POPULARITY if meta.get(key) is not None), row.get("familiar"))
        return cls(state, meta.get("group") or record["question"], bool(meta.get("known")), drafts, popular)

    def given(self, policy: AnswerPolicy | str) -> dict[str, float]:
        """Return what is measured of the draft that a policy gives, or of the one of a name."""
        if isinstance(policy, str):
            return self.drafts[policy][1]
        offered = [self.drafts[name] for name in policy.drafts]
        return offered[policy.choose([found for found, _ in offered])][1]

    def stakes(self) -> tuple[float, float, float, bool]:
        """Return memory's gain, the context's cost, memory's surprise at its own draft, and whether that is idle."""
        (plain, _), (memory, _) = self.drafts["unmodified"], self.drafts["memory"]
        gain = plain.surprise_par - memory.surprise_par
        return gain, memory.surprise_ctx - plain.surprise_ctx, memory.own_par, memory.idle


# Where a data set says how well known a subject is (PopQA and its like). The sets of dial_drafts.py do not; there the
# model's own log-probability of the question's names stands in (dial_drafts.py --familiar).
POPULARITY = ("popularity", "s_pop", "page_views")
# What embarrasses detectors: figures that know nothing of either stream.
BASELINES: dict[str, Control] = {
    "memory's draft is short (tokens)": lambda question: -len(question.drafts["memory"][0].logp_par),
    "plain draft is long (tokens)": lambda question: len(question.drafts["unmodified"][0].logp_ctx),
    "memory's draft is shorter than the plain one": lambda question: (
        len(question.drafts["unmodified"][0].logp_ctx) - len(question.drafts["memory"][0].logp_par)
    ),
    "popularity of the subject": lambda question: math.nan if question.popularity is None else question.popularity,
}
RULES: dict[str, Rule] = {
    "dial": evidence,
    "gain / (cost * own) (dial before)": lambda gain, cost, own: gain / (max(cost, 0.05) * max(own, 0.05)),
    "gain / cost (the first dial)": lambda gain, cost, own: gain / max(cost, 0.05),
    "gain * exp(-own / 2) / sqrt(cost)": lambda gain, cost, own: gain * math.exp(-own / 2) / math.sqrt(max(cost, 0.05)),
    "gain - cost - 3 own": lambda gain, cost, own: gain - cost - 3 * own,
    "- own": lambda gain, cost, own: -own,
    "gain": lambda gain, cost, own: gain,
}
BEFORE = ("dial", "gain / (cost * own) (dial before)")  # idle drafts left out


def of(rule: Rule) -> Control:
    """Return a rule of stakes as one of questions."""
    return lambda question: rule(*question.stakes()[:3])


def auc(questions: Sequence[Question], rule: Control, veto: bool) -> tuple[float, int, int]:
    """Return how often a misled known fact scores above an unknown one that the passage answered; and both counts."""
    scores: dict[bool, list[float]] = {True: [], False: []}
    for question in questions:
        plain, memory = (question.drafts[name][1].get("accuracy", 0) for name in ("unmodified", "memory"))
        misled = question.state in ("conflict", "irrelevant", "noisy") and memory == 1 and plain == 0
        helped = question.state.startswith(("helpful", "desk")) and plain == 1 and memory == 0
        if misled or helped:
            score = rule(question)
            if not math.isnan(score):
                scores[misled].append(-math.inf if veto and question.stakes()[3] else score)
    pairs = [(a > b) + (a == b) / 2 for a in scores[True] for b in scores[False]]
    return float(np.mean(pairs)) if pairs else math.nan, len(scores[True]), len(scores[False])


def area(questions: Sequence[Question]) -> str:
    """Return the mean *helpful* on the way from plain to closed book, by ParR, of the rule and the one before it."""
    conflicts = [q for q in questions if q.state == "conflict" and q.known]
    helpful = [q for q in questions if q.state.startswith(("helpful", "desk"))]
    if not conflicts or not helpful:
        return ""
    both, groups = [*conflicts, *helpful], sorted({q.group for q in [*conflicts, *helpful]})
    of = np.array([groups.index(q.group) for q in both])
    known = np.arange(len(both)) < len(conflicts)
    plain, memory = (
        np.array([q.drafts[d][1].get("parr" if k else "accuracy", 0) for q, k in zip(both, known, strict=True)])
        for d in ("unmodified", "memory")
    )
    scores = {
        name: np.array([-math.inf if q.stakes()[3] else RULES[name](*q.stakes()[:3]) for q in both]) for name in BEFORE
    }

    def one(score: np.ndarray, weight: np.ndarray) -> float:
        levels = np.unique(score)[::-1]
        given = np.vstack([np.zeros(len(both), bool), score >= levels[:, None], np.ones(len(both), bool)])
        right = np.where(given, memory, plain) * weight
        parr, kept = (right[:, k].sum(1) / max(weight[k].sum(), 1) for k in (known, ~known))
        return float(100 * np.trapezoid(kept, parr) / max(parr[-1] - parr[0], 1e-9))

    draws = []
    for pick in np.random.default_rng(0).integers(0, len(groups), (1000, len(groups))):
        weight = np.bincount(pick, minlength=len(groups))[of]
        draws.append([one(score, weight) for score in scores.values()])
    ours, before = (one(score, np.ones(len(both))) for score in scores.values())
    low, high = np.quantile(np.subtract(*np.transpose(draws)), [0.025, 0.975])
    told = f"{before:.0f} before ({ours - before:+.0f} [{low:+.0f}, {high:+.0f}]; n {len(conflicts)}, {len(helpful)})"
    return f"Mean helpful from plain to closed book: {ours:.0f}, {told}"


def gap(questions: Sequence[Question], policy: AnswerPolicy | str, metric: str) -> str:
    """Return a policy's figure and its difference to the plain model, with the interval."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for question in questions:
        ours, plain = question.given(policy), question.drafts["unmodified"][1]
        groups.setdefault(question.group, []).append((ours.get(metric, 0), plain.get(metric, 0)))
    sums = np.array([(len(v), sum(a for a, _ in v), sum(a - b for a, b in v)) for v in groups.values()])
    picks = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    drawn = sums[picks].sum(axis=1)
    low, high = np.quantile(100 * drawn[:, 2] / drawn[:, 0], [0.025, 0.975])
    n, value, difference = sums.sum(axis=0)
    return f"{100 * value / n:.0f} ({100 * difference / n:+.0f} [{low:+.0f}, {high:+.0f}])"


def report(path: Path) -> str:
    """Return the tables of one model."""
    questions = [Question.of(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    blocks = [f"## {path.stem}", "| rule | AUC | with idle drafts left out |\n|---|---|---|"]
    for name, rule in {**{name: of(rule) for name, rule in RULES.items()}, **BASELINES}.items():
        plain, veto = auc(questions, rule, False), auc(questions, rule, True)
        blocks[-1] += f"\n| {name} | {plain[0]:.2f} ({plain[1]}, {plain[2]}) | {veto[0]:.2f} |"
    blocks.append(area(questions))
    columns = {"known conflicts: ParR": "parr", "conflicts: ConR": "conr"}
    columns |= {s: "accuracy" for s in sorted({q.state for q in questions} - {"conflict"})}
    cells = {
        "known conflicts: ParR": [q for q in questions if q.state == "conflict" and q.known],
        "conflicts: ConR": [q for q in questions if q.state == "conflict"],
    }
    cells |= {s: [q for q in questions if q.state == s] for s in columns if s not in cells}
    columns = {name: metric for name, metric in columns.items() if cells[name]}
    heads = [f"{name} (n={len(cells[name])})" for name in columns]
    table = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    rows = {f"alpha {alpha:g}": ck.Control(alpha=alpha).policy() for alpha in ALPHAS}
    rows |= {"adaptive": ck.Control(adaptive=True).policy()}
    for told, policy in [*rows.items(), ("CAD 0.5", "context"), ("closed book", "memory")]:
        if isinstance(policy, (AnswerPolicy, str)):
            row = [gap(cells[name], policy, metric) for name, metric in columns.items()]
            table.append(f"| {told} | {' | '.join(row)} |")
    return "\n\n".join([*blocks, "\n".join(table)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drafts", type=Path, nargs="+")
    print("\n\n".join(map(report, parser.parse_args().drafts)))


if __name__ == "__main__":
    main()
