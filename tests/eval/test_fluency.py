"""How answers read, and whether they took the context up."""

from __future__ import annotations

import doctest
import math
import sys

import pytest

from ckcontrol.eval.judging.measures import ended, ignorance, over_inclusion, repeated_ngrams, surprise
from ckcontrol.eval.judging.verdict import verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("one two three", None),
        ("one two three four", 0.0),
        ("a b c d e f g h", 0.0),
        ("la la la la la", 0.5),  # 2 four-grams, one distinct
        ("la " * 23, 0.95),  # 20, one distinct
        ("It is Rome. It is Rome.", 0.0),  # 3 four-grams, no two alike
        ("It is Rome. IT IS ROME! It is Rome", 0.5),  # 6, 3 distinct: case and marks do not hide a loop
        ("东京东京东京东京", 0.6),  # 5, 2 distinct: no spaces needed
    ],
)
def test_repeated_4_grams(text: str, expected: float | None) -> None:
    found = repeated_ngrams(text)
    assert found == (None if expected is None else pytest.approx(expected))


def test_other_lengths() -> None:
    assert repeated_ngrams("so so so", 1) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="size=0"):
        repeated_ngrams("so", 0)


def test_surprise_is_the_log_of_perplexity() -> None:
    nats, number = surprise({"logp_par": [math.log(0.5), math.log(0.125)]})
    assert math.exp(nats / number) == pytest.approx(4)
    assert surprise({"logp_ctx": [-1.0, -2.0]}, "logp_ctx") == (3.0, 2)


@pytest.mark.parametrize("tokens", [None, {}, {"logp_par": []}, {"logp_par": [None, -math.inf]}])
def test_untraced_tokens_have_no_surprise(tokens: dict[str, list[float]] | None) -> None:
    assert surprise(tokens) == (0, 0)


def test_tokens_without_a_value_are_left_out() -> None:
    assert surprise({"logp_par": [-1.0, None, -3.0]}) == (4.0, 2)


def test_ending() -> None:
    assert ended({"finish": "stop"})
    assert not ended({"finish": "length"})


@pytest.mark.parametrize(("text", "ignored"), [("Rome", False), ("Paris", True), ("", True), ("not Rome", True)])
def test_contextual_ignorance(text: str, ignored: bool) -> None:
    """Passages that are right: contextual and parametric answers are the same."""
    assert ignorance(verdict(text, ["Rome"], ["Rome"])) is ignored


@pytest.mark.parametrize(("text", "taken"), [("Au", True), ("Rome", False), ("Paris", False), ("Rome, not Au", False)])
def test_contextual_over_inclusion(text: str, taken: bool) -> None:
    assert over_inclusion(verdict(text, ["Au"], ["Rome"])) is taken


def test_examples_in_docstrings() -> None:
    done = doctest.testmod(sys.modules["ckcontrol.eval.judging.measures"])
    assert done.attempted
    assert not done.failed
