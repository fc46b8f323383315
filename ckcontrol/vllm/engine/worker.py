"""What vLLM's workers can be asked, by RPC: the traces of pairs, and to let head masks or a direction act.

vLLM takes a single extension class, so the two come as one, `CKWorker`. Does nothing itself.
"""

from __future__ import annotations

from typing import Any

from ...heads.fingerprint import Shape, unlike
from .hooks import install, install_direction, refusal
from .traces import take_all

__all__ = ["CKWorker", "HeadWorker", "TraceWorker"]


class TraceWorker:
    """A worker extension: ``LLM(worker_extension_cls="ckcontrol.vllm.TraceWorker")``, or a base of one."""

    def ck_take_traces(self, pairs: list[str]) -> dict[str, dict[str, Any]]:
        """Return and forget the traces of some pairs; for ``collective_rpc("ck_take_traces", args=(names,))``."""
        return take_all(pairs)


class HeadWorker:
    """The part of a vLLM worker that applies masks and a direction."""

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

    def ck_direction_install(self, made_for: Shape, layer: int, vector: list[float]) -> str:
        """Put the hooks of the engine's direction in place, once; a batch without it passes them unchanged.

        Args:
            made_for: Family, layers, heads and width of the model that it was found on.
            layer: Whose output is changed.
            vector: v, of that width.

        Returns:
            Why it cannot act here; empty if it does.
        """
        given = (layer, list(vector))
        if (held := getattr(self, "_ck_direction", None)) is None:
            if refused := refusal(self.vllm_config, self.model_runner, "directions"):
                return refused
            if why := unlike(made_for, self.vllm_config.model_config.hf_text_config):
                return f"the direction {why}"
            install_direction(self.vllm_config, self.model_runner, *given)
            self._ck_direction = held = given
        return "" if held == given else "this engine has another direction already."


class CKWorker(TraceWorker, HeadWorker):
    """``worker_extension_cls="ckcontrol.vllm.CKWorker"``: `TraceWorker` and `HeadWorker` in one."""
