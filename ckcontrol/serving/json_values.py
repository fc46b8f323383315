"""Helpers over untrusted JSON values: what to call one in a message, and which engine arguments a client may not send.

Knows JSON values; knows nothing of requests, HTTP or vLLM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

from ..errors import ControlError, PromptError, ServingError

__all__ = ["DIRECTION", "HEADS", "SALT", "flag", "half", "in_ck", "integer", "kind", "shown", "without_ours"]

HEADS = "ckheads"  # the engine argument of a head mask; beside pair_params.KEYS, as it needs no pair
DIRECTION = "ckdirection"  # that of a push along the direction: its coefficient
SALT = "ck_heads_"  # how the ``cache_salt`` of a changed model begins
Error = TypeVar("Error", ControlError, PromptError)
_CARRIERS = ("vllm_xargs", "extra_args")


def kind(value: Any) -> str:
    """Return what a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def shown(value: Any) -> str:
    """Return a value for an error message: short, whatever it is."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "…")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return "a number of many digits"
    return json.dumps(value) if value is None or isinstance(value, (bool, int, float)) else kind(value)


def flag(name: str, value: Any) -> bool:
    """Return a flag; null is false.

    Raises:
        ServingError: It is neither true nor false.
    """
    if value is not None and not isinstance(value, bool):
        raise ServingError(f"{name}={shown(value)}.", "Give true or false.")
    return bool(value)


def integer(name: str, value: Any, low: float, high: float) -> int:
    """Return a whole number in [low, high].

    Raises:
        ServingError: It is anything else, 5.0 and true included.
    """
    if type(value) is not int or not low <= value <= high:
        raise ServingError(f"{name}={shown(value)} is not valid.", f"Give a whole number from {low} to {high}.")
    return value


def half(value: Any, name: str = "") -> str | None:
    """Return the place of the first text, or name of a field, that holds half a character; None where all are whole."""
    if isinstance(value, str):
        return (name or "the body") if any("\ud800" <= letter <= "\udfff" for letter in value) else None
    inner: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        if broken := next((key for key in value if half(key)), None):
            return f"the name {broken[:64]!a}"
        inner = ((f"{name}.{key}" if name else key, one) for key, one in value.items())
    elif isinstance(value, list):
        inner = ((f"{name}[{place}]", one) for place, one in enumerate(value))
    return next((found for key, one in inner if (found := half(one, key))), None)


def in_ck(error: Error, names: Collection[str]) -> Error:
    """Return an error of the library in the words of a request: ``alpha=3`` was written as ``ck.alpha``."""
    named = rf"(?<![\w.])({'|'.join(map(re.escape, names))})(?=[=.]\S)"
    told = (re.sub(named, r"ck.\1", text) for text in (str(error).removesuffix(error.hint).rstrip(), error.hint))
    return type(error)(*told)


def without_ours(value: Any, *, top: bool = True) -> Any:
    """Return a request body without the engine arguments that are ours: a client can never name a pair.

    Taken out are the keys ``ck_*``, ``ckheads`` and ``ckdirection`` of the body itself and of every ``vllm_xargs`` and
    ``extra_args`` in it, at any depth; and a ``cache_salt`` of the form that changed models have. Whatever else a
    client calls that, a field of its JSON schema for instance, stays.
    """
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if not ((top and _is_ours(key)) or _is_salt(key, inner))}
        return {key: without_ours(inner, top=key in _CARRIERS) for key, inner in kept.items()}
    if isinstance(value, list):
        return [without_ours(inner, top=False) for inner in value]
    return value


def _is_ours(key: str) -> bool:
    return key.startswith("ck_") or key in (HEADS, DIRECTION)


def _is_salt(key: str, value: Any) -> bool:
    return key == "cache_salt" and isinstance(value, str) and value.startswith(SALT)
