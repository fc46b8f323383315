"""Which adapter each row of a running forward takes, for `Control("weights")`.

A dial that is loaded onto a model is entered here; a stream carries the names of its rows' adapters through forwards.
Knows names and rows; the adapters themselves, and the hooks that read `row_adapters`, are ckcontrol/weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from ..errors import ControlError, UnsupportedMode
from ..policies import Policy, Weights
from .refusals import bare

__all__ = ["BASE", "DIALS", "adapters_of", "by_adapter", "nearest", "row_adapters", "rows_take"]

T = TypeVar("T")
BASE = "__base__"  # PEFT's name, in a batch of several adapters, for a row without one
# Model -> alpha -> name of its adapter.
DIALS: weakref.WeakKeyDictionary[Any, Mapping[float, str]] = weakref.WeakKeyDictionary()
_ROWS: ContextVar[tuple[str, ...] | None] = ContextVar("row_adapters", default=None)


def row_adapters() -> tuple[str, ...] | None:
    """Return the adapter of each row of the running forward; None where all rows are the base model."""
    return _ROWS.get()


@contextmanager
def rows_take(names: tuple[str, ...] | None) -> Iterator[None]:
    """Say which adapters the rows of the forwards in this block take."""
    token = _ROWS.set(names)
    try:
        yield
    finally:
        _ROWS.reset(token)


def nearest(dial: Mapping[float, T], alpha: float) -> T:
    """Return what a dial holds nearest to an alpha; of two as near, the one nearer to 0.5."""
    return dial[min(dial, key=lambda held: (abs(held - alpha), abs(held - 0.5)))]


def adapters_of(model: Any, policies: Sequence[Policy], compile: bool | None) -> tuple[str, ...] | None:
    """Return the adapter of each row, `nearest` to its alpha; None: no row's.

    Args:
        model: Decodes the rows.
        policies: One per row.
        compile: As in `GenerateOptions`.

    Raises:
        ControlError: No dial was loaded onto the model, or rows of other methods would run in two streams beside.
        UnsupportedMode: Model or steps are compiled: compiled code does not see which rows take which adapter.
    """
    chosen = [policy for policy in policies if isinstance(policy, Weights)]
    if not chosen:
        return None
    if compile or hasattr(model, "_orig_mod"):
        raise UnsupportedMode(
            "method 'weights' is not done in compiled code, which would keep the adapters of the first batch.",
            "Leave compile out, and load the dial onto a model that is not compiled.",
        )
    dial = DIALS.get(bare(model))
    if dial is None:
        raise ControlError(
            f"Control('weights', alpha={chosen[0].alpha!r}) met a model without a dial.",
            'Load one: ckcontrol.weights.load(model, "dial/").',
        )
    for policy in policies:
        if not policy.neutral:
            raise ControlError(
                f"method 'weights' decodes one stream, and {policy.name!r} in the same batch decodes two.",
                "Ask them in batches of their own.",
            )
    names = tuple(nearest(dial, policy.position) if isinstance(policy, Weights) else BASE for policy in policies)
    return None if set(names) == {BASE} else names


def by_adapter(model: Any, policies: Sequence[Policy]) -> dict[str | None, list[int]]:
    """Return the places of the policies that share an adapter, in order; None: those of the base model.

    Raises:
        ControlError: As `adapters_of`, for a single policy.
        UnsupportedMode: The same.
    """
    places: dict[str | None, list[int]] = {}
    for i, policy in enumerate(policies):
        (name,) = adapters_of(model, [policy], None) or (None,)
        places.setdefault(name, []).append(i)
    return places
