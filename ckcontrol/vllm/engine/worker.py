"""What vLLM's workers can be asked, by RPC: the traces of pairs, and to let head masks act.

vLLM takes a single extension class, so the two come as one, `CKWorker`. Does nothing itself.
"""

from __future__ import annotations

from typing import Any

from .head_hooks import install, refusal
from .traces import take_all

__all__ = ["CKWorker", "HeadWorker", "TraceWorker"]


class TraceWorker:
    """A worker extension: ``LLM(worker_extension_cls="ckcontrol.vllm.TraceWorker")``, or a base of one."""

    def ck_take_traces(self, pairs: list[str]) -> dict[str, dict[str, Any]]:
        """Return and forget the traces of some pairs; for ``collective_rpc("ck_take_traces", args=(names,))``."""
        return take_all(pairs)


class HeadWorker:
    """The part of a vLLM worker that applies masks."""

    model_runner: Any
    vllm_config: Any

    def ck_heads_install(self) -> dict[str, Any]:
        """Put the hooks in place, once; afterwards a batch without masks passes them unchanged, bit for bit.

        Returns:
            ``{"layers": L, "heads": H}`` of the model, or ``{"refused": sentence}``.
        """
        if getattr(self, "_ck_heads", None) is None:
            refused = refusal(self.vllm_config, self.model_runner)
            if refused:
                return {"refused": refused}
            self._ck_heads = install(self.vllm_config, self.model_runner)
        return dict(self._ck_heads)


class CKWorker(TraceWorker, HeadWorker):
    """``worker_extension_cls="ckcontrol.vllm.CKWorker"``: `TraceWorker` and `HeadWorker` in one."""
