"""Filters for Milvus: they mean what `where` means, and no name or value can change it.

Milvus Lite is asked for real, with hostile names and values, and compared with the meaning spelled out in Python and
with the SQL of the index on disk.
"""

from __future__ import annotations

import json
import operator
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckcontrol.retrieval.milvus.filter import facets, to_filter
from ckcontrol.retrieval.where import COLUMNS, OPERATORS, Condition, parse_where, to_sql

HOSTILE = [
    'a" or 1 == 1 or "a', "a' or id != '", '") or true or ("', "\\", 'a\\"', "\\\\", "%", "_%", "{x}", "$meta", "true",
    "1", "", " ", "a\nb", "a\tb\r", "ü", "漢字", "𝒳", "\u202eabc", "e\u0301", "é", "]", '"] == 1 or facets["', "null",
    "; drop collection", "not", "exists", "0x41", "\\u0041", "\x1b[31m", "a", "ab", "b", "B",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 2.5, -0.0, 1e-7, 1e300, 2**53, 2**53 + 1, 2**63 - 1, 2**62, -(2**62), 1999, True, False]
NAMES = ["year", "tag", *HOSTILE[:6], '"] == 1 or facets["', "ü", "a.b", "$.a", "[0]"]
VALUES = [*HOSTILE, *NUMBERS, None, ["a"], {"a": 1}, 2**70]
PLAIN = re.compile(r'(facets\["[bnsk][0-9a-f]*"\] (==|<|<=|>|>=) ("[0-9a-f]*"|"[bnos]"|-?[0-9.e+-]+)|[() ]|and|or)*')


def passage(number: int) -> dict[str, Any]:
    """Every value occurs under several names, and every name is missing somewhere."""
    metadata = {
        name: VALUES[(number * 7 + place * 11) % len(VALUES)]
        for place, name in enumerate(NAMES)
        if (number + place) % 4
    }
    text = HOSTILE[number % len(HOSTILE)]
    return {"id": f"p{number}{text}", "source": text, "document": f"d{number % 5}", "metadata": metadata}


ROWS = [passage(number) for number in range(120)]


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], set[int]]]:
    """The rows' facets in a collection; a function from a filter to the rows that pass."""
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    from ckcontrol.retrieval.milvus.client import Client

    schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("number", pymilvus.DataType.INT64, is_primary=True)
    schema.add_field("facets", pymilvus.DataType.JSON)
    schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=2)
    indexes = pymilvus.MilvusClient.prepare_index_params()
    indexes.add_index("vector", index_type="FLAT", metric_type="IP")
    client = Client(tmp_path_factory.mktemp("milvus") / "rows.db", None, 10.0, create=True)
    client.call("create_collection", "rows", schema=schema, index_params=indexes, consistency_level="Strong")
    rows = []
    for number, row in enumerate(ROWS):
        columns = {name: row[name] for name in COLUMNS}
        rows.append({"number": number, "facets": facets({**row["metadata"], **columns}), "vector": [1.0, 0.0]})
    client.call("upsert", "rows", rows)

    def passing(filter: str) -> set[int]:
        found = client.call("query", "rows", filter=filter, output_fields=["number"], limit=1000)
        return {row["number"] for row in found}

    yield passing
    client.close()


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


def passes(row: dict[str, Any], condition: Condition) -> bool:
    """What `where` means, said once more: types are told apart, and who has no value passes nothing."""
    name, op, wanted = condition
    held = row[name] if name in COLUMNS else row["metadata"].get(name)
    if held is None:
        return False
    if op in ("in", "nin"):
        return (op == "nin") != any(passes(row, Condition(name, "eq", item)) for item in wanted)
    comparable = not isinstance(held, (list, dict)) and kind(held) == kind(wanted)
    if op in ("eq", "ne"):
        return (op == "ne") != (comparable and held == wanted)
    return comparable and {
        "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le
    }[op](held, wanted)  # fmt: skip


@pytest.fixture(scope="module")
def sqlite() -> Iterator[Callable[[tuple[Condition, ...]], set[int]]]:
    """The same rows as the index on disk would keep them."""
    link = sqlite3.connect(":memory:")
    link.execute("CREATE TABLE passages(number INTEGER, id TEXT, source TEXT, document TEXT, metadata TEXT)")
    for number, row in enumerate(ROWS):
        bound = (number, row["id"], row["source"], row["document"], json.dumps(row["metadata"]))
        link.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", bound)

    def passing(conditions: tuple[Condition, ...]) -> set[int]:
        clause, bound = to_sql(conditions)
        return {row[0] for row in link.execute(f"SELECT number FROM passages p WHERE {clause}", bound)}

    yield passing
    link.close()


def expected(conditions: tuple[Condition, ...]) -> set[int]:
    return {number for number, row in enumerate(ROWS) if all(passes(row, one) for one in conditions)}


PLAIN_TEXT = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.sampled_from(HOSTILE) | st.text(PLAIN_TEXT, max_size=8)
scalars = (
    texts | st.sampled_from(NUMBERS) | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
)
one = st.sampled_from([op for op in OPERATORS if op not in ("$in", "$nin")])
many = st.sampled_from(["$in", "$nin"])
tests = st.builds(lambda op, value: {op: value}, one, scalars) | st.builds(
    lambda op, values: {op: values}, many, st.lists(scalars, min_size=1, max_size=4)
)
names = st.sampled_from([*NAMES, *COLUMNS]) | st.text(PLAIN_TEXT, min_size=1, max_size=5)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.dictionaries(names, tests, min_size=1, max_size=2))
def test_a_filter_means_what_where_means(where: Any, milvus: Any, sqlite: Any) -> None:
    conditions = parse_where(where)
    assert milvus(to_filter(conditions)) == expected(conditions) == sqlite(conditions)


@pytest.mark.parametrize("text", HOSTILE)
def test_each_hostile_text_is_found_as_itself(text: str, milvus: Any) -> None:
    found = {number for number, row in enumerate(ROWS) if row["source"] == text}
    assert found
    assert milvus(to_filter(parse_where({"source": text}))) == found
    assert milvus(to_filter(parse_where({"source": {"$ne": text}}))) == set(range(len(ROWS))) - found


@settings(max_examples=500)
@given(where=st.dictionaries(st.text(PLAIN_TEXT, min_size=1), tests, max_size=4))
def test_a_filter_holds_nothing_of_what_was_given(where: Any) -> None:
    """Whatever names and values are, a filter is made of hexadecimal keys and texts, numbers and the fixed words."""
    assert PLAIN.fullmatch(to_filter(parse_where(where)))


def test_long_lists(milvus: Any) -> None:
    ids = [row["id"] for row in ROWS[:7]] + [f"absent {number}" for number in range(400)]
    assert milvus(to_filter(parse_where({"id": ids}))) == set(range(7))


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    import numpy as np

    assert to_filter(parse_where({"year": np.float64(2.5)})) == 'facets["n79656172"] == 2.5'
    assert facets({"year": np.float64(2.5)})["n79656172"] == 2.5


def test_facets_of_the_docstring() -> None:
    assert facets({"year": 1999, "lang": "en", "new": True, "none": None, "list": [1]}) == {
        "n79656172": 1999, "k79656172": "n", "s6c616e67": "656e", "k6c616e67": "s", "b6e6577": 1, "k6e6577": "b",
        "k6c697374": "o",
    }  # fmt: skip
