"""What vLLM's clients are checked for before their bytes are read: a key; then names that are ours, in any encoding.

Knows ASGI messages and bytes; knows nothing of JSON values or vLLM.
"""

from __future__ import annotations

import os
import re

from ...serving.asgi import ASGIApp, Message, Receive, Scope, Send, content_types
from ...serving.guard import names_key
from ...serving.replies import Refusal

__all__ = ["FormGuard", "has_key", "is_form", "replay", "suspicious"]

_OURS = re.compile(rb'"(?:c|\\u0063)(?:k|\\u006[bB])(?:_|\\u005[fF]|[hd]|\\u006[48])')
_UTF8 = re.compile(rb';\s*charset="?utf-8"?\s*(?=;|$)')
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")  # where vLLM asks for a key
_OVERLAP = 64  # bytes of a piece kept, so that nothing hides across two


def has_key(scope: Scope) -> bool:
    """Whether a request may come in: it names one of the server's keys, or needs none.

    As vLLM's own check, which stands behind us: ``--api-key``, else VLLM_API_KEY.
    """
    args = getattr(getattr(scope.get("app"), "state", None), "args", None)
    keys = [key for key in (getattr(args, "api_key", None) or [os.environ.get("VLLM_API_KEY")]) if key]
    if not keys or not scope["path"].removeprefix(scope.get("root_path", "")).startswith(_GUARDED):
        return True
    return names_key(scope, keys)


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
    """Whether the body is a multipart form: a file with fields, as the audio endpoints take.

    Of several content types vLLM takes the first one: a body is none where any of them says JSON.
    """
    kinds = content_types(scope)
    return bool(kinds) and all(kind.startswith(b"multipart/form-data") for kind in kinds)


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
        if any(
            b"charset" in _UTF8.sub(b"", kind) for kind in content_types(scope)
        ):  # names would stand there in other bytes
            raise Refusal(400, "the form's charset is not UTF-8.", "Leave charset out of its content type.")
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
