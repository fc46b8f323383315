"""What the HTTP side knows of ASGI: its types, where an inner request goes, and a client's channel that several share.

Knows ASGI messages; knows nothing of what is in a body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

__all__ = ["ASGIApp", "Gone", "Message", "Receive", "Route", "Scope", "Send", "Shared", "content_types"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


def content_types(told: Mapping[str, Any]) -> list[bytes]:
    """Return every content type that the headers of a request, or of the start of a reply, name, in small letters."""
    return [value.lower() for name, value in told["headers"] if name.lower() == b"content-type"]


class Gone(Exception):
    """The client went away. Never seen outside the middleware."""


class Shared:
    """A client's channel for several exchanges: it is read once, and all are told when the client is gone.

    Args:
        receive: The client's channel; its body has been read.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone: asyncio.Task[None] | None = None

    async def __call__(self) -> Message:
        """Wait until the client is gone."""
        self._gone = self._gone or asyncio.create_task(self._wait())
        await asyncio.shield(self._gone)
        return {"type": "http.disconnect"}

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def close(self) -> None:
        """Stop listening."""
        if self._gone is not None:
            self._gone.cancel()
            await asyncio.gather(self._gone, return_exceptions=True)


class Route(NamedTuple):
    """Where the inner requests of one client go.

    Attributes:
        app: The inner app, vLLM's.
        scope: The client's request.
        receive: The client's channel.
        path: The endpoint, without the root path.
    """

    app: ASGIApp
    scope: Scope
    receive: Shared
    path: str
