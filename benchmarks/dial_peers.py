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
from dial_figures import hull
from dial_rules import ALPHAS, BASELINES, RULES, Question, of

import ckcontrol as ck
from ckcontrol.eval.figures.intervals import holm
from ckcontrol.eval.items.states import FIVE
from ckcontrol.policies import AnswerPolicy

DRAWS = 4000
GIVEN = {"plain": "unmodified", "closed book": "memory", "CAD 0.5": "context"}
SETTINGS = (0.6, 0.75, 0.9)  # of the families that have some
Floats = np.ndarray[Any, np.dtype[np.float64]]


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

    def given(self, arm: str | AnswerPolicy) -> list[dict[str, Any]]:
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


def interval(values: Floats, scale: float = 100) -> tuple[float, float, float]:
    """Return the observed value and its 95 % interval over the draws."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return scale * values[0], scale * low, scale * high


def told(values: Floats, scale: float = 100, digits: int = 0) -> str:
    """Return a difference with its interval."""
    return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*interval(values, scale), d=digits)


def contrasts(ours: Floats, others: dict[str, Floats], scale: float = 100, digits: int = 0) -> list[str]:
    """Return one line per other: its value, ours minus it, and p after Holm over all of them."""
    ps = []
    for other in others.values():
        gap = (ours - other)[1:]
        gap = gap[~np.isnan(gap)]
        ps.append(min(1.0, 2 * (1 + min((gap <= 0).sum(), (gap >= 0).sum())) / (1 + len(gap))))
    rows = []
    for (name, other), p in zip(others.items(), holm(ps), strict=True):
        rows.append(f"| {name} | {scale * other[0]:.{digits}f} | {told(ours - other, scale, digits)} | {p:.3f} |")
    return rows


def states(sample: Sample, given: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the table of states."""
    of_state = {state: [q.state == state for q in sample.questions] for state in {q.state: 0 for q in sample.questions}}
    columns: list[tuple[str, str, list[bool]]] = []
    for state, chosen in sorted(of_state.items()):
        if state == "conflict":
            known = [q.state == state and q.known for q in sample.questions]
            columns += [("known conflicts: ParR", "parr", known), ("conflicts: ConR", "conr", chosen)]
        else:
            columns.append((state, "accuracy", chosen))
    heads = [f"{name} (n={sum(chosen)})" for name, _, chosen in columns]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
    for arm, answers in given.items():
        cells = []
        for _, metric, chosen in columns:
            ours, plain = (
                sample.share([a["judged"].get(metric, 0) for a in each], chosen) for each in (answers, given["plain"])
            )
            cells.append(f"{100 * ours[0]:.0f}" + (f" ({told(ours - plain)})" if arm != "plain" else ""))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def mixed(sample: Sample, answers: list[dict[str, Any]]) -> Floats:
    """Return the mean accuracy of the five states, each with the same weight."""
    right = [a["judged"].get("accuracy", 0) for a in answers]
    return np.mean([sample.share(right, [q.state == s and q.state in FIVE for q in sample.questions]) for s in FIVE], 0)


def areas(sample: Sample, given: dict[str, list[dict[str, Any]]]) -> dict[str, Floats]:
    """Return each family's area of ParR against *helpful*, its settings beside the two ends, which anyone has."""
    families = {"dial": [f"dial {a:g}" for a in SETTINGS], "ck-plug": [f"ck-plug {a:g}" for a in SETTINGS]}
    families |= {name: [name] for name in ("dial adaptive", *sample.peers) if name not in families["ck-plug"]}
    families |= {"no method": []}
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


def perplexity(sample: Sample, given: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return each arm's perplexity under the unmodified model with the passages, over the plain answers'."""
    peaceful = [q.state != "conflict" for q in sample.questions]

    def mean(answers: list[dict[str, Any]]) -> Floats:
        sums, sizes = ([f(a["ctx"]) for a in answers] for f in (math.fsum, len))
        return -sample.share(sums, peaceful) / sample.share(sizes, peaceful)

    plain = mean(given["plain"])
    lines = [f"Perplexity, {sum(peaceful)} questions without conflict: plain {math.exp(plain[0]):.2f}; ratios to it:"]
    ratios = {arm: np.exp(mean(answers) - plain) for arm, answers in given.items() if arm != "plain"}
    told_ = ["{} {:.2f} [{:.2f}, {:.2f}]".format(arm, *interval(r, 1)) for arm, r in ratios.items()]
    return [f"{lines[0]} {'; '.join(told_)}."]


def report(path: Path) -> str:
    """Return the tables of one file."""
    sample = Sample(path)
    given = {name: sample.given(arm) for name, arm in arms(sample).items()}
    head = "|---|---|---|---|"
    blocks = [[f"## {sample.name}: {len(sample.questions)} questions"], states(sample, given)]
    found = {q.state for q in sample.questions}
    if found.issuperset(FIVE):
        mixtures = {name: mixed(sample, answers) for name, answers in given.items()}
        ours = mixtures.pop("dial adaptive")
        rows = contrasts(ours, {n: m for n, m in mixtures.items() if not n.startswith("dial")})
        blocks.append([f"| mean of five states: dial adaptive {100 * ours[0]:.0f} | % | minus it | p |", head, *rows])
    if {"conflict", "helpful"} <= found:
        area = areas(sample, given)
        for name in ("dial", "dial adaptive"):
            ours = area[name]
            rows = contrasts(ours, {n: a for n, a in area.items() if not n.startswith("dial")})
            blocks.append([f"| area ParR x helpful: {name} {100 * ours[0]:.0f} | % | minus it | p |", head, *rows])
        ours = ranked(sample, of(RULES["dial"]), True)
        rivals = {f"{n}, idle out": ranked(sample, of(r), True) for n, r in RULES.items() if n != "dial"}
        rivals |= {f"{n}, all drafts": ranked(sample, of(r), False) for n, r in RULES.items()}
        rivals |= {n: ranked(sample, r, False) for n, r in BASELINES.items() if "popularity" not in n}
        rivals |= {"plain draft is short (tokens)": 1 - rivals["plain draft is long (tokens)"]}
        value = "{:.2f} [{:.2f}, {:.2f}]".format(*interval(ours, 1))
        blocks.append([f"| AUC: dial {value} | AUC | minus it | p |", head, *contrasts(ours, rivals, 1, 2)])
    blocks.append(perplexity(sample, given))
    return "\n\n".join("\n".join(block) for block in blocks)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drafts", type=Path, nargs="+")
    print("\n\n".join(map(report, parser.parse_args().drafts)))


if __name__ == "__main__":
    main()
