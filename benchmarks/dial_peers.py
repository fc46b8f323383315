"""The dial beside other methods on the same questions, from what `dial_drafts.py --peers` wrote: no model is run.

    python benchmarks/dial_peers.py report/qwen.jsonl report/gemma.jsonl

Per file: accuracy in every state minus the plain model's; the mean of the five states of facts (a known conflict counts
by memory's answer) and the area under ParR against *helpful*, each minus what every other method has; how well the rule
ranks answers that a passage misled (AUC) minus other rules; and perplexity beside the plain answers'. Everything is
recomputed on 4,000 bootstrap draws of the questions, all records of one drawn together; p values are twice the share of
draws on the other side of 0, corrected over a table (Holm): with a handful of questions they are too small.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from areas import hull
from dial_rules import ALPHAS, BASELINES, RULES, Question, of

import ckcontrol as ck
from ckcontrol.eval.figures.intervals import holm
from ckcontrol.eval.items.states import FIVE
from ckcontrol.policies import AnswerPolicy

DRAWS = 4000
GIVEN = {"plain": "unmodified", "closed book": "memory", "CAD 0.5": "context"}
SETTINGS = (0.6, 0.75, 0.9)  # of the families that have some
Floats = np.ndarray[Any, np.dtype[np.float64]]
Line = dict[str, Any]
Given = dict[str, list[Line]]  # the answer that each arm gives to each question


class Sample:
    """The questions of a file, and how often each counts in every draw."""

    def __init__(self, path: Path) -> None:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self.name, self.questions, self.rows = path.stem, [Question.of(row) for row in rows], rows
        groups = sorted({q.group for q in self.questions})
        place = np.array([groups.index(q.group) for q in self.questions])
        draws = np.random.default_rng(0).integers(0, len(groups), (DRAWS, len(groups)))
        counts = np.stack([np.bincount(draw, minlength=len(groups)) for draw in draws])
        self.weights = np.vstack([np.ones(len(place)), counts[:, place]])  # the observed sample, then the draws
        self.peers = list(rows[0].get("peers", {}))

    def given(self, arm: str | AnswerPolicy) -> list[Line]:
        """Return the answer that an arm gives to each question, as it was written down."""
        out = []
        for question, row in zip(self.questions, self.rows, strict=True):
            if arm in self.peers:
                out.append(row["peers"][arm])
                continue
            name = arm
            if isinstance(arm, AnswerPolicy):
                offered = list(arm.drafts)
                name = offered[arm.choose([question.drafts[each][0] for each in offered])]
            out.append(row["drafts"][name])
        return out

    def share(self, values: Sequence[float], chosen: Sequence[bool]) -> Floats:
        """Return the mean of the chosen questions' values in every draw; NaN in a draw that has none of them."""
        weights = self.weights * np.asarray(chosen)
        with np.errstate(invalid="ignore"):
            return np.asarray(weights @ np.asarray(values) / weights.sum(1))


def arms(sample: Sample) -> dict[str, str | AnswerPolicy]:
    """Return every arm by name."""
    found: dict[str, Any] = dict(GIVEN)
    found |= {f"dial {alpha:g}": ck.Control(alpha=alpha).policy() for alpha in sorted({*ALPHAS, *SETTINGS})}
    return found | {"dial adaptive": ck.Control(adaptive=True).policy()} | {name: name for name in sample.peers}


def interval(values: Floats, scale: float = 100) -> list[float]:
    """Return the observed value and its 95 % interval over the draws."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return [round(float(scale * x), 3) for x in (values[0], low, high)]


def contrasts(ours: Floats, others: dict[str, Floats], scale: float = 100) -> Line:
    """Return our value and, for each other, its own, ours minus it, and p after Holm over all of them."""
    ps = []
    for other in others.values():
        gap = (ours - other)[1:]
        gap = gap[~np.isnan(gap)]
        ps.append(min(1.0, 2 * (1 + min((gap <= 0).sum(), (gap >= 0).sum())) / (1 + len(gap))))
    rows: Line = {"value": interval(ours, scale)}
    for (name, other), p in zip(others.items(), holm(ps), strict=True):
        rows[name] = {"value": interval(other, scale)[0], "minus": interval(ours - other, scale), "p": round(p, 4)}
    return rows


def states(sample: Sample, given: Given) -> Line:
    """Return each state's questions and, per arm, its figure and that minus the plain model's."""
    found = sorted({q.state for q in sample.questions})
    columns = {s: ("accuracy", [q.state == s for q in sample.questions]) for s in found if s != "conflict"}
    if "conflict" in found:
        known = [q.state == "conflict" and q.known for q in sample.questions]
        columns["known conflicts: ParR"] = ("parr", known)
        columns["conflicts: ConR"] = ("conr", [q.state == "conflict" for q in sample.questions])
    out: Line = {"n": {name: sum(chosen) for name, (_, chosen) in columns.items()}}
    for arm, answers in given.items():
        out[arm] = {}
        for name, (metric, chosen) in columns.items():
            ours, plain = (
                sample.share([a["judged"].get(metric, 0) for a in each], chosen) for each in (answers, given["plain"])
            )
            out[arm][name] = {"value": interval(ours)[0], "minus plain": interval(ours - plain)}
    return out


def mixed(sample: Sample, answers: list[Line]) -> Floats:
    """Return the mean accuracy of the five states, each with the same weight."""
    right = [a["judged"].get("accuracy", 0) for a in answers]
    return np.mean([sample.share(right, [q.state == s and q.state in FIVE for q in sample.questions]) for s in FIVE], 0)


def areas(sample: Sample, given: Given) -> dict[str, Floats]:
    """Return each family's area of ParR against *helpful*, its settings beside the two ends, which anyone has."""
    families = {name: [f"{name} {alpha:g}" for alpha in SETTINGS] for name in ("dial", "ck-plug")}
    families |= {name: [name] for name in ("dial adaptive", *sample.peers) if name not in families["ck-plug"]}
    families = {name: members for name, members in families.items() if members[0] in given} | {"no method": []}
    conflict = [q.state == "conflict" and q.known for q in sample.questions]
    helpful = [q.state == "helpful" for q in sample.questions]
    ends = ["plain", "closed book"]
    points = {
        arm: (
            sample.share([a["judged"].get("parr", 0) for a in given[arm]], conflict),
            sample.share([a["judged"].get("accuracy", 0) for a in given[arm]], helpful),
        )
        for arm in {*ends, *(arm for members in families.values() for arm in members)}
    }
    found = {}
    for name, members in families.items():
        parr, kept = (np.stack([points[arm][i] for arm in [*ends, *members]], 1) for i in (0, 1))
        found[name] = np.where(np.isnan(parr + kept).any(1), math.nan, hull(np.nan_to_num(parr), np.nan_to_num(kept)))
    return found


def ranked(sample: Sample, rule: Callable[[Question], float], veto: bool) -> Floats:
    """Return the AUC of a rule in every draw: misled answers above those that only the passage gave."""
    scores, misled, helped = [], [], []
    for q in sample.questions:
        plain, memory = (q.drafts[name][1].get("accuracy", 0) for name in ("unmodified", "memory"))
        misled.append(q.state in ("conflict", "irrelevant", "noisy") and memory == 1 and plain == 0)
        helped.append(q.state.startswith(("helpful", "desk")) and plain == 1 and memory == 0)
        scores.append(-math.inf if veto and q.stakes()[3] else rule(q))
    score, one, other = np.asarray(scores), np.asarray(misled), np.asarray(helped)
    wins = (score[one, None] > score[None, other]) + 0.5 * (score[one, None] == score[None, other])
    a, b = sample.weights[:, one], sample.weights[:, other]
    with np.errstate(invalid="ignore"):
        return np.asarray(np.einsum("di,ij,dj->d", a, wins, b, optimize=True) / (a.sum(1) * b.sum(1)))


def perplexity(sample: Sample, given: Given) -> Line:
    """Return each arm's perplexity under the unmodified model with the passages, over the plain answers'."""
    peaceful = [q.state != "conflict" for q in sample.questions]

    def mean(answers: list[Line]) -> Floats:
        sums, sizes = ([f(a["ctx"]) for a in answers] for f in (math.fsum, len))
        return -sample.share(sums, peaceful) / sample.share(sizes, peaceful)

    plain = mean(given["plain"])
    ratios = {arm: interval(np.exp(mean(answers) - plain), 1) for arm, answers in given.items() if arm != "plain"}
    return {"n": sum(peaceful), "plain": interval(np.exp(plain), 1), "ratios": ratios}


def figures(path: Path) -> Line:
    """Return everything that is told of a file."""
    sample = Sample(path)
    given = {name: sample.given(arm) for name, arm in arms(sample).items()}
    out: Line = {"name": sample.name, "n": len(sample.questions), "states": states(sample, given)}
    found = {q.state for q in sample.questions}
    if found.issuperset(FIVE):
        mixtures = {name: mixed(sample, answers) for name, answers in given.items()}
        others = {name: m for name, m in mixtures.items() if not name.startswith("dial")}
        out["five states, %: dial adaptive"] = contrasts(mixtures["dial adaptive"], others)
    if {"conflict", "helpful"} <= found:
        area = areas(sample, given)
        for name in ("dial", "dial adaptive"):
            others = {other: a for other, a in area.items() if not other.startswith("dial")}
            out[f"area ParR x helpful, %: {name}"] = contrasts(area[name], others)
    ours = ranked(sample, of(RULES["dial"]), True)
    if not math.isnan(ours[0]):
        rivals = {f"{n}, idle out": ranked(sample, of(r), True) for n, r in RULES.items() if n != "dial"}
        rivals |= {f"{n}, all drafts": ranked(sample, of(r), False) for n, r in RULES.items()}
        popular = any(q.popularity is not None for q in sample.questions)
        known = {n: r for n, r in BASELINES.items() if popular or "popularity" not in n}
        rivals |= {n: ranked(sample, r, False) for n, r in known.items()}
        out["AUC: dial"] = contrasts(ours, rivals, 1)
    return out | {"perplexity": perplexity(sample, given)}


def report(told: Line) -> str:
    """Return figures as Markdown."""
    sizes = told["states"].pop("n")
    blocks = [[f"## {told['name']}: {told['n']} questions"]]
    heads = " | ".join(f"{name} (n={n})" for name, n in sizes.items())
    blocks.append([f"| | {heads} |", "|---" * (len(sizes) + 1) + "|"])
    for arm, row in told["states"].items():
        cells = [f"{c['value']:.0f} ({'{:+.0f} [{:+.0f}, {:+.0f}]'.format(*c['minus plain'])})" for c in row.values()]
        blocks[-1].append(f"| {arm} | {' | '.join(cells)} |")
    for name, rows in told.items():
        if isinstance(rows, dict) and "value" in rows:
            digits = 2 if "AUC" in name else 0
            value = "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*rows.pop("value"), d=digits)
            blocks.append([f"| {name} {value} | | minus it | p |", "|---|---|---|---|"])
            for other, row in rows.items():
                minus = "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*row["minus"], d=digits)
                blocks[-1].append(f"| {other} | {row['value']:.{digits}f} | {minus} | {row['p']:.3f} |")
    p = told["perplexity"]
    ratios = "; ".join("{} {:.2f} [{:.2f}, {:.2f}]".format(arm, *ratio) for arm, ratio in p["ratios"].items())
    blocks.append([f"Perplexity, {p['n']} questions without conflict: plain {p['plain'][0]:.2f}; over it: {ratios}."])
    return "\n\n".join("\n".join(block) for block in blocks)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drafts", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = [figures(path) for path in args.drafts]
    if args.json:
        args.json.write_text(json.dumps({each["name"]: each for each in found}, indent=1) + "\n", encoding="utf-8")
    print("\n\n".join(map(report, found)))


if __name__ == "__main__":
    main()
