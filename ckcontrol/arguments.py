"""Numbers as arguments: in range, finite, and not a bool; or a `ControlError` that names value and range."""

from __future__ import annotations

import math
from typing import Any

from .errors import ControlError

__all__ = ["a_kind", "check_integer", "check_number"]


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return `value` as a float in [low, high]; bools, strings, NaN and infinities raise `ControlError`."""
    hint = f"Give a number from {low} to {high}."
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ControlError(f"{name}={value!r:.80} is {a_kind(value)}, not a number.", hint)
    if isinstance(value, float) and not math.isfinite(value):
        raise ControlError(f"{name}={value!r} is not a finite number.", hint)
    if not low <= value <= high:
        raise ControlError(f"{name}={_shown(value)} is out of range.", hint)
    return float(value)


def check_integer(name: str, value: Any, low: float, high: float) -> int:
    """Return `value` if it is an int in [low, high]; anything else raises `ControlError`."""
    hint = f"Give a whole number from {low} to {high}."
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ControlError(f"{name}={value!r:.80} is {a_kind(value)}, not a whole number.", hint)
    if not isinstance(value, int):
        raise ControlError(f"{name}={value!r} is not a whole number.", hint)
    if not low <= value <= high:
        raise ControlError(f"{name}={_shown(value)} is out of range.", hint)
    return value


def a_kind(value: Any) -> str:
    """Return what kind of thing a value is, as part of a sentence: ``a str``, ``an int``, ``None``."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _shown(value: float) -> str:
    if abs(value) < 1e100:
        return f"{value!r}"
    try:
        return f"{str(value)[:60]}..."
    except ValueError:  # Python writes out no more than 4,300 digits
        return "a number of many digits"
