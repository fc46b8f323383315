"""Two runs, or two arms, on the samples both have: differences, intervals, tests.

Knows cells as `collect` makes them; knows no file. Runs may differ in model, precision or prompt, but not in records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckcontrol.errors import EvalError, did_you_mean

from ..judging.measures import METRICS, UNDEFINED
from ..records import STATES
from .cells import Cell, Place
from .rows import Line, difference_row, rounded, with_holm

__all__ = ["compare"]


def compare(
    a: Mapping[Place, Cell],
    b: Mapping[Place, Cell],
    *,
    arms: Iterable[tuple[str, str]] | None = None,
    metrics: Sequence[str] | None = None,
    longest: float | None = None,
) -> list[Line]:
    """Return the differences a minus b, one row per task, state, two arms and metric.

    Args:
        a: ``collect(items, samples)`` of one run.
        b: The same of the other run, or of the same one to compare its arms.
        arms: (arm of a, arm of b) to compare; None: every arm that both have, with itself.
        metrics: Names in `METRICS`; None: all that are compared with `off` too.
        longest: ``max_new_tokens`` of the runs: bounds the interval of lengths.

    Returns:
        Rows with ``task state metric arm_a arm_b``, the figures ``a b`` and ``difference low high p p_holm`` over the
        common samples, ``n groups up down ties`` of them, and ``only_a only_b``, how many the other side lacks.
        Holm's correction is over the arms compared in one task, state and metric.

    Raises:
        EvalError: An unknown arm or metric, no sample in common, no metric that they define, or one id with two
            questions.
    """
    names = [name for name, metric in METRICS.items() if metric.compared] if metrics is None else list(metrics)
    for name in names:
        if name not in METRICS or METRICS[name].logarithmic:
            raise EvalError(f"no metric {name!r} to compare.", did_you_mean(name, [m for m in METRICS if m != name]))
    has_a, has_b = ({arm for _, _, arm in cells} for cells in (a, b))
    wanted = [(arm, arm) for arm in sorted(has_a & has_b)] if arms is None else list(arms)
    for (arm_a, arm_b), sides in ((pair, (has_a, has_b)) for pair in wanted):
        for arm, side in zip((arm_a, arm_b), sides, strict=True):
            if arm not in side:
                raise EvalError(f"no samples of arm {arm!r}.", did_you_mean(arm, side))
    rows: list[Line] = []
    met = False
    for task, state in sorted({at[:2] for at in a} & {at[:2] for at in b}, key=lambda at: (at[0], STATES.index(at[1]))):
        for name in names:
            for arm_a, arm_b in wanted:
                one, other = a.get((task, state, arm_a)), b.get((task, state, arm_b))
                if one is not None and other is not None:
                    met = met or not one.rows.keys().isdisjoint(other.rows)
                    rows += _row({"task": task, "state": state, "metric": name}, (arm_a, arm_b), one, other, longest)
    if not rows and met:
        why = "; ".join(dict.fromkeys(UNDEFINED[name] for name in names if name in UNDEFINED))
        raise EvalError(
            f"{', '.join(names)}: no figure on the samples both have{why and f' ({why})'}.",
            "Compare another metric: --metrics all shows which there are.",
        )
    if not rows:
        raise EvalError(
            "the two have no sample in common.", "Compare runs of the same tasks, with the same limit and seed."
        )
    return with_holm(rows)


def _row(place: Line, arms: tuple[str, str], one: Cell, other: Cell, longest: float | None) -> list[Line]:
    common = [i for i in one.rows if i in other.rows]
    moved = next((i for i in common if one.rows[i][0] != other.rows[i][0]), None)
    if moved is not None:
        asked = f"{one.rows[moved][0]!r} and {other.rows[moved][0]!r}"
        raise EvalError(
            f"record {moved!r} of {place['task']} is not the same: {asked}.", "Compare runs of the same data."
        )
    found = one.minus(other, place["metric"], longest)
    if found is None or not found.n:
        return []
    lone = {"only_a": len(one.rows) - len(common), "only_b": len(other.rows) - len(common)}
    return [
        {
            **place,
            "arm_a": arms[0],
            "arm_b": arms[1],
            "a": rounded(found.a),
            "b": rounded(found.b),
            **difference_row(found),
            **lone,
        }
    ]
