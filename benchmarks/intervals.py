"""How often do the 95 % intervals of ckcontrol.eval.figures hold the truth, where the truth is known?

    OMP_NUM_THREADS=1 python benchmarks/intervals.py --runs 1000 --json intervals.json

Questions are drawn with their own rate (a beta distribution around the true one), rows of a question share it, and both
arms of a pair share rows. Every line is one setting: how many questions, how many rows each has, the true rates; then,
for mean, memorisation ratio, paired difference of means and of ratios, the share of runs whose interval holds the
truth, the mean width, and in brackets the same for the percentiles of the same bootstrap, which are not used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ckcontrol.eval.figures.intervals import difference, estimate
from ckcontrol.eval.figures.resampling import by_group, resample

ROWS = {"1": (1,), "4": (4,), "1-6": (1, 1, 1, 2, 3, 6)}  # rows per question, drawn with equal chance
GROUPS = (10, 20, 40, 84, 200, 400)
RATES = ((0.5, 0.3), (0.2, 0.2), (0.1, 0.05), (0.9, 0.6))  # of arm a and of what arm b does not share with it
SHARED = 0.5  # share of rows on which both arms do the same
NAMED = 0.7  # share of rows that name either answer
WITHIN = 0.4  # correlation of the rows of a question
KINDS = ("mean", "mr", "difference", "mr difference")
Floats = Any


def draw(rng: np.random.Generator, groups: int, sizes: Sequence[int], rates: tuple[float, float]) -> tuple[Floats, ...]:
    """Return labels and, one value per row, memory and named of both arms as 0 and 1."""
    labels = np.repeat(np.arange(groups), rng.choice(sizes, groups))
    count = len(labels)

    def beta(mean: float) -> Floats:
        scale = (1 - WITHIN) / WITHIN
        return rng.beta(mean * scale, (1 - mean) * scale, groups)[labels]

    named = [rng.random(count) < NAMED for _ in "ab"]
    memory = [(rng.random(count) < beta(rate)) for rate in rates]
    same = rng.random(count) < SHARED
    named[1], memory[1] = np.where(same, named[0], named[1]), np.where(same, memory[0], memory[1])
    return (labels, *(x.astype(float) for x in (memory[0], named[0], memory[1], named[1])))


def percentiles(columns: Sequence[Floats], labels: Floats, draws: int) -> tuple[float, float]:
    """Return the percentile interval of a ratio, or of the difference of two."""
    drawn = resample(by_group(np.stack(columns, axis=1), labels), draws, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = drawn[:, 0] / drawn[:, 1]
        if len(columns) == 4:
            values = values - drawn[:, 2] / drawn[:, 3]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def coverage(
    groups: int, sizes: Sequence[int], rates: tuple[float, float], runs: int, seed: int = 0, draws: int = 2000
) -> dict[str, dict[str, float]]:
    """Return for each of `KINDS` the coverage and mean width of ours and of the percentiles, over `runs` runs."""
    rng = np.random.default_rng([seed, groups, len(sizes), *(round(1000 * rate) for rate in rates)])
    second = SHARED * rates[0] + (1 - SHARED) * rates[1]
    truth = dict(zip(KINDS, (rates[0], rates[0], rates[0] - second, rates[0] - second), strict=True))
    hits = {kind: np.zeros(4) for kind in KINDS}
    for _ in range(runs):
        labels, memory_a, named_a, memory_b, named_b = draw(rng, groups, sizes, rates)
        ones, both_a, both_b = np.ones_like(named_a), memory_a * named_a, memory_b * named_b
        for kind, columns in zip(
            KINDS,
            ([memory_a, ones], [both_a, named_a], [memory_a, ones, memory_b, ones], [both_a, named_a, both_b, named_b]),
            strict=True,
        ):
            if len(columns) == 2:
                found: Any = estimate(columns[0], labels, columns[1], draws=draws)
            else:
                found = difference(columns[0], columns[2], labels, columns[1], columns[3], draws=draws, flips=1)
            other = percentiles(columns, labels, draws)
            for place, (low, high) in enumerate(((found.low, found.high), other)):
                hits[kind][2 * place] += low - 1e-12 <= truth[kind] <= high + 1e-12
                hits[kind][2 * place + 1] += high - low
    names = ("coverage", "width", "coverage_percentile", "width_percentile")
    return {kind: dict(zip(names, (hits[kind] / runs).tolist(), strict=True)) for kind in KINDS}


def shown(x: dict[str, float]) -> str:
    ours = f"{x['coverage']:6.1%} {x['width']:.3f}"
    return f"{ours} [{x['coverage_percentile']:6.1%} {x['width_percentile']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap draws per run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default=None, help="also write the figures to this file")
    args = parser.parse_args()
    print(f"{args.runs} runs per line, {args.draws} draws; coverage width [percentiles]")
    print(f"{'groups':>6} {'rows':>5} {'rates':>11}   " + "".join(f"{kind:<33}" for kind in KINDS))
    rows = []
    for groups in GROUPS:
        for name, sizes in ROWS.items():
            for rates in RATES:
                found = coverage(groups, sizes, rates, args.runs, args.seed, args.draws)
                rows.append({"groups": groups, "rows": name, "rates": rates, **found})
                cells = "".join(shown(x).ljust(33) for x in found.values())
                print(f"{groups:>6} {name:>5} {rates[0]:>5} {rates[1]:>5}   {cells}", flush=True)
    if args.json:
        about = {"runs": args.runs, "draws": args.draws, "seed": args.seed, "rows": rows}
        Path(args.json).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
