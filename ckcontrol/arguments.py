"""Numbers as arguments: in range, finite, and not a bool; or a `ControlError` that names value and range."""

from __future__ import annotations

import math
from typing import Any

from .errors import ControlError

__all__ = ["check_integer", "check_number"]


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return `value` as a float in [low, high]; bools, strings, NaN and infinities raise `ControlError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ControlError(f"{name}={value!r} is not a finite number.", f"Give a number from {low} to {high}.")
    if not low <= value <= high:
        raise ControlError(f"{name}={value!r} is out of range.", f"Give a number from {low} to {high}.")
    return float(value)


def check_integer(name: str, value: Any, low: float, high: float) -> int:
    """Return `value` if it is an int in [low, high]; anything else raises `ControlError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ControlError(f"{name}={value!r} is not valid.", f"Give a whole number from {low} to {high}.")
    return value
