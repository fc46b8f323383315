"""A finished run as the report reads it: estimates, paired differences and arms, looked up by task, state and arm.

Knows results.json and the run card; computes no metric. Holm's correction is over the arms of one task, state and
metric, as results.json has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ckcontrol.errors import EvalError

from ..figures.intervals import holm
from ..records import STATES
from ..run_files import read_json

__all__ = ["HARM_STATES", "LEVEL", "STATES", "Arm", "Estimate", "Pair", "Run", "headline", "number", "read_runs"]

HARM_STATES = ("agree", "helpful", "irrelevant")
LEVEL = 0.05
BASELINES = ("off", "closed-book")


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval; NaN where it is undefined."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Pair:
    """The paired difference of an arm to `off`.

    Attributes:
        difference: Mean difference, arm minus off.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Of the paired test, as results.json has it.
        adjusted: p after Holm's correction over the arms of the same task, state and metric.
        n: Pairs.
    """

    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    n: int

    @property
    def sign(self) -> int:
        """1 higher, -1 lower, 0 not told apart from `off` at 5 % after Holm's correction."""
        return 0 if not self.adjusted < LEVEL or not self.difference else (1 if self.difference > 0 else -1)


@dataclass(frozen=True)
class Arm:
    """One setting of one method; `series` is what its points are joined under, `alpha` None without a dial."""

    name: str
    series: str
    alpha: float | None


class Run:
    """One run directory.

    Args:
        folder: Where run.json, results.json, items.jsonl and samples.jsonl are.
        label: Its short name in the report.

    Raises:
        EvalError: results.json or run.json is missing or is not what `aggregate` writes.
    """

    def __init__(self, folder: Path, label: str) -> None:
        self.folder, self.label = folder, label
        self.results = read_json(folder / "results.json", errors="replace")
        self.card = read_json(folder / "run.json", errors="replace")
        if self.results.get("schema") != 1:
            raise EvalError(
                f"{folder / 'results.json'} has schema {self.results.get('schema')!r}; this report reads 1.",
                "Score the run again with this version.",
            )

    @cached_property
    def speed(self) -> dict[str, Any] | None:
        """What `measure_speed` wrote; None where nothing was timed."""
        path = self.folder / "speed.json"
        return read_json(path) if path.exists() else None

    @cached_property
    def arms(self) -> list[Arm]:
        """Every arm, in the order of the run card; arms that only the cells know come last."""
        told = {str(arm["name"]): arm for arm in self.card.get("arms", ())}
        names = [*told, *(c["arm"] for c in self.results.get("cells", ()) if c["arm"] not in told)]
        arms = []
        for name in dict.fromkeys(names):
            alpha = told.get(name, {}).get("alpha")
            alpha = float(alpha) if _is_number(alpha) else None
            arms.append(Arm(name, name if alpha is None else name.rsplit("@", 1)[0], alpha))
        return arms

    @cached_property
    def series(self) -> dict[str, list[Arm]]:
        """Arms by what they are joined under, each by alpha, in order of appearance."""
        found: dict[str, list[Arm]] = {}
        for arm in self.arms:
            found.setdefault(arm.series, []).append(arm)
        return {name: sorted(arms, key=lambda arm: arm.alpha or 0.0) for name, arms in found.items()}

    @cached_property
    def dials(self) -> list[str]:
        """The series with at least two values of alpha."""
        return [name for name, arms in self.series.items() if len({a.alpha for a in arms} - {None}) > 1]

    @cached_property
    def inks(self) -> dict[str, int]:
        """A number for every series but the baselines, dials first; colour and mark follow from it."""
        names = dict.fromkeys([*self.dials, *self.series])
        return {name: place for place, name in enumerate(n for n in names if n not in BASELINES)}

    @cached_property
    def _cells(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        return {(c["task"], c["state"], c["arm"]): c for c in self.results.get("cells", ())}

    @cached_property
    def tasks(self) -> list[str]:
        """Tasks with at least one cell, in alphabetical order."""
        return sorted({task for task, _, _ in self._cells})

    def states(self, task: str | None = None) -> list[str]:
        """States of a task, or of all, in the order of `STATES`."""
        found = {state for name, state, _ in self._cells if task in (None, name)}
        return [s for s in STATES if s in found] + sorted(found - set(STATES))

    def kind(self, task: str) -> str:
        """Return "generate" or "choices"."""
        return str(self.results.get("tasks", {}).get(task, {}).get("kind", "generate"))

    def cell(self, task: str, state: str, arm: str) -> dict[str, Any] | None:
        """Return the cell as results.json has it."""
        return self._cells.get((task, state, arm))

    def get(self, task: str, state: str, arm: str, metric: str) -> Estimate | None:
        """Return an estimate; None where the cell, the metric or its value is missing."""
        found = (self._cells.get((task, state, arm)) or {}).get("metrics", {}).get(metric)
        if not isinstance(found, Mapping) or math.isnan(number(found.get("value"))):
            return None
        value, low, high = (number(found.get(name)) for name in ("value", "low", "high"))
        return Estimate(value, low, high, int(found.get("n") or 0))

    @cached_property
    def _pairs(self) -> dict[tuple[str, str, str, str], Pair]:
        families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in self.results.get("pairs", ()):
            if row.get("against") == "off":
                families.setdefault((row["task"], row["state"], row["metric"]), []).append(row)
        found = {}
        for (task, state, metric), rows in families.items():
            corrected = holm([number(row.get("p")) for row in rows])
            for row, anew in zip(rows, corrected, strict=True):
                adjusted = number(row["p_holm"]) if "p_holm" in row else anew
                difference, low, high, p = (number(row.get(k)) for k in ("difference", "low", "high", "p"))
                pair = Pair(difference, low, high, p, adjusted, int(row.get("n") or 0))
                found[task, state, row["arm"], metric] = pair
        return found

    def pair(self, task: str, state: str, arm: str, metric: str) -> Pair | None:
        """Return the paired difference to `off`; None where there is none."""
        return self._pairs.get((task, state, arm, metric))

    def summary(self, task: str, series: str) -> Mapping[str, Any]:
        """Return the curve summary of a method on a task; empty where there is none."""
        for curve in self.results.get("curves", ()):
            if curve.get("task") == task and curve.get("method") == series:
                return dict(curve.get("summary") or {})
        return {}


def headline(state: str, kind: str = "generate") -> str:
    """Return the metric that speaks for a state: the memory ratio in conflict, accuracy elsewhere."""
    return "mr" if state == "conflict" and kind == "generate" else "accuracy"


def number(value: Any) -> float:
    """Return a finite float, NaN for anything else: null, a word, infinity, true."""
    return float(value) if _is_number(value) and math.isfinite(value) else math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run directories; labels are folder names, with the parent's where two are equal.

    Raises:
        EvalError: There are none, or one cannot be read.
    """
    if not folders:
        raise EvalError("no run directory was given.", "Name one or more folders that hold a results.json.")
    paths = [Path(folder).resolve() for folder in folders]
    labels = [path.name for path in paths]
    if len(set(labels)) < len(labels):
        labels = [f"{path.parent.name}/{path.name}" for path in paths]
    if len(set(labels)) < len(labels):
        labels = [f"{place}: {label}" for place, label in enumerate(labels, 1)]
    return [Run(path, label) for path, label in zip(paths, labels, strict=True)]
