"""Steered requests inside vLLM: each is a pair of engine requests, kept in step and fused by the library's policies.

Names are resolved on first use; nothing of vLLM is imported before one that needs it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# name -> module that defines it
_WHERE = {
    "CKMiddleware": ".middleware",
    "CKWorker": ".worker",
    "PairAsyncScheduler": ".scheduler",
    "PairLogitsProcessor": ".processor",
    "PairParams": ".params",
    "PairScheduler": ".scheduler",
    "SteeredLLM": ".client",
    "TraceWorker": ".traces",
    "extra_args": ".params",
    "new_pair": ".params",
}

if TYPE_CHECKING:
    from .client import SteeredLLM
    from .middleware import CKMiddleware
    from .params import PairParams, extra_args, new_pair
    from .processor import PairLogitsProcessor
    from .scheduler import PairAsyncScheduler, PairScheduler
    from .traces import TraceWorker
    from .worker import CKWorker

__all__ = [
    "CKMiddleware",
    "CKWorker",
    "PairAsyncScheduler",
    "PairLogitsProcessor",
    "PairParams",
    "PairScheduler",
    "SteeredLLM",
    "TraceWorker",
    "extra_args",
    "new_pair",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'ckcontrol.vllm' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
