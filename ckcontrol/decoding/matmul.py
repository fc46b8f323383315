"""Few-row float32 matrix products on CPU, in the shapes BLAS is fast at.

Decoding a pair multiplies 2B rows with every weight matrix. For few rows MKL's ``x @ W.T`` is far from memory speed,
and slower with 2 rows than with 4. Two ways to the same product are faster (measured by benchmarks/matmul.py): up to 8
rows ``(W @ x.T).T``; from there to 64, where W is tall, a batch of products with 192 rows of W each, which stay in the
cache while they are packed and used. Knows torch functions; knows nothing of models. A single row is left alone, and so
is everything on accelerators and in half precision; plain generation never comes here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .endings import function_modes_as_they_were

__all__ = ["few_row_products"]

_MOST_TURNED, _MOST_ROWS = 8, 64
_BLOCK = 192  # rows of W; with 576 columns 432 KiB
_TALL = 4 * _BLOCK
_PLAIN = (
    Tensor,
    torch.nn.Parameter,
)  # torchao's quantised weights have a type, and a product, of their own


class _FewRows(TorchFunctionMode):
    """Computes `F.linear` of 2 to 64 float32 CPU rows by `few_row_linear`; thread-local while active.

    It leaves torch's stack by height, not by one pop: torch takes a mode off the stack while its function runs, and an
    interrupt there loses it.
    """

    def __enter__(self) -> _FewRows:
        self._put_back = function_modes_as_they_were()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: object) -> None:
        self._put_back()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and not kwargs and 2 <= args[0].shape[:-1].numel() <= _MOST_ROWS:
            if type(args[1]) in _PLAIN:
                return few_row_linear(*args)
        return func(*args, **(kwargs or {}))


def few_row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias``, [..., in] x [out, in] -> [..., out], contiguous."""
    rows, (out, width) = x.reshape(-1, x.shape[-1]), weight.shape
    if len(rows) <= _MOST_TURNED:
        result = torch.mm(weight, rows.t()).t().contiguous()
    elif out < _TALL or weight.stride() != (width, 1):
        result = torch.nn.functional.linear(rows, weight)
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


def few_row_products(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return a context in which a decode forward on `device` multiplies fast; does nothing where that is not needed."""
    if device.type == "cpu" and dtype == torch.float32:
        return _FewRows()
    return nullcontext()
