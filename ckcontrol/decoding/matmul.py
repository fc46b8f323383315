"""Few-row float32 matrix products on CPU, in the shapes BLAS is fast at.

Decoding a pair multiplies 2B rows with every weight matrix. For few rows MKL's ``x @ W.T`` is near memory speed on some
processors and far from it on others, where two ways to the same product are faster: up to 8 rows ``(W @ x.T).T``; from
there to 64, where W is tall, a batch of products with 192 rows of W each, which stay in the cache while they are packed
and used. On one machine two rows gained 1.4 times by it, on another they lost 2.4 times, so both are tried once in a
process, and ours is taken only where it is clearly faster (`pays`; benchmarks/matmul.py shows all of it). A single row
is left alone, and so is everything on accelerators and in half precision; plain generation never comes here. Knows
`torch.nn.Linear`; knows nothing else of models.

Layers are reached by a forward of their own, for the time of one forward of the model. (A torch function mode would
reach every product, but is asked about every one of a thousand operations besides: a fifth of a step of one pair.)
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

__all__ = ["few_row_products", "is_lent", "leave_few_row_products"]

_MOST_TURNED, _MOST_ROWS = 8, 64
_BLOCK = 192  # rows of W; with 576 columns 432 KiB
_TALL = 4 * _BLOCK
_CLEARLY = 1.15  # times as fast: nearer ones change places from one process to the next, and with them the last bits
_PLAIN = (Tensor, nn.Parameter)  # torchao's quantised weights have a type, and a product, of their own

_LOCK = threading.Lock()
_USERS: dict[int, weakref.WeakSet[Any]] = {}  # id of a model -> who decodes with it just now
_LAYERS: weakref.WeakKeyDictionary[Any, dict[int, list[nn.Linear]]] = weakref.WeakKeyDictionary()  # user -> model ->
_HERE = threading.local()  # `on` while this thread decodes


def few_row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias``, [..., in] x [out, in] -> [..., out], contiguous."""
    rows, (out, width) = x.reshape(-1, x.shape[-1]), weight.shape
    if len(rows) <= _MOST_TURNED:
        result = torch.mm(weight, rows.t()).t().contiguous()
    elif out < _TALL or weight.stride() != (width, 1):
        result = nn.functional.linear(rows, weight)
    else:
        whole = out // _BLOCK * _BLOCK
        result = rows.new_empty(len(rows), out)
        blocks = weight[:whole].view(-1, _BLOCK, width).transpose(1, 2)
        made = torch.bmm(rows.expand(len(blocks), -1, -1), blocks)
        result[:, :whole].view(len(rows), -1, _BLOCK).copy_(made.transpose(0, 1))
        if whole < out:
            torch.mm(rows, weight[whole:].t(), out=result[:, whole:])
    result = result.view(*x.shape[:-1], out)
    return result if bias is None else result + bias


def pays(rows: int) -> bool:
    """Return whether `few_row_linear` is clearly faster here than torch's own product, for 2 to 64 rows.

    Tried once in a process for each power of two and number of threads (about 20 ms), on weights that no cache holds.
    Never where torch is to be deterministic (``torch.use_deterministic_algorithms``): a process that finds otherwise
    differs in the last bits.
    """
    if torch.are_deterministic_algorithms_enabled():
        return False
    return _tried(1 << (rows - 1).bit_length(), torch.get_num_threads())


@cache
def _tried(rows: int, threads: int) -> bool:
    clock = time.thread_time if threads == 1 else time.perf_counter
    with torch.inference_mode():
        x, weights = torch.ones(rows, 576), torch.ones(4, 2 * _TALL, 576).unbind()

        def seconds(product: Callable[[Tensor, Tensor], Tensor]) -> float:
            started = clock()
            for weight in weights:
                product(x, weight)
            return clock() - started

        rounds = [(seconds(nn.functional.linear), seconds(few_row_linear)) for _ in range(5)]
    theirs, ours = (min(times) for times in zip(*rounds, strict=True))
    return bool(theirs > _CLEARLY * ours)


@contextmanager
def few_row_products(model: nn.Module, user: object) -> Iterator[None]:
    """Multiply few rows fast in this thread while the block runs: one forward of the model, or a few.

    Other threads that run the model meanwhile get torch's own products. Layers with a forward that somebody else gave
    them keep it, and so do those that would gain nothing: see the top of this file.

    Args:
        model: Whose linear layers.
        user: Any object that stands for the run, and does not outlive it.
    """
    try:
        with _LOCK:
            _USERS.setdefault(id(model), weakref.WeakSet()).add(user)
            found = _LAYERS.setdefault(user, {})
            if id(model) not in found:
                found[id(model)] = [layer for layer in model.modules() if _gains(layer)]
            for layer in found[id(model)]:
                layer.__dict__.setdefault("forward", MethodType(_forward, layer))
        _HERE.on = True
        yield
    finally:
        _HERE.on = False
        with _LOCK:
            if _leaves_last(model, user):
                _put_back(_LAYERS.get(user, {}).get(id(model), ()))


def leave_few_row_products(model: nn.Module, user: object) -> None:
    """Give the model's layers their own forward back, unless others use ours. Does no harm where it is in place."""
    _HERE.on = False
    with _LOCK:
        if _leaves_last(model, user):
            changed = _LAYERS.get(user, {}).get(id(model))
            _put_back(model.modules() if changed is None else changed)  # not entered: a copy of one that was, maybe


def _leaves_last(model: nn.Module, user: object) -> bool:
    users = _USERS.get(id(model), weakref.WeakSet())
    users.discard(user)
    if not users:
        _USERS.pop(id(model), None)
    return not users


def _put_back(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        if is_lent(module):
            del module.__dict__["forward"]


def is_lent(module: nn.Module) -> bool:
    """Return whether the forward of a layer is ours just now: it is torch's own to threads that are not inside."""
    return getattr(module.__dict__.get("forward"), "__func__", None) is _forward


def _gains(layer: nn.Module) -> TypeGuard[nn.Linear]:
    if type(layer).forward is not nn.Linear.forward or ("forward" in layer.__dict__ and not is_lent(layer)):
        return False
    weight = layer.weight
    return type(weight) in _PLAIN and weight.device.type == "cpu" and weight.dtype == torch.float32


def _forward(layer: nn.Linear, input: Tensor) -> Tensor:
    rows = input.shape[:-1].numel()
    if getattr(_HERE, "on", False) and 2 <= rows <= _MOST_ROWS and pays(rows):
        return few_row_linear(input, layer.weight, layer.bias)
    return nn.functional.linear(input, layer.weight, layer.bias)
