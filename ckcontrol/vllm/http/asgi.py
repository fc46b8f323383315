"""The types of an ASGI call, and the one thing that ends it early: a client that has gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["ASGIApp", "Gone", "Message", "Receive", "Scope", "Send"]


Scope = MutableMapping[str, Any]


Message = MutableMapping[str, Any]


Receive = Callable[[], Awaitable[Message]]


Send = Callable[[Message], Awaitable[None]]


ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gone(Exception):
    """The client went away. Never seen outside the middleware."""
