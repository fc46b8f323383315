"""Filters for Milvus in which a name or a value cannot be anything but a name or a value.

Milvus takes filters as text, and its engines differ in what they escape, in how true compares with 1, and in what
``!=`` says of a key that is not there. So nothing is escaped: beside each passage lies a JSON column of *facets*, in
which names and texts are written in hexadecimal and types are told apart by the key, and a filter consists of nothing
but such keys, hexadecimal texts, numbers, ``== < <= > >=``, ``and`` and ``or``.

    {"year": 1999, "lang": "en", "new": true}
    {"n79656172": 1999, "k79656172": "n", "s6c616e67": "656e", "k6c616e67": "s", "b6e6577": 1, "k6e6577": "b"}

Knows metadata and conditions; knows nothing of clients or collections. UTF-8 in hexadecimal sorts as the text does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..where import OPERATORS, Condition

__all__ = ["facets", "to_filter"]

COLUMN = "facets"
KINDS = "bnos"  # booleans, numbers, others (lists, mappings), texts


def facets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what filters read of these values. None is as if the name were not there."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        kind, plain = _plain(value)
        found["k" + _hex(name)] = kind
        if kind != "o":
            found[kind + _hex(name)] = plain
    return found


def to_filter(conditions: Sequence[Condition]) -> str:
    """Return a filter over the facets; empty for no conditions."""
    return " and ".join(_clause(condition) for condition in conditions)


def _clause(condition: Condition) -> str:
    name, op, value = condition
    if op == "in":
        return _join("or", [_equal(name, item) for item in value])
    if op == "nin":
        return _join("and", [_differs(name, item) for item in value])
    if op == "eq":
        return _equal(name, value)
    if op == "ne":
        return _differs(name, value)
    return _compare(name, OPERATORS[f"${op}"], value)


def _compare(name: str, sign: str, value: Any) -> str:
    kind, plain = _plain(value)
    return f'{COLUMN}["{kind}{_hex(name)}"] {sign} ' + (f'"{plain}"' if kind == "s" else repr(plain))


def _equal(name: str, value: Any) -> str:
    return _compare(name, "==", value)


def _differs(name: str, value: Any) -> str:
    """True for another value, one of another type included; false where there is none."""
    kind, _ = _plain(value)
    others = [f'{COLUMN}["k{_hex(name)}"] == "{other}"' for other in KINDS if other != kind]
    return _join("or", [_compare(name, "<", value), _compare(name, ">", value), *others])


def _join(word: str, clauses: list[str]) -> str:
    """Join as a balanced tree: engines parse and run long lists recursively."""
    if len(clauses) == 1:
        return clauses[0]
    middle = len(clauses) // 2
    return f"({_join(word, clauses[:middle])} {word} {_join(word, clauses[middle:])})"


def _plain(value: Any) -> tuple[str, Any]:
    """Return the kind of a value and what stands for it."""
    if isinstance(value, bool):
        return "b", int(value)
    if isinstance(value, str):
        return "s", _hex(value)
    if isinstance(value, float):
        return "n", float(value)  # a numpy float is one, and writes itself differently
    if isinstance(value, int) and abs(value) < 2**1023:
        return "n", int(value) if abs(value) < 2**63 else float(value)
    return "o", None


def _hex(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").hex()
