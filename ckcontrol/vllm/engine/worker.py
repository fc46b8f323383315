"""The one worker extension of the server: traces and head masks together, because vLLM takes a single class.

Knows the two parts; does nothing itself.
"""

from __future__ import annotations

from .head_hooks import HeadWorker
from .traces import TraceWorker

__all__ = ["CKWorker"]


class CKWorker(TraceWorker, HeadWorker):
    """``worker_extension_cls="ckcontrol.vllm.CKWorker"``: `TraceWorker` and `HeadWorker` in one."""
