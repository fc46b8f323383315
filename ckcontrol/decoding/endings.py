"""How a run ends, whatever ends it: the streamer is told once, and nothing of ours stays behind in the process.

An interrupt (Ctrl-C) may arrive between any two instructions, also between entering a context manager and its body. So
whatever a run changes is put back here once more by steps that may be repeated, under two `finally`s: an interrupt in
the first leaves the second. Knows torch's gradient mode and streamers; knows no model.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["Once", "ends_streamer", "torch_as_it_was", "whatever_happens"]

P = ParamSpec("P")
R = TypeVar("R")


def whatever_happens(work: Callable[[], R], *undo: Callable[[], object]) -> R:
    """Return what `work` returns; run every `undo` after it, also if an interrupt arrives in the middle of one.

    Args:
        work: Does something.
        undo: Puts back what it may have left; running it again does nothing.
    """
    try:
        try:
            return work()
        finally:
            for step in undo:
                step()
    finally:
        for step in undo:
            step()


def torch_as_it_was() -> Callable[[], None]:
    """Return a function that puts torch's gradient mode of this thread back to what it is now."""
    import torch

    grad = torch.is_grad_enabled()

    def put_back() -> None:
        torch.set_grad_enabled(grad)

    return put_back


class Once:
    """A transformers streamer that is ended once, however often it is told."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._ended = False

    def put(self, value: torch.Tensor) -> None:
        """Hand on tokens."""
        self._streamer.put(value)

    def end(self) -> None:
        """End the streamer, unless it has been; an interrupt before it returned does not count."""
        if self._ended:
            return
        try:
            self._streamer.end()
        except Exception:
            self._ended = True
            raise
        self._ended = True

    def around(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function ending the streamer once on every exit; if it is never called, when it is forgotten."""

        @functools.wraps(function)
        def ending(*args: P.args, **kwargs: P.kwargs) -> R:
            self._ended = False
            return whatever_happens(lambda: function(*args, **kwargs), self.end)

        weakref.finalize(ending, self.end).atexit = False
        return ending


def ends_streamer(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function with a keyword `streamer` end it on every exit, a refusal of the question included."""

    @functools.wraps(function)
    def ending(*args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs.get("streamer") is None:
            return function(*args, **kwargs)
        once = Once(kwargs["streamer"])
        kwargs["streamer"] = once
        return whatever_happens(lambda: function(*args, **kwargs), once.end)

    return ending
