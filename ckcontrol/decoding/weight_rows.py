"""Which adapter each row of a running forward takes, for `Control("weights")`.

A dial that is loaded onto a model is entered here; a stream carries the names of its rows' adapters through forwards.
Knows names and rows; the adapters themselves, and the hooks that read `rows_now`, are ckcontrol/weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import ControlError, UnsupportedMode
from ..policies import Policy, Weights
from .refusals import bare

__all__ = ["BASE", "DIALS", "Rows", "adapters_of", "by_adapter", "nearest", "rows_now", "rows_take"]

T = TypeVar("T")
BASE = "__base__"  # PEFT's name, in a batch of several adapters, for a row without one
# Model -> alpha -> name of its adapter.
DIALS: weakref.WeakKeyDictionary[Any, Mapping[float, str]] = weakref.WeakKeyDictionary()
_ROWS: ContextVar[Rows | None] = ContextVar("rows_now", default=None)


class Rows:
    """The adapter of each row of one forward.

    Args:
        names: One per row; `BASE` for none.

    Attributes:
        used: The adapters that some row takes, each once, sorted.
        only: The one that every row takes; None where they differ.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.used = tuple(sorted({*names} - {BASE}))
        self.only = names[0] if len({*names}) == 1 else None
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def keep(self, widths: tuple[int, ...], like: Tensor) -> Tensor:
        """Return [B, sum of widths], 1 where a place is that of the row's adapter and else 0.

        Args:
            widths: How many places each adapter of `used` has.
            like: Gives dtype and device.
        """
        if widths not in self._kept:
            table = torch.zeros(len(self.names), sum(widths))
            for row, name in enumerate(self.names):
                if name in self.used:
                    place = self.used.index(name)
                    first = sum(widths[:place])
                    table[row, first : first + widths[place]] = 1
            self._kept[widths] = table.to(like)
        return self._kept[widths]


def rows_now() -> Rows | None:
    """Return the rows of the running forward; None where all of them are the base model."""
    return _ROWS.get()


@contextmanager
def rows_take(names: tuple[str, ...] | None) -> Iterator[None]:
    """Say which adapters the rows of the forwards in this block take."""
    token = _ROWS.set(None if names is None else Rows(names))
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
