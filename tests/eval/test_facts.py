"""The shipped capitals: each record must be able to tell memory from context, and read like English."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from ckcontrol.eval import Fact, load_capitals, mentions, normalize

FACTS = load_capitals()
CAPITALS = {fact.answer for fact in FACTS}


def test_enough_and_unique() -> None:
    assert len(FACTS) >= 160
    assert len({fact.subject for fact in FACTS}) == len(FACTS)
    assert len(CAPITALS) == len(FACTS)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.subject)
def test_a_fact_separates_its_two_answers(fact: Fact) -> None:
    assert mentions(fact.passage_true, fact.answers)
    assert not mentions(fact.passage_true, fact.false_answer)
    assert mentions(fact.passage_false, fact.false_answer)
    assert not mentions(fact.passage_false, fact.answers)
    for answer in (*fact.answers, fact.false_answer):
        assert not mentions(fact.question, answer), "the question gives it away"
        assert answer == answer.strip()
        assert answer.isascii()
    for answer in map(normalize, fact.answers):
        false = normalize(fact.false_answer)
        assert answer not in false
        assert false not in answer
        assert not set(answer.split()) & set(false.split())
        assert not set(answer.split()) & set(normalize(fact.subject).split())
    assert fact.false_answer in CAPITALS
    assert fact.false_answer[0] != fact.answer[0]


def test_passages_differ_in_the_answer_only() -> None:
    for fact in FACTS:
        swapped = re.sub(rf"\b{re.escape(fact.answer)}\b", fact.false_answer, fact.passage_true)
        assert swapped == fact.passage_false


def test_articles() -> None:
    """Countries with "the" in running text, and no others; a passage that opens with one has a capital."""
    with_article = {
        "Bahamas",
        "Central African Republic",
        "Comoros",
        "Democratic Republic of the Congo",
        "Dominican Republic",
        "Gambia",
        "Netherlands",
        "Philippines",
        "Republic of the Congo",
        "Solomon Islands",
        "United Arab Emirates",
        "United Kingdom",
    }
    for fact in FACTS:
        named = f"the {fact.subject}" if fact.subject in with_article else fact.subject
        assert fact.question == f"What is the capital of {named}?"
        opening = named[0].upper() + named[1:]
        for passage in (fact.passage_true, fact.passage_false):
            assert named in passage or passage.startswith(opening)
            assert f"the {fact.subject}" not in passage or fact.subject in with_article
            assert passage[0].isupper()
            assert passage.endswith(".")
            assert "{" not in passage


def test_no_false_answer_dominates() -> None:
    """A model that always named one city must not look faithful to the context."""
    assert Counter(fact.false_answer for fact in FACTS).most_common(1)[0][1] <= 2


def test_reviewed_exclusions_stay_out() -> None:
    out = {
        "Bolivia",
        "Georgia",
        "Israel",
        "Ivory Coast",
        "Luxembourg",
        "Maldives",
        "Netherlands Antilles",
        "Serbia and Montenegro",
        "Singapore",
        "South Africa",
        "Sri Lanka",
        "Western Sahara",
    }
    assert not out & {fact.subject for fact in FACTS}
