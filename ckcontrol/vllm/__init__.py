"""Steered requests inside vLLM: each is a pair of engine requests, kept in step and fused by the library's policies.

Names are resolved on first use; nothing of vLLM is imported before one that needs it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# name -> module that defines it
_WHERE = {
    "CKMiddleware": ".http.middleware",
    "CKWorker": ".engine.worker",
    "PairAsyncScheduler": ".engine.scheduler",
    "PairLogitsProcessor": ".engine.processor",
    "PairParams": ".contract.pair_params",
    "PairScheduler": ".engine.scheduler",
    "SteeredLLM": ".offline.steered_llm",
    "TraceWorker": ".engine.worker",
    "extra_args": ".contract.pair_params",
    "new_pair": ".contract.pair_params",
}

if TYPE_CHECKING:
    from .contract.pair_params import PairParams, extra_args, new_pair
    from .engine.processor import PairLogitsProcessor
    from .engine.scheduler import PairAsyncScheduler, PairScheduler
    from .engine.worker import CKWorker, TraceWorker
    from .http.middleware import CKMiddleware
    from .offline.steered_llm import SteeredLLM

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
