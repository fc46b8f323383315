"""Intervals and tests against what is known: closed forms, full enumeration, simulated truth, and the corners."""

from __future__ import annotations

import doctest
import importlib.util
import itertools
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckcontrol.errors import EvalError
from ckcontrol.eval import wilson
from ckcontrol.eval.figures.intervals import Difference, difference, estimate, holm
from ckcontrol.eval.figures.resampling import quantile, resample


def some(seed: int = 0, n: int = 60, groups: int = 20) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    return (
        (rng.random(n) < 0.5).astype(float),
        (rng.random(n) < 0.3).astype(float),
        [f"q{g}" for g in rng.integers(0, groups, n)],
    )


@pytest.fixture(scope="module")
def benchmark() -> Any:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "intervals.py"
    spec = importlib.util.spec_from_file_location("intervals_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- coverage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "rates"), [(84, (0.5, 0.3)), (120, (0.3, 0.5))])
def test_intervals_hold_the_truth_95_times_in_100(benchmark: Any, groups: int, rates: tuple[float, float]) -> None:
    """1200 runs: the standard error of a coverage of 95 % is 0.6 points. Seeded, so it cannot fail by chance."""
    found = benchmark.coverage(groups, benchmark.ROWS["1-6"], rates, runs=1200, draws=600)
    assert set(found) == {"mean", "mr", "difference", "mr difference"}
    for kind, row in found.items():
        assert 0.93 <= row["coverage"] <= 0.97, kind


def test_few_groups_are_not_overconfident(benchmark: Any) -> None:
    """With 10 questions the percentiles miss the truth far too often; what replaced them may only be cautious."""
    found = benchmark.coverage(10, benchmark.ROWS["1-6"], (0.1, 0.05), runs=400, draws=600)
    for kind, row in found.items():
        assert row["coverage"] >= 0.93, kind
    assert found["mr difference"]["coverage_percentile"] < 0.9


def test_p_values_of_no_difference_are_uniform() -> None:
    """Under the null hypothesis p <= 0.05 in at most about 5 % of runs, and in not far fewer."""
    rng, small = np.random.default_rng(3), 0
    for _ in range(400):
        groups = np.repeat(np.arange(30), 3)
        effect = rng.normal(size=30)[groups]  # rows of a group move together
        p = difference(effect + rng.normal(size=90), rng.normal(size=90), groups, bounds=None, flips=199, draws=50).p
        small += p <= 0.05
    assert 0.02 <= small / 400 <= 0.08


# --- estimates ------------------------------------------------------------------------------------------------------


def test_single_rows_give_wilsons_interval() -> None:
    """Without clusters the effective sample is the sample, but for (n - 1) / n and t instead of z."""
    hits = np.arange(400) < 120
    found = estimate(hits, range(400), draws=20000)
    assert (found.value, found.n, found.groups) == (0.3, 400, 400)
    assert (found.low, found.high) == pytest.approx(wilson(120, 400), abs=2e-3)


def test_copies_of_a_row_add_nothing() -> None:
    """The trap that clustering is for: 5 copies of each question must not narrow the interval."""
    hits, _, _ = some(n=40)
    once = estimate(hits, range(40))
    copied = estimate(np.repeat(hits, 5), np.repeat(np.arange(40), 5))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert (copied.n, copied.groups) == (200, 40)
    alone = estimate(np.repeat(hits, 5), range(200))
    assert alone.high - alone.low < 0.6 * (copied.high - copied.low)


def test_bootstrap_error_is_the_textbook_error_of_cluster_sums() -> None:
    hits, _, groups = some(1, 300, 60)
    names = sorted(set(groups))
    sums = np.array(
        [[sum(h for h, g in zip(hits, groups, strict=True) if g == name), groups.count(name)] for name in names]
    )
    drawn = resample(sums, 20000, 0)
    assert (drawn[:, 1] > 0).all()
    rests = sums[:, 0] - hits.mean() * sums[:, 1]
    textbook = math.sqrt((rests**2).sum()) / 300
    assert (drawn[:, 0] / drawn[:, 1]).std() == pytest.approx(textbook, rel=0.05)


def test_every_draw_holds_as_many_groups() -> None:
    drawn = resample(np.ones((37, 1)), 500, 1)
    assert (drawn == 37).all()
    moved = resample(np.eye(5), 4000, 0)
    assert moved.mean(axis=0) == pytest.approx(np.ones(5), abs=0.06)
    assert moved.var(axis=0) == pytest.approx(np.full(5, 0.8), abs=0.08)  # multinomial: (1 - 1/5)


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    hits, other, groups = some(2)
    rows = list(zip(hits, other, groups, strict=True))
    random.Random(0).shuffle(rows)
    a, b, g = zip(*rows, strict=True)
    assert estimate(a, g) == estimate(hits, groups)
    assert difference(a, b, g) == difference(hits, other, groups)
    assert estimate(hits, groups, seed=1).low != estimate(hits, groups).low


@pytest.mark.parametrize(("hits", "k"), [([0] * 20, 0), ([1] * 20, 20)])
def test_at_0_and_100_percent_the_interval_is_wilsons_over_groups(hits: list[int], k: int) -> None:
    found = estimate(hits, range(20))
    assert (found.low, found.high) == wilson(k, 20)
    assert estimate(hits * 3, list(range(20)) * 3).high - found.high == 0


def test_equal_groups_in_the_middle_count_as_one_observation_each() -> None:
    found = estimate([1, 0] * 10, [g for g in range(10) for _ in "ab"])
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx(wilson(5, 10))


def test_one_group_says_next_to_nothing() -> None:
    found = estimate([1, 0, 1, 1], ["q"] * 4)
    assert (found.value, found.n, found.groups) == (0.75, 4, 1)
    assert found.high - found.low > 0.75
    assert estimate([1, 1], ["q", "q"]).low == pytest.approx(wilson(1, 1)[0])


def test_nothing_is_nan_not_zero() -> None:
    for found in (estimate([], []), estimate([0.0, 0.0], ["a", "b"], [0, 0])):
        assert (found.n, found.groups) == (0, 0)
        assert math.isnan(found.value)
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_without_bounds_equal_groups_leave_the_interval_unknown() -> None:
    found = estimate([64.0] * 9, range(9), bounds=None)
    assert found.value == 64
    assert math.isnan(found.low)
    bounded = estimate([64.0] * 9, range(9), bounds=(0, 64))
    assert (bounded.low, bounded.high) == (pytest.approx(64 * wilson(9, 9)[0]), 64)


def test_an_unbounded_mean_has_the_t_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 12)
    found = estimate(values, range(12), bounds=None, draws=40000)
    half = 2.201 * values.std(ddof=1) / math.sqrt(12)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_a_ratio_leaves_out_what_has_no_weight() -> None:
    par, named = [1, 0, 1, 0, 0], [1, 1, 1, 0, 0]
    found = estimate(par, list("abcde"), named)
    assert (found.value, found.n, found.groups) == (pytest.approx(2 / 3), 3, 3)
    assert estimate([1, 5], ["a", "b"], [1, 0]).value == 1  # whatever its numerator says


def test_intervals_stay_inside_their_bounds_and_around_the_value() -> None:
    rng = np.random.default_rng(5)
    for _ in range(60):
        n = int(rng.integers(1, 25))
        den = rng.integers(0, 4, n)
        num = rng.integers(0, den + 1)
        found = estimate(num, rng.integers(0, 8, n), den, draws=200)
        if found.n:
            assert 0 <= found.low <= found.value <= found.high <= 1
            assert found.high > found.low


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (9, 2.262), (25, 2.060), (1e9, 1.960), (0.2, 12.706)]
)
def test_quantiles_of_t(freedom: float, expected: float) -> None:
    assert quantile(freedom) == pytest.approx(expected, rel=2e-3)


# --- differences ----------------------------------------------------------------------------------------------------


def enumerated(a: Any, b: Any, groups: Any, den_a: Any, den_b: Any) -> float:
    """The swap test by its definition: swap a and b in every subset of the groups, with plain loops."""
    names = sorted(set(groups))

    def gap(swapped: tuple[bool, ...]) -> float:
        sums = [0.0] * 4
        for x, y, g, v, w in zip(a, b, groups, den_a, den_b, strict=True):
            row = (y, w, x, v) if swapped[names.index(g)] else (x, v, y, w)
            sums = [s + r for s, r in zip(sums, row, strict=True)]
        return abs(sums[0] / sums[1] - sums[2] / sums[3]) if sums[1] and sums[3] else math.inf

    ways = list(itertools.product((False, True), repeat=len(names)))
    return sum(gap(way) >= gap(ways[0]) - 1e-9 for way in ways) / len(ways)


def test_few_groups_are_tested_exactly() -> None:
    rng = np.random.default_rng(7)
    for _ in range(8):
        groups = rng.integers(0, 7, 25)
        den_a, den_b = rng.integers(0, 3, 25), rng.integers(0, 3, 25)
        a, b = rng.integers(0, den_a + 1), rng.integers(0, den_b + 1)
        found = difference(a, b, groups, den_a, den_b, draws=50)
        assert found.p == pytest.approx(enumerated(a, b, groups, den_a, den_b))


def test_random_swaps_come_near_the_exact_p() -> None:
    """13 discordant questions, 10 one way: twice the binomial tail."""
    a, b = [1] * 10 + [0] * 3 + [1] * 20, [0] * 10 + [1] * 3 + [1] * 20
    exact = 2 * sum(math.comb(13, k) for k in range(10, 14)) / 2**13
    found = difference(a, b, range(33), flips=20000)
    assert found.p == pytest.approx(exact, abs=0.01)
    assert (found.up, found.down, found.ties) == (10, 3, 20)
    assert found.value == pytest.approx(7 / 33)


def test_p_is_never_zero() -> None:
    found = difference([1] * 50, [0] * 50, range(50), flips=999)
    assert found.p == 0.001
    assert found.value == 1
    assert found.high == 1
    assert found.low == pytest.approx(1 - 2 * wilson(0, 50)[1])


def test_no_difference_anywhere() -> None:
    found = difference([1, 0] * 20, [1, 0] * 20, range(40))
    assert (found.value, found.p, found.ties) == (0, 1, 40)
    assert -found.low == found.high == wilson(0, 40)[1]


@pytest.mark.parametrize(("groups", "low"), [(1, -0.587), (5, 0.131), (20, 0.678)])
def test_groups_that_all_differ_by_1_say_no_more_than_their_number(groups: int, low: float) -> None:
    """The groups not seen may differ by 1 the other way, so one pair tells nothing of the sign."""
    found = difference([1] * groups, [0] * groups, range(groups))
    assert (found.value, found.high) == (1, 1) and found.low == pytest.approx(low, abs=1e-3)
    turned = difference([0] * groups, [1] * groups, range(groups))
    assert (turned.low, turned.high) == (-1, -found.low)


def test_one_discordant_question_in_40_is_not_taken_for_certain() -> None:
    """The standard error alone would give t * 0.025; half a discordant row more each way widens it (Agresti, Min)."""
    found = difference([1] + [0] * 39, [0] * 40, range(40), draws=40000)
    error = math.sqrt((1 / 40 - 1 / 1600) / 39)
    half = quantile(39) * math.hypot(error, 1 / (39 + 2))
    assert (found.low, found.high) == pytest.approx((1 / 40 - half, 1 / 40 + half), rel=0.03)
    assert found.p == 1


def test_swapping_the_two_turns_the_sign() -> None:
    a, b, groups = some(4)
    one, other = difference(a, b, groups), difference(b, a, groups)
    assert one.value == -other.value
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.p == other.p
    assert (one.up, one.down, one.a, one.b) == (other.down, other.up, other.b, other.a)


def test_pairing_narrows_what_both_share() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200) * 5
    a, b = hard + rng.normal(size=200), hard + rng.normal(size=200) - 0.5
    found = difference(a, b, range(200), bounds=None)
    assert found.low < 0.5 < found.high
    assert found.p < 0.01
    assert found.high - found.low < 0.6


def test_a_difference_of_ratios_keeps_rows_that_only_one_side_names() -> None:
    """MR 2/2 against 1/3: arm b names an answer where arm a names none."""
    found = difference([1, 1, 0], [1, 0, 0], list("xyz"), [1, 1, 0], [1, 1, 1])
    assert (found.a, found.b, found.n) == (1, pytest.approx(1 / 3), 3)
    assert found.value == pytest.approx(2 / 3)


def test_what_cannot_be_compared_is_nan() -> None:
    empty: Difference = difference([], [], [])
    assert math.isnan(empty.value)
    assert math.isnan(empty.p)
    lone = difference([1, 1], [0, 0], ["x", "y"], [1, 1], [0, 0])
    assert math.isnan(lone.value)
    assert (lone.n, lone.ties) == (2, 2)


def test_one_group_cannot_reject() -> None:
    found = difference([1, 1, 1], [0, 0, 0], ["q"] * 3)
    assert (found.value, found.p, found.groups) == (1, 1, 1)
    assert found.low < 0.3


@pytest.mark.parametrize(
    ("numbers", "groups", "den", "message"),
    [
        ([1, 2], ["a"], 1.0, "2 numbers for 1 groups"),
        ([1, math.nan], ["a", "b"], 1.0, "NaN or infinite"),
        ([1, 1], ["a", "b"], [1, -1], "below 0"),
    ],
)
def test_bad_numbers_are_refused(numbers: Any, groups: Any, den: Any, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        estimate(numbers, groups, den)


# --- many tests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.04, 0.01], [0.04, 0.02]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([math.nan, 0.02, math.nan, 0.03], [math.nan, 0.04, math.nan, 0.04]),
    ],
)
def test_holm(given: list[float], expected: list[float]) -> None:
    assert holm(given) == pytest.approx(expected, nan_ok=True)


def test_examples_in_docstrings() -> None:
    done = doctest.testmod(sys.modules["ckcontrol.eval.figures.intervals"])
    assert done.attempted
    assert not done.failed
