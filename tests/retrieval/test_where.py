"""Filters mean what they say: types are apart, names and values are only names and values."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckcontrol.errors import RetrievalError
from ckcontrol.retrieval import Index, Passage
from ckcontrol.retrieval.where import Condition, parse_where

from .hashes import Hashes

SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {str: "text", int: "number", float: "number"}.get(type(value), "other")


def same(one: Any, other: Any) -> bool:
    return kind(one) == kind(other) and bool(one == other)


def holds(passage: Passage, name: str, op: str, wanted: Any) -> bool:
    """The meaning of one condition, spelled out."""
    columns = {"id": passage.id, "source": passage.source, "document": passage.id}
    value = columns.get(name, passage.metadata.get(name))
    if value is None:
        return False
    if op in SIGNS:
        return kind(value) == kind(wanted) and SIGNS[op](value, wanted)
    several = wanted if op in ("$in", "$nin") else [wanted]
    return any(same(value, item) for item in several) == (op in ("$eq", "$in"))


@pytest.fixture(scope="module")
def typed() -> Iterator[Index]:
    values = [True, False, 1, 0, 1.0, 2.5, "1", "true", "", None, [1], {"a": 1}, 2**70, -3, "[1]"]
    passages = [Passage(f"{n}", f"text {n}", f"s{n % 2}", {"v": value}) for n, value in enumerate(values)]
    with Index.build([*passages, Passage("bare", "text without")], Hashes()) as index:
        yield index


def found(index: Index, where: Any, mode: str = "dense") -> set[str]:
    return {hit.passage.id for hit in index.search("text", k=99, where=where, mode=mode)}


ALL = {str(n) for n in range(15)}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"v": True}, {"0"}),
        ({"v": 1}, {"2", "4"}),
        ({"v": 1.0}, {"2", "4"}),
        ({"v": "1"}, {"6"}),
        ({"v": ""}, {"8"}),
        ({"v": [True, 0, "1"]}, {"0", "3", "6"}),
        ({"v": {"$in": [False]}}, {"1"}),
        ({"v": {"$ne": 1}}, ALL - {"2", "4", "9"}),
        ({"v": {"$ne": True}}, ALL - {"0", "9"}),
        ({"v": {"$ne": "[1]"}}, ALL - {"9", "14"}),
        ({"v": {"$nin": [1, "1", True]}}, ALL - {"0", "2", "4", "6", "9"}),
        ({"v": {"$gt": 0}}, {"2", "4", "5", "12"}),
        ({"v": {"$gt": False}}, {"0"}),
        ({"v": {"$gte": ""}}, {"6", "7", "8", "14"}),
        ({"v": {"$gt": 0, "$lt": 2}}, {"2", "4"}),
        ({"v": {"$gte": 1}, "source": "s0"}, {"2", "4", "12"}),
        ({"id": ["3", "bare", "nobody"]}, {"3", "bare"}),
        ({"id": 3}, set()),
        ({"id": {"$ne": 3}, "source": {"$in": ["s1", 1]}}, {"1", "3", "5", "7", "9", "11", "13"}),
        ({"document": "bare"}, {"bare"}),
        ({"nothing": {"$ne": 1}}, set()),
        ({}, ALL | {"bare"}),
        (None, ALL | {"bare"}),
        ({"id": [str(n) for n in range(2, 100_000)]}, ALL - {"0", "1"}),  # SQLite binds 32,766 at most
        ({"id": {"$nin": [str(n) for n in range(2, 100_000)]}}, {"0", "1", "bare"}),
    ],
)
def test_types_are_apart(typed: Index, where: Any, expected: set[str]) -> None:
    for mode in ("dense", "bm25", "hybrid"):
        assert found(typed, where, mode) == expected, mode


def test_filters_that_are_equal_in_python_are_not_confused(typed: Index) -> None:
    """True == 1 == 1.0, also as keys of what is remembered between searches."""
    for _ in range(2):
        assert found(typed, {"v": 1}) == {"2", "4"}
        assert found(typed, {"v": True}) == {"0"}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("year", "not a mapping"),
        ([("year", 1)], "not a mapping"),
        ({1: 2}, "not a metadata name"),
        ({"": 2}, "not a metadata name"),
        ({"\ud800": 2}, "not a metadata name"),
        ({"tenant\0": 2}, "not a metadata name"),
        ({"tenant": "acme\0evil"}, "compared with 'acme"),
        ({"id": {"$in": ["a", "b\0"]}}, "compared with 'b"),
        ({f"n{n}": n for n in range(501)}, "501 conditions are more than 500"),
        ({"n": {"$gt": 0}, **{f"n{n}": {"$gt": n, "$lt": n} for n in range(1000)}}, "2,001 conditions"),
        ({"year": {}}, "has no condition"),
        ({"year": {"gte": 2}}, "operator 'gte'"),
        ({"year": {"$or": [1]}}, r"operator '\$or'"),
        ({"year": {None: 1}}, "operator None"),
        ({"year": {"$in": "abc"}}, "needs a list"),
        ({"year": {"$in": []}}, "needs a list"),
        ({"year": []}, "needs a list"),
        ({"year": {"$in": [1, None]}}, "compared with None"),
        ({"year": None}, "compared with None"),
        ({"year": float("nan")}, "compared with nan"),
        ({"year": float("inf")}, "compared with inf"),
        ({"year": 2**63}, "compared with 9223372036854775808"),
        ({"year": {"$gt": [1]}}, r"compared with \[1\]"),
        ({"year": b"1"}, "compared with b'1'"),
        ({"year": "\ud800"}, "compared with"),
    ],
)
def test_what_is_no_filter(typed: Index, where: Any, message: str) -> None:
    with pytest.raises(RetrievalError, match=message) as caught:
        typed.search("text", where=where)
    assert caught.value.hint
    with pytest.raises(RetrievalError, match=message):
        typed.remove(where=where)


def test_as_many_conditions_as_are_allowed(typed: Index) -> None:
    where = {"v": 1, "id": "2", **{f"n{n}": {"$ne": n} for n in range(498)}}
    assert [found(typed, where, mode) for mode in ("dense", "bm25", "hybrid")] == [set()] * 3
    with Index.build([Passage("p", "text", metadata={f"n{n}": "x" for n in range(500)})], Hashes()) as index:
        assert found(index, {f"n{n}": ["x", 1, True] for n in range(500)}, "hybrid") == {"p"}
        assert index.remove(where={f"n{n}": "x" for n in range(500)}).removed == 1


def test_a_text_with_nul_in_an_older_index_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions stored it; SQLite reads it up to the NUL."""
    monkeypatch.setattr("ckcontrol.retrieval.writing.ESCAPED_NUL", re.compile("(?!)"))
    stored = {"plain": "acme", "evil": "acme\0evil", "text": r"acme\u0000evil"}
    with Index.build([Passage(n, f"text {n}", "", {"tenant": v}) for n, v in stored.items()], Hashes()) as index:
        for mode in ("dense", "bm25", "hybrid"):
            assert found(index, {"tenant": "acme"}, mode) == {"plain"}
            assert found(index, {"tenant": r"acme\u0000evil"}, mode) == {"text"}
        assert index.remove(where={"tenant": "acme"}).removed == 1
        assert {passage.id for passage in index.passages()} == {"evil", "text"}


def test_parsed() -> None:
    assert parse_where({"a": {"$gt": 1, "$lt": 3}, "b": ("x", True)}) == (
        Condition("a", "gt", 1),
        Condition("a", "lt", 3),
        Condition("b", "in", ("x", True)),
    )


# --- any names and values ----------------------------------------------------------------------------------------

HOSTILE = [
    'a"b', "a'b", "a\\", "\\", '\\"', "$.a", "a.b", "a[0]", "[0]", "#", "a\nb", "a\tb", "é", "e\u0301", "漢", "𝒳",
    "') OR 1=1 --", '"; DROP TABLE texts; --', "%", "_", "?", ":a", "@a", "NULL", "key", "value", "type", " ", "\x1b",
    "A", "a", "\\u0061", "metadata", "\u202e",
]  # fmt: skip
TEXTS = st.sampled_from(HOSTILE) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3
)
NUMBERS = st.sampled_from([0, 1, -1, 2**53, 2**53 + 1, 2**63 - 1, 0.1, 1e300, 5e-324, -0.0, 0.30000000000000004])
VALUES = TEXTS | NUMBERS | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.sampled_from([*HOSTILE, "id", "source"])
CONDITIONS = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne", *SIGNS]), VALUES),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(VALUES, min_size=1, max_size=4)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    metadata=st.lists(st.dictionaries(NAMES, VALUES | st.none() | st.just([1]), max_size=4), min_size=1, max_size=12),
    filters=st.lists(st.dictionaries(NAMES, CONDITIONS, min_size=1, max_size=2), min_size=1, max_size=12),
)
def test_against_a_plain_filter(metadata: list[dict[str, Any]], filters: list[dict[str, tuple[str, Any]]]) -> None:
    passages = [Passage(f"{HOSTILE[n]}{n}", f"text {n}", HOSTILE[-n - 1], data) for n, data in enumerate(metadata)]
    with Index.build(passages, Hashes()) as index:
        for chosen in filters:
            expected = {p.id for p in passages if all(holds(p, name, *test) for name, test in chosen.items())}
            where = {name: {op: value} for name, (op, value) in chosen.items()}
            assert found(index, where) == expected
        assert [(p.id, p.source, p.metadata) for p in index.passages()] == [
            (p.id, p.source, p.metadata) for p in passages
        ]
        gone = {p.id for p in passages if all(holds(p, name, *test) for name, test in filters[0].items())}
        where = {name: {op: value} for name, (op, value) in filters[0].items()}
        assert index.remove(where=where).removed == len(gone)
        assert {p.id for p in index.passages()} == {p.id for p in passages} - gone


def test_names_that_no_passage_has_are_told(typed: Index) -> None:
    told = "No passage has 'n' or 'x' to filter by. Known: document, id, source, v."
    with Index.build([Passage("a", "text", metadata={"v": 1, "n": None})], Hashes()) as index:
        assert index.unmet({"x": 1, "v": 9, "n": 1, "id": "b"}) == told
    assert typed.unmet({"v": "nobody's"}) == typed.unmet({"source": "s9"}) == typed.unmet(None) == ""
