"""Attention kernels that take any length as it comes, for steered forwards on a GPU.

torch's first choice on recent cards is cuDNN, which builds a plan for every new shape: about 70 ms for each step of an
answer, since each step is one token longer. Flash, memory-efficient and plain attention build none. torch's switch
belongs to the process, so it is turned while a steered forward runs, and back when the last one has left. Knows torch's
switch; knows nothing of models.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["leave_steady_attention", "steady_attention"]

_LOCK = threading.Lock()
_USERS: weakref.WeakSet[Any] = weakref.WeakSet()
_BEFORE: list[bool] = []  # whether cuDNN was allowed before the first user came; empty while there is none


@contextmanager
def steady_attention(device: torch.device, user: object) -> Iterator[None]:
    """Keep cuDNN out of attention while the block runs; does nothing off CUDA.

    Args:
        device: Of the forward.
        user: Any object that stands for the run, and does not outlive it.
    """
    if device.type != "cuda":
        yield
        return
    try:
        with _LOCK:
            if not _BEFORE:
                _BEFORE.append(torch.backends.cuda.cudnn_sdp_enabled())  # type: ignore[no-untyped-call]
            _USERS.add(user)
            torch.backends.cuda.enable_cudnn_sdp(False)
        yield
    finally:
        leave_steady_attention(user)


def leave_steady_attention(user: object) -> None:
    """Put torch's switch back, unless others still run. Does no harm where it is in place."""
    with _LOCK:
        _USERS.discard(user)
        if _BEFORE and not _USERS:
            torch.backends.cuda.enable_cudnn_sdp(_BEFORE[0])
            _BEFORE.clear()
