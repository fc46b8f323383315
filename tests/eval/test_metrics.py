"""Matching and rates: the places where a metric flatters a method without anyone noticing."""

from __future__ import annotations

import doctest
import math
import random
import sys

import pytest

from ckcontrol.eval import Conflict, mentions, normalize, wilson


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Hague!", "hague"),
        ("Bogotá, São Tomé", "bogota sao tome"),
        ("Port-au-Prince", "port au prince"),
        ("N'Djamena / N’Djamena", "ndjamena ndjamena"),
        ("Washington, D.C.", "washington dc"),
        ("It ended.Then it began", "it ended then it began"),
        ("an answer, a theory, the end", "answer theory end"),
        ("Straße ΑΘΗΝΑ", "strasse αθηνα"),
        ("snake_case", "snake case"),
        ("  ", ""),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected
    assert normalize(expected) == expected


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("The capital is Oslo.", ["Oslo"], True),
        ("Nigerian food", ["Niger"], False),  # a substring match would count it
        ("Niger, of course", ["Niger"], True),
        ("port au prince", ["Port-au-Prince"], True),
        ("New York City", ["York New"], False),
        ("It is made of gold", ["Au"], False),
        ("Symbol: Au.", ["Au"], True),
        ("Kiev", ["Kyiv", "Kiev"], True),
        ("bogota", "Bogotá", True),
        ("the answer", ["The"], False),  # nothing is left of it
        ("anything", [], False),
        ("", ["Oslo"], False),
    ],
)
def test_mentions(text: str, answers: str | list[str], expected: bool) -> None:
    assert mentions(text, answers) is expected


def test_an_answer_that_names_both_counts_in_both() -> None:
    rates = Conflict.from_hits([(True, True), (True, False), (False, False), (False, True), (False, True)])
    assert rates == Conflict(n=5, parr=0.4, conr=0.6, mr=0.4, both=0.2, neither=0.2)


def test_rates_add_up() -> None:
    rng = random.Random(0)
    for _ in range(200):
        hits = [(rng.random() < 0.4, rng.random() < 0.4) for _ in range(rng.randint(1, 30))]
        rates = Conflict.from_hits(hits)
        assert rates.parr + rates.conr - rates.both + rates.neither == pytest.approx(1)


def test_nothing_measured_is_not_zero() -> None:
    empty = Conflict.from_hits([])
    assert empty.n == 0
    assert all(math.isnan(rate) for rate in (empty.parr, empty.conr, empty.mr, empty.both, empty.neither))
    silent = Conflict.from_hits([(False, False)] * 3)
    assert (silent.parr, silent.conr, silent.neither) == (0, 0, 1)
    assert math.isnan(silent.mr)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [  # published values (Newcombe 1998, method 3)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(5, 5)[1] == 1.0
    for k in range(11):
        low, high = wilson(k, 10)
        assert 0 <= low <= k / 10 <= high <= 1
        assert wilson(10 - k, 10) == pytest.approx((1 - high, 1 - low))
    for k, n in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="is not a count"):
            wilson(k, n)


@pytest.mark.parametrize("module", ["metrics", "items.shipped_facts"])
def test_examples_in_docstrings(module: str) -> None:
    done = doctest.testmod(sys.modules[f"ckcontrol.eval.{module}"])
    assert done.attempted
    assert not done.failed
