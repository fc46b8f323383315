"""What stands at the top, in sentences: the widest dial, its cost, differences that may be chance, what to beware of.

Knows a `Run` and its tables. A sentence states a figure with its n and where to check it; it recommends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...rates import count
from ..figures.dial_curve import HARM_STATES
from ..figures.intervals import Difference
from .number_texts import interval, listed, n_of, percent, points
from .runs import Run, Setting
from .tables import reach, worst

__all__ = ["SMALL", "Sentence", "findings"]

SMALL = 100  # below this n an interval is wider than most differences
LEAST = 10  # a finding that rests on fewer does not lead


@dataclass(frozen=True)
class Sentence:
    """One sentence.

    Attributes:
        text: What it says.
        bad: It is a cost or a warning.
        n: The fewest answers that it rests on; None where it counts something else.
    """

    text: str
    bad: bool = False
    n: int | None = None


def findings(run: Run) -> list[Sentence]:
    """Return the sentences about one run, the good and the bad; those that rest on fewer than `LEAST` come last."""
    told = [*_widest(run), *_cost(run), *_tested(run), *_beware(run)]
    return sorted(told, key=lambda sentence: sentence.n is not None and sentence.n < LEAST)


def _widest(run: Run) -> list[Sentence]:
    spans = {}
    for name in run.dials:
        found = {task: ends for task in run.tasks if (ends := reach(run, task, name))}
        if found:
            task = min(found, key=lambda t: found[t][1] - found[t][0])
            spans[name] = (found[task][1] - found[task][0], task, found[task], len(found))
    if not spans:
        return [Sentence("No method has a dial with two settings here: there is no control curve to read.", True)]
    name = max(spans, key=lambda n: spans[n][0])
    span, task, (low, high), tasks = spans[name]
    ratios = [e for a in run.methods[name] if (e := run.get(task, "conflict", a.name, "mr"))]
    ratios.sort(key=lambda e: e.value)
    items = max(int((run.cell(task, "conflict", a.name) or {}).get("n") or 0) for a in run.methods[name])
    n = min(e.n for e in ratios)
    equal = [other for other in spans if other != name and spans[other][0] >= span - 1e-6]
    which = " has the widest dial: it moves" if len(spans) > 1 else ", the only method with a dial here, moves"
    which = " have the widest dials: they move" if equal else which
    where = "" if tasks == 1 else ", where that is shortest"
    counted = n_of(n) if n >= items else f"{n_of(n)} answers that name one of the two, of {items}"
    return [
        Sentence(
            f"{listed([name, *equal])}{which} the memory ratio in conflict from {percent(low)} {interval(ratios[0])} "
            f"to {percent(high)} {interval(ratios[-1])} % on {task}{where}, {100 * span:.1f} points ({counted}).",
            n=n,
        )
    ]


def _cost(run: Run) -> list[Sentence]:
    found, free = [], {}
    for name in run.dials:
        hit = worst(run, run.methods[name], HARM_STATES)
        if hit is None:
            continue
        change, task, state, arm = hit
        if change.value >= 0:
            free[name] = min(_tests(run, run.methods[name]), key=lambda test: test.n).n
            continue
        kind = "agreeing" if state == "agree" else state
        tested = "holds after Holm's correction" if change.sign else "cannot be distinguished from zero"
        found.append(
            Sentence(
                f"The largest loss with {name}: {points(change.value)} points of accuracy against off, on {task} "
                f"with {kind} passages at alpha {arm.alpha:g} ({n_of(change.n)}); the difference {tested}.",
                bad=True,
                n=change.n,
            )
        )
    if free:
        lose = "loses" if len(free) == 1 else "lose"
        found.append(
            Sentence(
                f"{listed(list(free))} {lose} no accuracy against off in any tested state and setting "
                f"(smallest {n_of(min(free.values()))}).",
                n=min(free.values()),
            )
        )
    return found


def _tests(run: Run, arms: Iterable[Setting]) -> list[Difference]:
    """Return every paired comparison of accuracy with off where the passages are fine."""
    return [
        change
        for arm in arms
        for task in run.tasks
        for state in HARM_STATES
        if (change := run.against_off(task, state, arm.name, "accuracy"))
    ]


def _tested(run: Run) -> list[Sentence]:
    tests = _tests(run, run.arms)
    signs = [change.sign for change in tests]
    if not signs:
        return []
    return [
        Sentence(
            f"With agreeing, helpful and irrelevant passages, {count(len(signs), 'paired comparison')} of accuracy "
            f"with off: {signs.count(1)} better, {signs.count(-1)} worse, {signs.count(0)} with no "
            "difference that can be distinguished from zero.",
            bad=signs.count(-1) > signs.count(1),
            n=min(change.n for change in tests),
        )
    ]


def _beware(run: Run) -> list[Sentence]:
    ns: dict[str, int] = {}
    for task in run.tasks:
        for state in run.states(task):
            asked = [int(cell.get("n") or 0) for arm in run.arms if (cell := run.cell(task, state, arm.name))]
            ns |= {f"{task} · {state}": min(asked)} if asked else {}
    few = {name: n for name, n in ns.items() if n < SMALL}
    notes = []
    if few:
        least = min(few, key=lambda name: few[name])
        notes.append(
            f"Fewer than {SMALL} items stand behind {len(few)} of {count(len(ns), 'pair')} of task and state "
            f"(fewest: {few[least]} of {least})."
        )
    failed = sum(int(cell.get("errors") or 0) for cell in run.results.get("cells", ()))
    if failed:
        notes.append(f"{count(failed, 'sample')} failed; they are counted, and in no average.")
    return [Sentence(note, bad=True) for note in notes]
