"""A finished run as the report reads it: estimates, paired differences and arms, looked up by task, state and arm.

Knows results.json and the run card; computes nothing. Holm's correction, over the arms of one task, state and metric,
is that of results.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ckcontrol.errors import EvalError

from ..figures.intervals import Difference, Estimate
from ..figures.results_shape import misshapen_at
from ..figures.rows import number, read_difference, read_estimate
from ..records import STATES
from ..run_files import read_card, read_json

__all__ = ["BASELINES", "Run", "Setting", "headline", "read_runs"]

BASELINES = ("off", "closed-book")


@dataclass(frozen=True)
class Setting:
    """An arm as the run card has it: one setting of one method; `alpha` is None without a dial."""

    name: str
    method: str
    alpha: float | None


class Run:
    """One run directory.

    Args:
        folder: Where run.json, results.json, items.jsonl and samples.jsonl are.
        label: Its short name in the report.

    Raises:
        EvalError: results.json or run.json is missing, damaged, or of another schema.
    """

    def __init__(self, folder: Path, label: str) -> None:
        self.folder, self.label = folder, label
        self.results = read_json(folder / "results.json", errors="replace")
        self.card = read_card(folder, errors="replace")
        if self.results.get("schema") != 1:
            raise EvalError(
                f"{folder / 'results.json'} has schema {self.results.get('schema')!r}; this report reads 1.",
                "Score the run again with this version.",
            )
        if fault := misshapen_at(self.results):
            raise EvalError(f"{folder / 'results.json'}: {fault}.", "Score the run again.")

    @cached_property
    def speed(self) -> dict[str, Any] | None:
        """What `measure_speed` wrote; None where nothing was timed."""
        path = self.folder / "speed.json"
        return read_json(path) if path.exists() else None

    @cached_property
    def arms(self) -> list[Setting]:
        """Every arm, in the order of the run card; arms that only the cells know come last."""
        told = {str(arm["name"]): arm for arm in self.card.get("arms", ())}
        arms = []
        for name in dict.fromkeys([*told, *(cell["arm"] for cell in self.results.get("cells", ()))]):
            card = told.get(name, {})
            alpha = number(card.get("alpha"))
            fixed = math.isnan(alpha)
            arms.append(Setting(name, name, None) if fixed else Setting(name, str(card.get("method", name)), alpha))
        return arms

    @cached_property
    def methods(self) -> dict[str, list[Setting]]:
        """Arms by method, each method's by alpha, in order of appearance."""
        found: dict[str, list[Setting]] = {}
        for arm in self.arms:
            found.setdefault(arm.method, []).append(arm)
        return {name: sorted(arms, key=lambda arm: arm.alpha or 0.0) for name, arms in found.items()}

    @cached_property
    def dials(self) -> list[str]:
        """The methods with at least two values of alpha."""
        return [name for name, arms in self.methods.items() if len({a.alpha for a in arms} - {None}) > 1]

    @cached_property
    def inks(self) -> dict[str, int]:
        """A number for every method but the baselines, dials first; colour and mark follow from it."""
        names = dict.fromkeys([*self.dials, *self.methods])
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
        return str(((self.results.get("tasks") or {}).get(task) or {}).get("kind") or "generate")

    def cell(self, task: str, state: str, arm: str) -> dict[str, Any] | None:
        """Return the cell as results.json has it."""
        return self._cells.get((task, state, arm))

    def get(self, task: str, state: str, arm: str, metric: str) -> Estimate | None:
        """Return an estimate; None where the cell, the metric or its value is missing."""
        return read_estimate((self.cell(task, state, arm) or {}).get("metrics", {}).get(metric))

    @cached_property
    def _differences(self) -> dict[tuple[str, str, str, str], Difference]:
        rows = (row for row in self.results.get("pairs") or () if row.get("against") == "off")
        return {(row["task"], row["state"], row["arm"], row["metric"]): read_difference(row) for row in rows}

    def against_off(self, task: str, state: str, arm: str, metric: str) -> Difference | None:
        """Return the paired difference to `off`; None where there is none."""
        return self._differences.get((task, state, arm, metric))

    def summary(self, task: str, method: str) -> Mapping[str, Any]:
        """Return the curve summary of a method on a task; empty where there is none."""
        for curve in self.results.get("curves") or ():
            if curve.get("task") == task and curve.get("method") == method:
                return dict(curve.get("summary") or {})
        return {}


def headline(state: str, kind: str = "generate") -> str:
    """Return the metric that stands for a state: the memory ratio in conflict, accuracy elsewhere."""
    return "mr" if state == "conflict" and kind == "generate" else "accuracy"


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
