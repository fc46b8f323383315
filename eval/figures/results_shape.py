"""What results.json holds, down to every number: a file of another shape is refused by path before it is drawn.

Knows names and JSON types; knows no file and computes nothing. Names beside those that are known are let through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .rows import Line

__all__ = ["misshapen_at"]

TEXT, COUNT, NUMBER = "a text", "a count", "a number or null"
ESTIMATE: Line = {"value": NUMBER, "low": NUMBER, "high": NUMBER, "n": COUNT}
METRICS: Line = {"*": ESTIMATE}
DIFFERENCE: Line = {"difference": NUMBER, "low": NUMBER, "high": NUMBER, "p": NUMBER, "p_holm?": NUMBER}
DIFFERENCE |= {"n": COUNT, "groups?": COUNT, "up?": COUNT, "down?": COUNT, "ties?": COUNT}
PLACE: Line = {"task": TEXT, "state": TEXT, "arm": TEXT}
POINT: Line = {"alpha": NUMBER, "arm": TEXT, "*": ESTIMATE}
SUMMARY: Line = {"mr_range?": [NUMBER], "harm?": {"*": NUMBER}, "*": NUMBER}
# A name with ? may be missing or null, * is every name, a list holds any number of what is in it.
SHAPE: Line = {
    "schema": COUNT,
    "tasks?": {"*": {"kind?": TEXT}},
    "cells": [PLACE | {"n?": COUNT, "groups?": COUNT, "errors?": COUNT, "metrics": METRICS}],
    "pairs?": [PLACE | {"against": TEXT, "metric": TEXT} | DIFFERENCE],
    "curves?": [{"task": TEXT, "state?": TEXT, "method": TEXT, "points?": [POINT], "summary?": SUMMARY}],
}


def misshapen_at(value: Any, shape: Any = SHAPE, path: str = "") -> str:
    """Return where a value is not of a shape, and what it should be; empty where it is.

    Example:
        >>> misshapen_at({"schema": 1, "cells": [{"task": 3}]})
        'cells[0].task is int, not a text'
    """
    if isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            return _not(value, "an object", path)
        named = {name.rstrip("?"): (inner, name.endswith("?")) for name, inner in shape.items() if name != "*"}
        for name, (inner, free) in named.items():
            here = f"{path}.{name}".lstrip(".")
            if name not in value and not free:
                return f"{here} is missing"
            left_out = free and value.get(name) is None
            if not left_out and (told := misshapen_at(value[name], inner, here)):
                return told
        others = (name for name in value if name not in named and "*" in shape)
        return next(filter(None, (misshapen_at(value[n], shape["*"], f"{path}.{n}".lstrip(".")) for n in others)), "")
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _not(value, "a list", path)
        return next(filter(None, (misshapen_at(v, shape[0], f"{path}[{i}]") for i, v in enumerate(value))), "")
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {
        TEXT: isinstance(value, str),
        COUNT: plain and isinstance(value, int) and value >= 0,
        NUMBER: plain or value is None,
    }
    return "" if fits[shape] else _not(value, shape, path)


def _not(value: Any, wanted: str, path: str) -> str:
    return f"{path or 'it'} is {'null' if value is None else type(value).__name__}, not {wanted}"
