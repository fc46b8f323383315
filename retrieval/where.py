"""Filters on metadata: a mapping in, checked conditions out, and their SQL.

Knows names, operators and values; knows nothing of vectors. Values never enter the SQL text: they are bound.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from ckcontrol.errors import RetrievalError, did_you_mean

if TYPE_CHECKING:
    from .types import Passage

__all__ = ["COLUMNS", "MOST", "Condition", "is_text", "parse_where", "passing", "to_sql"]

OPERATORS = {"$eq": "=", "$ne": "<>", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<=", "$in": "IN", "$nin": "NOT IN"}
MOST = 500  # conditions
GROUP = 25  # conditions in one pair of brackets: SQLite nests 1,000 expressions at most
TEXT = "texts without NUL and without half a surrogate pair"
COLUMNS = ("id", "source", "document")  # of the passage itself; every other name is a metadata key


class Condition(NamedTuple):
    """One test that a passage must pass.

    Attributes:
        name: A metadata key, or "id", "source" or "document".
        op: "eq", "ne", "gt", "gte", "lt", "lte", "in" or "nin".
        value: A text, number or boolean; for "in" and "nin" a tuple of them.
    """

    name: str
    op: str
    value: Any


def parse_where(where: Mapping[str, Any] | None) -> tuple[Condition, ...]:
    """Check a filter such as ``{"year": {"$gte": 2000}, "lang": ["en", "de"]}``; all of it must hold.

    A bare value means ``$eq``, a bare list ``$in``. A passage without the key passes no condition on it.

    Raises:
        RetrievalError: Not a mapping, an unknown operator, a value that is not a text (without NUL or half a surrogate
            pair), finite number or boolean, or more than 500 conditions.
    """
    if where is None:
        return ()
    if not isinstance(where, Mapping):
        raise RetrievalError(f"where={where!r} is not a mapping.", "For example: where={'year': {'$gte': 2000}}")
    found: list[Condition] = []
    for name, wanted in where.items():
        if not name or not is_text(name):
            raise RetrievalError(f"where: {name!r} is not a metadata name.", f"Names are {TEXT}.")
        if isinstance(wanted, Mapping):
            if not wanted:
                raise RetrievalError(f"where: {name!r} has no condition.", did_you_mean("", OPERATORS))
            found += [_condition(name, op, value) for op, value in wanted.items()]
        else:
            found.append(_condition(name, "$in" if isinstance(wanted, (list, tuple, set)) else "$eq", wanted))
    if len(found) > MOST:
        raise RetrievalError(
            f"where: {len(found):,} conditions are more than {MOST}.",
            "Give several values of one name as a list: {'id': ['a', 'b']} is one condition.",
        )
    return tuple(found)


def is_text(value: object) -> bool:
    """Return whether a value is a text that is stored and compared whole.

    Half a surrogate pair is not a character, and at a NUL SQLite's JSON functions and much other software end a text.
    """
    try:
        return isinstance(value, str) and "\0" not in value and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _condition(name: str, op: Any, value: Any) -> Condition:
    if not isinstance(op, str) or op not in OPERATORS:
        raise RetrievalError(f"where: {name!r} has the operator {op!r}.", did_you_mean(str(op), OPERATORS))
    if op in ("$in", "$nin"):
        if not isinstance(value, (list, tuple, set)) or not value:
            raise RetrievalError(f"where: {name!r} {op} {value!r} needs a list.", "For example: {'$in': ['a', 'b']}")
        return Condition(name, op[1:], tuple(_scalar(name, item) for item in value))
    return Condition(name, op[1:], _scalar(name, value))


def _scalar(name: str, value: Any) -> Any:
    if is_text(value) or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise RetrievalError(f"where: {name!r} is compared with {value!r}.", f"Compare with {TEXT}, numbers or booleans.")


def to_sql(conditions: tuple[Condition, ...], alias: str = "p") -> tuple[str, list[Any]]:
    """Return a WHERE clause over the table of passages, without the word WHERE, and what to bind to it."""
    clauses, bound = [], []
    for name, op, value in conditions:
        if name in COLUMNS:
            test, values = _test(op, value, f"{alias}.{name}", "'text'")
            clauses.append(test)
        else:  # json_each and not a JSON path: in a path no version of SQLite can quote every name
            test, values = _test(op, value, "m.value", "m.type")
            clauses.append(f"EXISTS (SELECT 1 FROM json_each({alias}.metadata) m WHERE m.key = ? AND {test})")
            bound.append(name)
        bound += values
    if any(
        name not in COLUMNS for name, _, _ in conditions
    ):  # older indexes hold texts with NUL, at which json_each ends: such a passage passes no condition
        clauses.append(f"instr(replace({alias}.metadata, '\\\\', ''), '\\u0000') = 0")
    groups = [" AND ".join(clauses[start : start + GROUP]) for start in range(0, len(clauses), GROUP)]
    return " AND ".join(f"({group})" for group in groups) or "1", bound


def passing(passages: Sequence[Passage], conditions: tuple[Condition, ...]) -> list[bool]:
    """Return which passages meet all conditions, in the SQL that an index is searched with; these are in none."""
    if not conditions:
        return [True] * len(passages)
    clause, bound = to_sql(conditions)
    query = f"SELECT 1 FROM (SELECT ? AS id, ? AS source, ? AS document, ? AS metadata) p WHERE {clause}"
    with closing(sqlite3.connect(":memory:")) as base:
        rows = [
            (one.id, one.source, str(one.metadata.get("document", "")), json.dumps(dict(one.metadata)))
            for one in passages
        ]
        return [base.execute(query, [*row, *bound]).fetchone() is not None for row in rows]


def _test(op: str, value: Any, left: str, typed: str) -> tuple[str, list[Any]]:
    """Return SQL that compares only values of one JSON type: true is not 1, "1" is not 1."""
    groups: dict[str, list[Any]] = {}
    for item in value if op in ("in", "nin") else (value,):
        groups.setdefault(_types(item), []).append(int(item) if isinstance(item, bool) else item)
    if op not in ("in", "nin", "eq", "ne"):
        ((types, values),) = groups.items()
        return f"{typed} IN {types} AND {left} {OPERATORS['$' + op]} ?", values
    # a JSON list is one value to bind, and SQLite binds at most 32,766
    equal = " OR ".join(f"({typed} IN {types} AND {left} IN (SELECT value FROM json_each(?)))" for types in groups)
    if op in ("ne", "nin"):  # another type is another value
        equal = f"{typed} <> 'null' AND NOT ({equal})"
    return f"({equal})", [json.dumps(values, ensure_ascii=False) for values in groups.values()]


def _types(value: Any) -> str:
    if isinstance(value, bool):
        return "('true', 'false')"
    return "('text')" if isinstance(value, str) else "('integer', 'real')"
