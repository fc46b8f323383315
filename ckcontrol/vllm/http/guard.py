"""What a client is checked for before its bytes are read: its key; then their size, time, and names that are ours.

Knows ASGI messages and bytes; knows nothing of JSON values or vLLM.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re

from .asgi import ASGIApp, Gone, Message, Receive, Scope, Send
from .limits import Limits
from .replies import Refusal

__all__ = ["FormGuard", "has_key", "is_form", "read_body", "replay", "suspicious"]

_OURS = re.compile(rb'"(?:c|\\u0063)(?:k|\\u006[bB])(?:_|\\u005[fF]|h|\\u0068)')
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")  # where vLLM asks for a key
_OVERLAP = 64  # bytes of a piece kept, so that nothing hides across two


def has_key(scope: Scope) -> bool:
    """Whether a request may come in: it names one of the server's keys, or needs none.

    As vLLM's own check, which stands behind us: ``--api-key``, else VLLM_API_KEY; the time taken tells nothing.
    """
    args = getattr(getattr(scope.get("app"), "state", None), "args", None)
    keys = [key for key in (getattr(args, "api_key", None) or [os.environ.get("VLLM_API_KEY")]) if key]
    if not keys or not scope["path"].removeprefix(scope.get("root_path", "")).startswith(_GUARDED):
        return True
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


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a channel that gives the body that was read, and then what the client's own gives."""
    done = False

    async def again() -> Message:
        nonlocal done
        if done:
            return await receive()
        done = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def suspicious(body: bytes, letters: bytes = b"ck") -> bool:
    """Whether a JSON body could hold these letters: plainly, by escapes, or in UTF-16 or UTF-32 (which JSON may be)."""
    return letters in body or b"\\u" in body or b"\x00" in body


def is_form(scope: Scope) -> bool:
    """Whether the body is a multipart form: a file with fields, as the audio endpoints take."""
    kinds = [value.lower() for name, value in scope["headers"] if name.lower() == b"content-type"]
    return any(value.startswith(b"multipart/form-data") for value in kinds)


class FormGuard:
    """Lets a form through to the app, and refuses one that carries engine arguments of ours.

    A form is not held back: where such a name turns up, the app is told that the client is gone, and the client is
    answered with a 400.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._carrier = self._named = False

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request.

        Raises:
            Refusal: The form was refused; the app has sent nothing.
        """
        refused = False

        async def watched() -> Message:
            nonlocal refused
            message = await receive()
            if message["type"] == "http.request" and self._holds(message.get("body", b"")):
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def guarded(message: Message) -> None:
            if not refused:
                await send(message)

        try:
            await app(scope, watched, guarded)
        except Exception:
            if not refused:
                raise
        if refused:
            raise Refusal(400, "vllm_xargs holds an argument that is ours alone.", "Leave out what begins with ck.")

    def _holds(self, part: bytes) -> bool:
        data = self._rest + part
        self._rest = data[-_OVERLAP:]
        self._carrier = self._carrier or b"vllm_xargs" in data
        self._named = self._named or _OURS.search(data) is not None
        return self._carrier and self._named
