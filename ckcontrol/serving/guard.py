"""What a client is checked for before and while its bytes are read: its key, their size and the time they take.

Knows ASGI messages and bytes; knows nothing of JSON values.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Sequence

from .asgi import Gone, Receive, Scope
from .limits import Limits
from .replies import Refusal

__all__ = ["names_key", "read_body"]


def names_key(scope: Scope, keys: Sequence[str]) -> bool:
    """Whether a request names one of the keys, ``Authorization: Bearer KEY``; the time taken tells nothing."""
    given = next((value for name, value in scope["headers"] if name.lower() == b"authorization"), b"")
    kind, _, key = given.decode("latin-1").partition(" ")
    ours, digest = [_digest(one) for one in keys], _digest(key)
    return kind.lower() == "bearer" and sum(hmac.compare_digest(digest, one) for one in ours) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def read_body(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    """Return the whole body.

    Raises:
        Refusal: It is larger (413) or takes longer (408) than the limits allow.
        Gone: The client went away.
    """
    most = limits.body_bytes
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and value.isdigit() and (len(value) > 15 or int(value) > most):
            raise _too_large(most)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limits.read_seconds
    parts, size = [], 0
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - loop.time()))
        except asyncio.TimeoutError:
            raise Refusal(408, f"the body took longer than {limits.read_seconds:g} s.", "Send it faster.") from None
        if message["type"] == "http.disconnect":
            raise Gone
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > most:
            raise _too_large(most)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body is larger than {most:,} bytes.", "Send less; the operator can raise the limit.")
