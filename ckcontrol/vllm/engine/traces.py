"""What was recorded about pairs in the worker, until somebody asks for it.

Everything stays on the device while a pair runs; the first copy to the host is `take`. The stores are found through a
list of this module, because vLLM builds the processor and hands out no reference. Knows tensors and pair names; knows
nothing of logits or schedulers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

__all__ = ["BROKEN", "MAX_TOKENS", "TraceStore", "take_all"]

BROKEN = ("", "contextual", "parametric", "fused")  # what the codes of `TraceStore.mark` mean
MAX_TOKENS = 1_000_000  # tokens kept in all; the least recently written pair goes first
_MAX_PAIRS = 65_536
_STORES: WeakSet[TraceStore] = WeakSet()


class TraceStore:
    """Traces and failures of pairs, bounded; what nobody fetches is forgotten, oldest first."""

    def __init__(self) -> None:
        self._traces: OrderedDict[str, dict[int, tuple[Tensor, int]]] = OrderedDict()
        self._broken: OrderedDict[str, Tensor] = OrderedDict()
        self._failed: OrderedDict[str, str] = OrderedDict()
        self._tokens = 0
        _STORES.add(self)

    def add(self, pair: str, position: int, values: Tensor, row: int) -> None:
        """Record one token: row `row` of `values`, [P, 10], at output position `position` (written again: replaced)."""
        trace = self._traces.setdefault(pair, {})
        self._traces.move_to_end(pair)
        self._tokens += position not in trace
        trace[position] = (values, row)
        while self._tokens > MAX_TOKENS and len(self._traces) > 1:
            _, gone = self._traces.popitem(last=False)
            self._tokens -= len(gone)

    def mark(self, pair: str, broken: Tensor) -> None:
        """Remember which logits of a pair became NaN or infinite: an index into `BROKEN`, uint8, on the device."""
        self._broken[pair] = broken
        self._broken.move_to_end(pair)
        if len(self._broken) > _MAX_PAIRS:
            self._broken.popitem(last=False)

    def fail(self, pair: str, why: str) -> None:
        """Remember why a pair could not be steered to its end."""
        self._failed[pair] = why
        if len(self._failed) > _MAX_PAIRS:
            self._failed.popitem(last=False)

    def take(self, pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return and forget what is known of some pairs.

        Returns:
            By name: ``rows``, a list of the columns of `recorder.measure` (final log-probability first) per token, in
            order, up to the first gap; ``broken``, an element of `BROKEN`; ``failed``, a sentence, only where `fail`
            was told one. Unknown pairs are left out.
        """
        rows: list[Tensor] = []
        counts: dict[str, int] = {}
        for pair in pairs:
            trace = self._traces.pop(pair, None)
            if trace is not None:
                self._tokens -= len(trace)
                counts[pair] = next((i for i in range(len(trace)) if i not in trace), len(trace))
                rows += [trace[i][0][trace[i][1]] for i in range(counts[pair])]
        values = iter(torch.stack(rows).tolist() if rows else [])
        found: dict[str, dict[str, Any]] = {
            pair: {"rows": [next(values) for _ in range(count)], "broken": ""} for pair, count in counts.items()
        }
        marked = {pair: self._broken.pop(pair) for pair in pairs if pair in self._broken}
        if marked:
            for pair, code in zip(marked, torch.stack(list(marked.values())).tolist(), strict=True):
                found.setdefault(pair, {"rows": [], "broken": ""})["broken"] = BROKEN[code]
        for pair in pairs:
            if pair in self._failed:
                found.setdefault(pair, {"rows": [], "broken": ""})["failed"] = self._failed.pop(pair)
        return found

    def __len__(self) -> int:
        return len(self._traces)


def take_all(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return and forget what every store of this process knows of some pairs; see `TraceStore.take`."""
    found: dict[str, dict[str, Any]] = {}
    for store in list(_STORES):
        found |= store.take(pairs)
    return found
