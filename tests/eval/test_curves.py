"""Dials by their shape: what is monotone, what reaches the ceilings, what costs accuracy."""

from __future__ import annotations

import doctest
import math
import sys

import pytest

from ckcontrol.eval.figures.dial_curve import area_gap, harm, spearman, summary, violations
from ckcontrol.eval.figures.intervals import Estimate


def points(values: list[tuple[float, float]]) -> list[tuple[float, dict[str, Estimate]]]:
    """(conr, parr) at evenly spaced alphas."""
    out = []
    for place, (conr, parr) in enumerate(values):
        ratio = parr / (parr + conr) if parr + conr else math.nan
        told = {"conr": conr, "parr": parr, "mr": ratio}
        figures = {name: Estimate(value, math.nan, math.nan, 1) for name, value in told.items()}
        out.append((place / (len(values) - 1), figures))
    return out


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.9], 1.0),
        ([0, 1, 2, 3], [9, 3, 2, 1], -1.0),
        ([0, 1, 2], [0, 1, 1], math.sqrt(0.75)),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * 4 / (5 * 24)
        ([0, 1], [0, 1], None),
        ([0, 1, 2], [5, 5, 5], None),
    ],
)
def test_spearman(x: list[float], y: list[float], expected: float | None) -> None:
    found = spearman(x, y)
    assert found == (None if expected is None else pytest.approx(expected))


def test_spearman_needs_pairs() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        spearman([1, 2, 3], [1, 2])


@pytest.mark.parametrize(("values", "expected"), [([], 0), ([1], 0), ([0, 0.5, 0.5, 1], 0), ([1, 0.5, 0.6, 0.1], 2)])
def test_violations(values: list[float], expected: int) -> None:
    assert violations(values) == expected


def test_a_dial_along_the_line_between_the_ceilings_leaves_no_gap() -> None:
    line = [(0.8 * (1 - t), 0.5 * t) for t in (0, 0.25, 0.5, 0.75, 1)]
    assert area_gap(line, 0.5, 0.8) == pytest.approx(0)


def test_a_shorter_dial_leaves_its_ends_as_gap() -> None:
    """Half of the line, wherever it is, spans half of the area."""
    for start in (0.0, 0.25, 0.5):
        half = [(0.8 * (1 - t), 0.5 * t) for t in (start, start + 0.2, start + 0.5)]
        assert area_gap(half, 0.5, 0.8) == pytest.approx(0.5)


def test_answers_that_name_neither_are_gap() -> None:
    collapsed = [(0.4, 0.0), (0.2, 0.125), (0.0, 0.25)]  # both ends at half of their ceiling
    assert area_gap(collapsed, 0.5, 0.8) == pytest.approx(0.75)


def test_a_way_back_is_taken_off() -> None:
    there = [(0.8, 0.0), (0.4, 0.25)]
    assert area_gap([*there, (0.8, 0.0)], 0.5, 0.8) == pytest.approx(1)
    assert area_gap(there[::-1], 0.5, 0.8) == pytest.approx(1.5)  # a dial that runs the wrong way


@pytest.mark.parametrize(("memory", "context"), [(0, 0.5), (0.5, 0)])
def test_no_ceiling_no_gap(memory: float, context: float) -> None:
    assert area_gap([(1, 0), (0, 1)], memory, context) is None
    assert area_gap([(1, 0)], 0.5, 0.5) is None


@pytest.mark.parametrize(
    ("off", "arms", "expected"),
    [(0.9, [0.9, 0.7], 0.2), (0.5, [0.6, 0.7], -0.1), (None, [0.5], None), (0.5, [None], None), (0.5, [], None)],
)
def test_harm_is_the_worst_loss(off: float | None, arms: list[float | None], expected: float | None) -> None:
    assert harm(off, arms) == (None if expected is None else pytest.approx(expected))


def test_summary() -> None:
    found = summary(
        points([(0.6, 0.1), (0.5, 0.3), (0.1, 0.4)]),
        memory=0.5,
        context=0.8,
        accuracies={"agree": (0.9, [0.9, 0.85, 0.8]), "helpful": (None, [])},
    )
    assert found == {
        "mr_range": pytest.approx([1 / 7, 0.8]),
        "spearman": pytest.approx(1),
        "violations": 0,
        "ceiling_memory": 0.5,
        "ceiling_context": 0.8,
        "gap_memory": pytest.approx(0.1),
        "gap_context": pytest.approx(0.2),
        "area_gap": pytest.approx(1 - (0.6 * 0.3 - 0.5 * 0.1 + 0.5 * 0.4 - 0.1 * 0.3) / 0.4),
        "harm": {"agree": pytest.approx(0.1), "helpful": None},
    }


def test_what_was_not_measured_is_none() -> None:
    found = summary(points([(0.0, 0.0), (0.0, 0.0)]), memory=None, context=0.8, accuracies={})
    assert found["mr_range"] is None
    assert found["spearman"] is None
    assert found["area_gap"] is None
    assert found["gap_memory"] is None
    assert found["gap_context"] == 0.8


def test_examples_in_docstrings() -> None:
    done = doctest.testmod(sys.modules["ckcontrol.eval.figures.dial_curve"])
    assert done.attempted
    assert not done.failed
