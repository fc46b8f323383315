"""What the workers know of an ended pair: whether its logits were finite, and its trace. Asked for many at once.

A call into the workers waits for the engine's current step, so one call fetches all pairs that ended meanwhile. Knows
what `TraceWorker` returns; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ...errors import CKError
from ...serving.replies import Refusal

__all__ = ["EndedPairs"]

Ask = Callable[[list[str]], Awaitable[list[Mapping[str, Any]]]]
log = logging.getLogger("ckcontrol.vllm")


class EndedPairs:
    """Collects the questions of one event loop. One per server.

    Args:
        ask: Puts a question about some pairs to the workers: one answer per worker.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._waiting: dict[str, asyncio.Future[Mapping[str, Any]]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._silent = False  # the workers have no extension of ours; said once

    async def fetch(self, pair: str, *, needed: bool) -> Sequence[Sequence[float]]:
        """Return the trace rows of a pair that has ended; empty where none was recorded.

        Args:
            pair: The pair's name.
            needed: Without an answer the request fails; otherwise it goes on, and the log says so once.

        Raises:
            Refusal: Its method raised (500), its logits were not finite (503), or the workers cannot be asked and
                `needed` (400).
        """
        if self._silent and not needed:
            return []
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[pair] = future
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._drain())
        try:
            known = await future
        except CKError as error:
            if needed:
                raise
            if not self._silent:
                log.warning("answers are not checked for NaN and infinities: %s", error)
            self._silent = True
            return []
        finally:
            self._waiting.pop(pair, None)
        if known.get("failed"):
            raise Refusal(500, f"{known['failed']}.", "Use another method, or tell whoever wrote this one.")
        if known.get("broken"):
            hint = "Load the model in bfloat16 or float32; float16 overflows in many checkpoints."
            where = f"in the {known['broken']} stream"
            raise Refusal(503, f"the model produced NaN, +inf or no finite logit {where}.", hint)
        rows: Sequence[Sequence[float]] = known.get("rows", [])
        return rows

    async def _drain(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting, {}
            try:
                said = await self._ask(list(asked))
            except Exception as error:
                for future in asked.values():
                    if not future.done():
                        future.set_exception(error)
                continue
            for pair, future in asked.items():
                if not future.done():
                    known = [answer[pair] for answer in said if pair in answer]
                    future.set_result(next((k for k in known if k.get("rows")), known[0] if known else {}))
