"""Runs the two requests of a pair through the inner ASGI app, and passes on what the contextual one answers.

Whatever ends one ends the other: a refusal, a lost client, the deadline. Leaving the block, in whatever way, tells both
that their client is gone, whereupon vLLM aborts them. Knows ASGI and the form of vLLM's replies; knows nothing of what
the requests hold.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import Any

from ...serving.asgi import Gone, Message, Route, Send
from ...serving.replies import EventReader, Part, Refusal, is_stream, read_part, refusal

__all__ = ["Exchange"]

_GRACE = 2.0  # seconds the parametric row may take to end by itself after the contextual one has
_PATIENCE = 5.0  # seconds both may take to notice that their client is gone, before they are cancelled
_KEPT = 65_536  # bytes of a refused parametric request's reply
_DROPPED = {b"content-length", b"content-type", b"transfer-encoding", b"expect"}
log = logging.getLogger("ckcontrol.vllm")


class Exchange:
    """Both requests under way; `parts` is what the contextual one answers.

    Args:
        route: Where both requests go.
        contextual: Body whose answer is the reply.
        parametric: Body whose answer is drained; None: there is no such request.
        seconds: Longest time for everything.
        named: The contextual request keeps the client's request id; of several exchanges for one client only one may.

    Attributes:
        start: The message that began the answer; None before.
        drafted: There are several drafts; then `id`, `rows` and `told` are of the given one.
    """

    drafted = False

    def __init__(
        self,
        route: Route,
        contextual: Mapping[str, Any],
        parametric: Mapping[str, Any] | None,
        seconds: float,
        *,
        named: bool = True,
    ) -> None:
        self.start: Message | None = None
        self.id = ""
        self.rows: Sequence[Sequence[float]] = ()
        self._route, self._named = route, named
        self._body, self._other = contextual, parametric
        self._seconds = seconds
        self._over = asyncio.Event()
        self._queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue(64)  # a slow client slows its own answer only
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = False
        self._refused = False  # the contextual request was; then the other one's refusal says nothing new

    async def __aenter__(self) -> Exchange:
        self._deadline = asyncio.get_running_loop().time() + self._seconds
        self._watcher = asyncio.create_task(self._watch())
        self._tasks = [asyncio.create_task(self._contextual())]
        if self._other is not None:
            self._tasks.append(asyncio.create_task(self._parametric(self._other)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watcher.cancel()
        if self._ended:
            await asyncio.wait(self._tasks, timeout=_GRACE)
        self._over.set()
        while not self._queue.empty():  # a request that waits for room can end
            self._queue.get_nowait()
        late = (await asyncio.wait(self._tasks, timeout=_PATIENCE))[1]
        for task in late:
            task.cancel()
        await asyncio.gather(self._watcher, *self._tasks, return_exceptions=True)

    @property
    def streams(self) -> bool:
        """Whether the answer comes as events."""
        return self.start is not None and self.start["status"] < 400 and is_stream(self.start)

    def told(self) -> dict[str, Any]:
        """Return what the reply tells of drafts; there are none."""
        return {}

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Yield the answer, once: a whole reply, or one event after the other; `start` is set before the first.

        Raises:
            Refusal: The answer is an error or not JSON; the other request was refused or failed (4xx as it is, else
                503); or the time is up.
            Gone: The client went away.
        """
        reader, whole = EventReader(), b""
        while (message := await self._next()) is not None:
            if message["type"] == "http.response.start":
                self.start = message
            elif self.streams:
                for text in reader.feed(message.get("body", b"")):
                    yield text if text == "[DONE]" or text.startswith(":") else read_part(text)
            else:
                whole += message.get("body", b"")
        if not self.streams:
            status = self.start["status"] if self.start else 503
            if status >= 400:
                raise refusal(status, whole)
            yield read_part(whole.decode("utf-8", errors="replace"))

    async def _next(self) -> Message | None:
        """Return the next message of the answer; None at its end."""
        try:
            what, value = await self._within(self._queue.get())
        except asyncio.TimeoutError:
            raise Refusal(503, f"no answer within {self._seconds:g} s.", "Ask for fewer tokens.") from None
        if what == "gone":
            raise Gone
        if what == "refused":
            raise value
        self._ended = what == "end"
        return None if self._ended else value

    async def _within(self, awaitable: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(awaitable, self.left)

    @property
    def left(self) -> float:
        """Seconds left for everything."""
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def send(self, send: Send, message: Message) -> None:
        """Send to the client, for as long as the time lasts: one that does not read cannot hold the pair for ever.

        Raises:
            Gone: The time is up.
        """
        try:
            await self._within(send(message))
        except (asyncio.TimeoutError, OSError):
            raise Gone from None

    async def _watch(self) -> None:
        while (await self._route.receive())["type"] != "http.disconnect":
            pass
        await self._put("gone", None)

    async def _put(self, what: str, value: Any) -> None:
        if not self._over.is_set():
            await self._queue.put((what, value))

    async def _contextual(self) -> None:
        async def send(message: Message) -> None:
            if self._over.is_set():
                raise OSError("the client is gone")
            self._refused = self._refused or message.get("status", 200) >= 400
            await self._put("message", message)

        try:
            await self._call(self._body, send, keep_id=self._named)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not self._over.is_set():
                log.exception("the contextual request of a pair failed")
                await self._put("refused", Refusal(503, f"the request failed: {type(error).__name__}.", "Try again."))
            return
        await self._put("end", None)

    async def _parametric(self, other: Mapping[str, Any]) -> None:
        status, body = 0, b""

        async def send(message: Message) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status >= 400 and len(body) < _KEPT:
                body += message.get("body", b"")

        try:
            await self._call(other, send, keep_id=False)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if self._over.is_set():
                return
            log.exception("the parametric request of a pair failed")
            status, body = 503, type(error).__name__.encode()
        if status >= 400 and not self._refused:
            why = refusal(status, body, "the parametric prompt (the one without passages) was refused: ")
            await self._put("refused", why)

    async def _call(self, body: Mapping[str, Any], send: Send, *, keep_id: bool) -> None:
        """Make one request of the inner app, in a scope of its own."""
        data = json.dumps(body, ensure_ascii=False).encode()
        dropped = _DROPPED if keep_id else {*_DROPPED, b"x-request-id"}
        app, given, _, path = self._route
        headers = [(name, value) for name, value in given["headers"] if name.lower() not in dropped]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        path = given.get("root_path", "") + path
        scope = {**given, "headers": headers, "path": path, "raw_path": path.encode()}
        # 2.3: a streaming response listens for the disconnect, where later ones only see it when they next send
        scope["asgi"] = {**given.get("asgi", {}), "spec_version": "2.3"}
        if isinstance(given.get("state"), dict):
            scope["state"] = dict(given["state"])
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": data, "more_body": False}
            await self._over.wait()
            return {"type": "http.disconnect"}

        await app(scope, receive, send)
