"""The figures of benchmarks/dial.py: a finished run's samples to frontiers, differences, levels and their intervals.

Knows run folders and arms; knows no table. Differences are paired by record and clustered by question (ckcontrol.eval's
own); areas are recomputed on every bootstrap draw of the questions, with ± t standard errors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ckcontrol.errors import EvalError
from ckcontrol.eval.figures.cells import Cell, collect
from ckcontrol.eval.figures.dial_curve import violations
from ckcontrol.eval.figures.intervals import DRAWS, holm
from ckcontrol.eval.figures.resampling import Floats, by_group, effective, quantile, resample
from ckcontrol.eval.figures.rows import Line, difference_row, estimate_row, rounded
from ckcontrol.eval.items.states import FIVE
from ckcontrol.eval.judging.measures import METRICS
from ckcontrol.eval.run_files import lines, read_json, samples

LIMITS = {"facts": 200, "counterfact": 100, "nq_swap": 80, "ramdocs": 40}
CONFLICTS = ("facts", "counterfact", "nq_swap")
DIAL = [f"dial@{a}" for a in ("0", "0.25", "0.4", "0.45", "0.5", "0.55", "0.6", "0.65", "0.75", "0.9", "1")]
PLUG = [f"ck-plug@{a}" for a in ("0", "0.25", "0.6", "0.75", "0.9", "1")]
GATED = [[f"ck-plug:gate={k}@{a}" for a in ("0.75", "0.9", "1")] for k in (2, 4)]
CAD = [f"cad:cad_alpha={a}" for a in ("0.5", "1", "2")]
STATIC = [f"cad@{a}" for a in ("0.55", "0.6", "0.7", "0.8")]
SINGLE = ["arr", "grd", "nwcad", "acd", "ck-plug-adaptive"]
METHODS = [
    "off",
    "closed-book",
    "prompt",
    "prompt-memory",
    *DIAL,
    "dial-adaptive",
    *PLUG,
    *GATED[0],
    *GATED[1],
    *CAD,
    *STATIC,
]
METHODS += ["adacad", "coiecd", *SINGLE]
ENDS = ["off", "closed-book"]  # anyone has these two without a method: they are settings of every family
FAMILIES = {
    "dial": DIAL[5:],
    "dial, four settings": ["dial@0.6", "dial@0.75", "dial@0.9", "dial@1"],
    "ck-plug": PLUG[2:],
    "ck-plug, kappa 2": GATED[0],
    "ck-plug, kappa 4": GATED[1],
    "static": STATIC,
    **{name: [name] for name in SINGLE},
    "no method": [],
}
KNOBS = {"dial": DIAL, "ck-plug": [*PLUG[:2], "off", *PLUG[2:]], "static": [*CAD[::-1], "off", *STATIC, "closed-book"]}
KNOBS |= {f"ck-plug, kappa {k}": ["off", *arms] for k, arms in zip((2, 4), GATED, strict=True)}
RIVALS = ["off", "closed-book", "arr", "acd", "adacad", "coiecd", "grd", "nwcad", "ck-plug-adaptive"]
SAME = {"dial@0.5": "off", "dial@1": "closed-book"}


def in_report_half(fact: str) -> bool:
    """Return whether a fact, by its id, is not one of those the method was developed on."""
    return int(hashlib.sha256(fact.encode()).hexdigest(), 16) % 2 == 1


# --- a finished run -------------------------------------------------------------------------------------------------


class Answers:
    """A finished run without the facts of the development half; cells pooled as asked."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "results.json").is_file():
            raise EvalError(f"{folder} holds no finished run.", "The command that began it continues it.")
        self.card = read_json(folder / "run.json")
        self.longest = (self.card.get("options") or {}).get("max_new_tokens")
        items = list(lines(folder / "items.jsonl"))
        kept = [i for i in items if i["task"] != "facts" or in_report_half(i["meta"]["fact"])]
        self.left_out = len(items) - len(kept)
        self.texts: dict[str, dict[tuple[str, str], Any]] = {}
        self.cells = collect(kept, self._noting(folder, {(i["task"], i["id"]) for i in kept}))
        self.arms = [arm["name"] for arm in self.card["arms"]]
        self.missing = [name for name in METHODS if name not in self.arms]

    def _noting(self, folder: Path, wanted: set[tuple[str, str]]) -> Iterator[Line]:
        for sample in samples(folder):
            key = sample["task"], sample["id"]
            if sample["arm"] in {*SAME, *SAME.values()} and key in wanted:
                self.texts.setdefault(sample["arm"], {})[key] = sample.get("text")
            yield sample

    def cell(self, arm: str, tasks: Sequence[str] = tuple(LIMITS), states: Sequence[str] = ()) -> Cell:
        """Return the samples of some tasks and states (none: all of them) as one cell; empty where there are none."""
        out = Cell()
        for (task, state, name), cell in self.cells.items():
            if name == arm and task in tasks and (not states or state in states):
                out.rows |= {f"{task} {i}": row for i, row in cell.rows.items()}
                out.errors += cell.errors
        return out

    def mixture(self, arm: str, states: Sequence[str] = FIVE) -> Cell:
        """Return the accuracy on facts with the same weight for every state, scaled to effective observations."""
        sizes = [len(self.cell("off", ["facts"], [state]).rows) for state in states]
        out = Cell()
        if all(sizes):
            scale = len(sizes) / sum(1 / size for size in sizes)
            for state, size in zip(states, sizes, strict=True):
                for i, (group, found) in self.cell(arm, ["facts"], [state]).rows.items():
                    weight = scale / size
                    out.rows[i] = group, {"accuracy": (found["accuracy"][0] * weight, weight)}
        return out

    def same(self) -> Line:
        """Return how many answers of either end differ from those of the model alone."""
        both = {arm: (self.texts[arm], self.texts[other]) for arm, other in SAME.items() if arm in self.texts}
        return {arm: {"n": len(a), "differ": sum(a[key] != b.get(key) for key in a)} for arm, (a, b) in both.items()}


def figure(cell: Cell, metric: str, longest: float | None = None) -> Line | None:
    """Return a figure with its interval; None where it is unknown."""
    return estimate_row(cell.estimate(metric, longest)) if cell.has(metric) else None


def gap(a: Cell, b: Cell, metric: str, longest: float | None = None) -> Line | None:
    """Return a paired difference; None where one side has no figure."""
    found = a.minus(b, metric, longest)
    if found is None or math.isnan(found.value):
        return None
    return {"metric": metric, "a": rounded(found.a), "b": rounded(found.b), **difference_row(found)}


def judged(rows: Sequence[Line]) -> list[Line]:
    """Return rows with p corrected over them (Holm) and a verdict; by the interval where there is no test."""
    corrected = holm([row.get("p", math.nan) for row in rows])
    out = []
    for row, p in zip(rows, corrected, strict=True):
        known = row["low"] is not None
        clear = p < 0.05 if "p" in row else known and (row["low"] > 0 or row["high"] < 0)
        verdict = "even" if not clear else "better" if row["difference"] > 0 else "worse"
        out.append(row | {"p_holm": rounded(p), "verdict": verdict})
    return out


# --- memory side ----------------------------------------------------------------------------------------------------


def staircase(parr: Floats, helpful: Floats) -> Floats:
    """Return the area under the best `helpful` of the settings whose `parr` is at least p, over p from 0 to 1.

    Both are [..., settings]; where no setting comes up to p, it counts 0.
    """
    order = np.argsort(-parr, axis=-1, kind="stable")
    levels, found = (np.take_along_axis(x, order, -1) for x in (parr, helpful))
    widths = levels - np.concatenate([levels[..., 1:], np.zeros_like(levels[..., :1])], axis=-1)
    return np.asarray((widths * np.maximum.accumulate(found, axis=-1)).sum(axis=-1))


def hull(parr: Floats, helpful: Floats) -> Floats:
    """As `staircase`, where settings may also be drawn by lot, question by question: the straight lines between."""
    areas = [
        _hull(list(zip(p, h, strict=True))) for p, h in zip(np.atleast_2d(parr), np.atleast_2d(helpful), strict=True)
    ]
    return np.asarray(areas).reshape(parr.shape[:-1])


def _hull(points: list[tuple[float, float]]) -> float:
    kept: list[tuple[float, float]] = []
    for p, h in sorted(points, key=lambda point: (-point[0], -point[1])):
        if kept and h <= kept[-1][1]:
            continue
        while len(kept) > 1 and (kept[-1][1] - kept[-2][1]) * (kept[-1][0] - p) <= (h - kept[-1][1]) * (
            kept[-2][0] - kept[-1][0]
        ):
            kept.pop()
        kept.append((p, h))
    return sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(kept)) + kept[-1][0] * kept[-1][1]


def rates(conflict: Sequence[Cell], helpful: Sequence[Cell], draws: int = DRAWS) -> tuple[Floats, Floats, float, int]:
    """Return parr and helpful [1 + draws, settings], observed first, then of questions drawn again; t; and groups.

    All settings share a draw, so differences of what is made of them are paired.
    """
    blocks, labels = [], []
    for place, (cells, metric) in enumerate(((conflict, "parr"), (helpful, "accuracy"))):
        ids = sorted({i for cell in cells for i in cell.rows})
        block = np.zeros((len(ids), 4, len(cells)))
        for at, cell in enumerate(cells):
            for row, i in enumerate(ids):
                block[row, 2 * place : 2 * place + 2, at] = cell.rows[i][1].get(metric, (0, 0)) if i in cell.rows else 0
        labels += [next(cell.rows[i][0] for cell in cells if i in cell.rows) for i in ids]
        blocks.append(block.reshape(len(ids), -1))
    sums = by_group(np.vstack(blocks), np.asarray(labels))
    every = np.vstack([sums.sum(axis=0), resample(sums, draws, 0)]).reshape(draws + 1, 4, -1)
    every = every[(every[:, 1::2] > 0).all(axis=(1, 2))]
    weights = sums.reshape(len(sums), 4, -1)[:, 1::2, 0]
    t = quantile(min(effective(weights[:, 0]), effective(weights[:, 1])) - 1)
    return every[:, 0] / every[:, 1], every[:, 2] / every[:, 3], t, len(sums)


def spread(values: Floats, t: float, groups: int) -> Line:
    """Return the first value with the interval that the others, its bootstrap draws, give it."""
    error = float(values[1:].std()) * math.sqrt(groups / max(1, groups - 1))
    found = {"difference": rounded(values[0]), "low": None, "high": None}
    if error > 1e-12:
        found |= {"low": rounded(values[0] - t * error), "high": rounded(values[0] + t * error)}
    return found


def frontier(answers: Answers, draws: int = DRAWS) -> list[Line]:
    """Return one line per family of methods: its areas, and the dial's (whole and with four settings) minus them."""
    families = {name: [a for a in arms if a in answers.arms] for name, arms in FAMILIES.items()}
    families = {name: [*ENDS, *arms] for name, arms in families.items() if arms or not FAMILIES[name]}
    arms = sorted({arm for members in families.values() for arm in members})
    cells = [[answers.cell(arm, ["facts"], [state]) for arm in arms] for state in ("conflict", "helpful")]
    if not all(cell.rows for each in cells for cell in each):
        return []
    parr, helpful, t, groups = rates(*cells, draws)
    places = {name: [arms.index(arm) for arm in members] for name, members in families.items()}
    out = []
    areas = {
        kind: {name: area(parr[:, at], helpful[:, at]) for name, at in places.items()}
        for kind, area in (("staircase", staircase), ("hull", hull))
    }
    for name, members in families.items():
        line: Line = {"family": name, "settings": len(set(members) - set(ENDS))}
        for kind, found in areas.items():
            line[kind] = rounded(found[name][0])
            for ours in ("dial", "dial, four settings"):
                if ours in families and not name.startswith("dial"):
                    row = {"metric": f"{kind} area", "state": "conflict and helpful", "arm": ours, "against": name}
                    told = row | {"task": "facts"} | spread(found[ours] - found[name], t, groups)
                    line[f"{kind}: {ours}"] = judged([told])[0]
        out.append(line)
    return out


# --- context end, monotony, adaptive form, fluency --------------------------------------------------------------------


def against(cells: dict[str, Cell], others: dict[str, Cell], metric: str, where: Line) -> list[Line]:
    """Return every cell minus every other, corrected over all of them."""
    rows = []
    for arm, cell in cells.items():
        for name, other in others.items():
            found = gap(cell, other, metric)
            if found is not None:
                rows.append({**where, "arm": arm, "against": name, **found})
    return judged(rows)


def context_end(answers: Answers) -> tuple[list[Line], list[Line]]:
    """Return what the dial below 0.5 gains in conflicts over CAD and the plain model, and what either costs."""
    gains, costs = [], []
    for task in CONFLICTS:
        of = {arm: answers.cell(arm, [task], ["conflict"]) for arm in [*DIAL[:4], "off", *CAD]}
        where = {"task": task, "state": "conflict"}
        gains += against({a: of[a] for a in DIAL[:4]}, {a: of[a] for a in ["off", *CAD]}, "conr", where)
    for state in FIVE[1:]:
        of = {arm: answers.cell(arm, ["facts"], [state]) for arm in [*DIAL[:4], *CAD, "off"]}
        where = {"task": "facts", "state": state}
        costs += against({a: of[a] for a in [*DIAL[:4], *CAD]}, {"off": of["off"]}, "accuracy", where)
    return gains, costs


def turned(cells: Sequence[Cell], metric: str = "mr") -> Line:
    """Return what a knob does over its settings, context first: values, steps down, clear reversals, clear levels.

    A reversal is a pair of settings of which the later lies below the earlier, a level a setting above the level before
    it (the first setting is one), both by the paired test at 5 %, uncorrected: the stricter way for reversals, the
    kinder for levels.
    """
    values = [figure(cell, metric) for cell in cells]
    known = [cell for cell, value in zip(cells, values, strict=True) if value is not None]
    found = [gap(b, a, metric) for a, b in combinations(known, 2)]
    reversals = sum(g is not None and g["p"] < 0.05 and g["difference"] < 0 for g in found)
    counted = known[:1]
    for cell in known[1:]:
        step = gap(cell, counted[-1], metric)
        if step is not None and step["p"] < 0.05 and step["difference"] > 0:
            counted.append(cell)
    told = [None if value is None else value["value"] for value in values]
    steps = violations([value for value in told if value is not None])
    return {"mr": told, "down": steps, "reversals": reversals, "levels": len(counted)}


def monotone(answers: Answers) -> list[Line]:
    """Return one line per data set and knob."""
    out = []
    for task in CONFLICTS:
        for name, arms in KNOBS.items():
            there = [arm for arm in arms if answers.cell(arm, [task], ["conflict"]).rows]
            if set(there) - {"off", "closed-book"}:
                found = turned([answers.cell(arm, [task], ["conflict"]) for arm in there])
                out.append({"task": task, "method": name, "arms": there, **found})
    return out


def adaptive(answers: Answers) -> list[Line]:
    """Return dial-adaptive minus every rival, on the mixtures of states and on each other data set."""
    kinds: list[tuple[str, str, str, Any]] = [
        ("facts", "five states", "accuracy", answers.mixture),
        ("facts", "four states", "accuracy", lambda arm: answers.mixture(arm, FIVE[1:])),
        ("facts", "noisy", "accuracy", lambda arm: answers.cell(arm, ["facts"], ["noisy"])),
        ("ramdocs", "all", "set_em", lambda arm: answers.cell(arm, ["ramdocs"])),
        ("ramdocs", "all", "accuracy", lambda arm: answers.cell(arm, ["ramdocs"])),
        *(
            (task, "conflict", "accuracy", lambda arm, t=task: answers.cell(arm, [t], ["conflict"]))
            for task in CONFLICTS[1:]
        ),
    ]
    out = []
    for task, state, metric, of in kinds:
        rivals = {name: of(name) for name in RIVALS}
        out += against({"dial-adaptive": of("dial-adaptive")}, rivals, metric, {"task": task, "state": state})
    return out


def fluency(answers: Answers) -> list[Line]:
    """Return how every arm reads beside the plain model: perplexity as a ratio, the rest as differences."""
    out = []
    for arm in answers.arms:
        line: Line = {"arm": arm}
        for name, metric, tasks in [
            *((task, "ppl_closed", [task]) for task in LIMITS),
            *((metric, metric, tuple(LIMITS)) for metric in ("repeat4", "eos", "length")),
        ]:
            found = gap(answers.cell(arm, tasks), answers.cell("off", tasks), metric, answers.longest)
            if found is not None and METRICS[metric].logarithmic:
                ends = {key: found[key] for key in ("difference", "low", "high")}
                found |= {key: rounded(math.exp(value)) if value is not None else None for key, value in ends.items()}
            line[name] = found
        out.append(line)
    return out


def table(answers: Answers) -> list[Line]:
    """Return the figures of every arm, by task and state."""
    sources = ("parr", "conr", "neither", "mr")
    wanted = [("facts", "conflict", metric) for metric in sources]
    wanted += [("facts", state, "accuracy") for state in FIVE[1:]]
    wanted += [(task, "conflict", metric) for task in CONFLICTS[1:] for metric in sources]
    wanted += [("ramdocs", "", metric) for metric in ("set_em", "accuracy")]
    out = []
    for arm in answers.arms:
        cells = {(t, s): answers.cell(arm, [t], [s] if s else []) for t, s, _ in wanted}
        figures = {f"{t} {s} {m}".replace("  ", " "): figure(cells[t, s], m, answers.longest) for t, s, m in wanted}
        out.append({"arm": arm, "errors": answers.cell(arm).errors, **figures})
    return out
