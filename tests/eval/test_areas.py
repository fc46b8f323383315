"""benchmarks/areas.py: areas and their bootstrap where the true answer is known."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckcontrol.eval.figures.cells import Cell

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("areas")


def cell(values: Any, metric: str, prefix: str = "q", copies: int = 1, start: int = 0) -> Cell:
    """One row per value and copy; the copies of a value are one question."""
    out = Cell()
    for i, value in enumerate(values, start):
        for copy in range(copies):
            out.rows[f"{prefix}{i}.{copy}"] = (f"{prefix}{i}", {metric: (float(value), 1.0)})
    return out


# --- areas ------------------------------------------------------------------------------------------------------------


def test_the_lots_by_hand(figures: Any) -> None:
    """Between the two settings a straight line; a setting below the line adds nothing, one above it does."""
    two = 0.2 * 0.9 + 0.4 * (0.9 + 0.5) / 2
    assert figures.hull(np.array([0.6, 0.2]), np.array([0.5, 0.9])) == pytest.approx(two)
    assert figures.hull(np.array([0.6, 0.4, 0.2]), np.array([0.5, 0.6, 0.9])) == pytest.approx(two)
    above = 0.2 * 0.9 + 0.2 * (0.9 + 0.8) / 2 + 0.2 * (0.8 + 0.5) / 2
    assert figures.hull(np.array([[0.6, 0.4, 0.2]] * 2), np.array([[0.5, 0.8, 0.9]] * 2)) == pytest.approx([above] * 2)


def test_areas_are_what_their_definition_says(figures: Any) -> None:
    rng = np.random.default_rng(0)
    parr, helpful = rng.random((40, 5)), rng.random((40, 5))
    levels = (np.arange(4000) + 0.5) / 4000
    for p, h, mixed in zip(parr, helpful, figures.hull(parr, helpful), strict=True):
        shares = np.linspace(0, 1, 101)[:, None, None]
        x, y = (shares * v[:, None] + (1 - shares) * v[None, :] for v in (p, h))  # every pair, every lot
        drawn = [max(y[x >= level], default=0.0) for level in levels[::40]]
        assert mixed == pytest.approx(np.mean(drawn), abs=0.01)


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def test_the_interval_of_a_difference_of_areas_is_that_of_means_where_it_is_one(figures: Any) -> None:
    """Where ParR is 1 at every setting, the area is the mean of helpful, and the standard error is in any textbook."""
    rng = np.random.default_rng(1)
    a, b = rng.random(120) < 0.7, rng.random(120) < 0.5
    sure = [cell(np.ones(80), "parr", "c")] * 2
    (parr, helpful), t, groups = figures.rates((sure, "parr"), ([cell(a, "accuracy"), cell(b, "accuracy")], "accuracy"))
    areas = [figures.hull(parr[:, [i]], helpful[:, [i]]) for i in (0, 1)]
    found = figures.spread(areas[0] - areas[1], t, groups)
    step = a.astype(float) - b
    half = t * step.std() / math.sqrt(len(step))
    assert groups == 200
    assert found["difference"] == pytest.approx(step.mean(), abs=1e-6)
    assert found["high"] - found["difference"] == pytest.approx(half, rel=0.06)
    assert figures.spread(areas[0] - areas[0], t, groups) == {"difference": 0, "low": None, "high": None}


def test_questions_are_drawn_whole(figures: Any) -> None:
    """Three copies of every row tell nothing new: the same interval. As questions of their own they would."""
    rng = np.random.default_rng(2)
    known, told = rng.random(60) < 0.6, rng.random(60) < 0.6

    def width(copies: int, repeat: int) -> float:
        cells = [cell(list(v) * repeat, m, p, copies) for v, m, p in ((known, "parr", "c"), (told, "accuracy", "h"))]
        (parr, helpful), t, groups = figures.rates(([cells[0]], "parr"), ([cells[1]], "accuracy"))
        found = figures.spread(figures.hull(parr, helpful), t, groups)
        return float(found["high"] - found["low"])

    assert width(3, 1) == pytest.approx(width(1, 1), rel=1e-9)
    assert width(1, 3) < 0.7 * width(1, 1)


def test_intervals_of_areas_hold_the_truth(figures: Any) -> None:
    """The area of the settings (0.4, 0.9) and (0.8, 0.5), 90 questions each: 0.64. Seeded."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(200):
        sides = [
            [cell(rng.random(90) < rate, metric, prefix) for rate in rates]
            for metric, prefix, rates in (("parr", "c", (0.4, 0.8)), ("accuracy", "h", (0.9, 0.5)))
        ]
        (parr, helpful), t, groups = figures.rates((sides[0], "parr"), (sides[1], "accuracy"), draws=300)
        found = figures.spread(figures.hull(parr, helpful), t, groups)
        held += found["low"] <= 0.64 <= found["high"]
    assert 182 <= held <= 199
