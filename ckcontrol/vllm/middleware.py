"""`CKMiddleware`: the OpenAI endpoints of vLLM understand a ``ck`` object. A pure ASGI class, set by ``--middleware``.

A request with ``ck`` becomes a pair of inner requests, or one a draft; a contextual one's answer is the reply. From
every other request the engine arguments that are ours are taken out, so that no client can name a pair. Knows ASGI and
the order of things; what a request may hold is requests.py, how the two run is exchange.py, drafts drafting.py, what is
replied is replies.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import CKError
from . import fallback
from .bodies import Bodies, make_bodies
from .drafting import Drafting, Shared
from .exchange import ASGIApp, Exchange, Gone, Message, Receive, Scope, Send
from .guard import FormGuard, is_form, read_body, replay, suspicious
from .limits import Limits
from .outcomes import told_trace
from .params import drafts, new_pair
from .plain import HEADS, without_ours
from .replies import (
    EventReader,
    Lost,
    Refusal,
    check_end,
    error_object,
    event,
    finish_reason,
    is_stream,
    read_part,
    refusal,
    to_chat,
    to_chat_chunk,
)
from .requests import CHAT, PATHS, Steered, read_request
from .server import Server

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CKMiddleware"]

_LARGE = 256 * 1024  # bytes from which a body is read in a thread of its own
log = logging.getLogger("ckcontrol.vllm")


class CKMiddleware:
    """Steers requests that hold a ``ck`` object at ``/v1/chat/completions`` and ``/v1/completions``.

    Args:
        app: The app around which it stands.
        limits: Bounds; None reads them from the environment (`limits.VARIABLE`).
        tokenizer: Of the served model; None loads what the server's arguments name, at the first request that needs it.
        on_lost: What becomes of a request whose pair the engine gave up before anything was sent: ``"fail"``, or
            ``"contextual"``, the prompt with the passages answered alone. None reads the environment
            (`fallback.VARIABLE`).

    Raises:
        ServingError: The environment holds no valid bounds, or `on_lost` is unknown.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        on_lost: str | None = None,
    ) -> None:
        self.app = app
        self.limits = limits or Limits.from_env()
        self.server = Server(tokenizer)
        self.falls_back = (fallback.from_env() if on_lost is None else fallback.choice(on_lost)) == "contextual"
        self.pairs = 0  # under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            return await self.app(scope, receive, send)
        try:
            if is_form(scope):
                return await FormGuard().run(self.app, scope, receive, send)
            body = await read_body(scope, receive, self.limits)
            if not suspicious(body):
                return await self.app(scope, replay(body, receive), send)
            data = await _off(len(body), _decode, body, scope)
            if isinstance(data, dict) and data.get("ck") is not None:
                return await self._steer(scope, receive, send, data, len(body))
            if data is not None and (suspicious(body, b"ck_") or suspicious(body, HEADS.encode())):
                body = await _off(len(body), _clean, data)
                scope = {**scope, "headers": _sized(scope, len(body))}
            return await self.app(scope, replay(body, receive), send)
        except Gone:
            return None
        except CKError as error:
            return await _refuse(send, error)

    async def _steer(self, scope: Scope, receive: Receive, send: Send, data: dict[str, Any], size: int) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path not in PATHS or scope["method"] != "POST":
            raise Refusal(400, f"ck is not understood at {path[:100]}.", f"Use {' or '.join(PATHS)}.")
        if self.pairs >= self.limits.pairs:
            raise Refusal(429, f"{self.pairs} pairs are under way.", "Try again in a moment.")
        held = 1
        self.pairs += held
        try:
            request = await _off(size, read_request, path, data, self.limits)
            names = drafts(request.control)
            if len(names) > self.limits.pairs:
                what = f"method {request.control.method!r} takes {len(names)} pairs; this server runs"
                raise Refusal(400, f"{what} {self.limits.pairs} at once.", "Take another, or let `pairs` be raised.")
            if self.pairs + len(names) - held > self.limits.pairs:
                raise Refusal(429, f"{self.pairs - held} pairs are under way.", "Try again in a moment.")
            self.pairs += len(names) - held
            held = len(names)
            if request.heads:
                await self.server.check_heads(scope, request.heads)
            tokenizer = await self.server.tokenizer(scope) if request.texts.source == "passages" else None
            if request.texts.source == "prompt":
                await self.server.check_lengths(scope, request.body)
                await self.server.check_lengths(scope, {**request.body, "prompt": request.texts.parametric})
            pairs = [new_pair() for _ in names]
            bodies = await asyncio.to_thread(make_bodies, request, pairs[0], tokenizer, names[0])
            unfit = self.server.unfit(scope, bodies)
            if unfit and not self.falls_back:
                raise Refusal(400, unfit, "Shorten the passages or ask for fewer tokens, or let the cache be enlarged.")
            shared = Shared(receive)
            try:
                await self._run(scope, shared, send, request, bodies, dict(zip(names, pairs, strict=True)), unfit)
            finally:
                await shared.close()
        finally:
            self.pairs -= held

    async def _run(
        self,
        scope: Scope,
        shared: Shared,
        send: Send,
        request: Steered,
        bodies: Bodies,
        pairs: dict[str, str],
        lost: str,
    ) -> None:
        """Run the pair, or one a draft, and reply; `pairs` are their names by draft, `lost` why it cannot run."""
        ways, left = (self.app, scope, shared, bodies.path), self.limits.seconds
        pair, translated = next(iter(pairs.values())), bodies.path != request.path
        if not lost:
            run: Exchange | Drafting
            if len(pairs) == 1:
                run = Exchange(*ways, bodies.contextual, bodies.parametric, left)
            else:
                run = Drafting(ways, request, bodies, pairs, left, partial(self.server.trace, scope, needed=True))
            async with run:
                lost = await _Reply(self, scope, request, pair, run, send, translated).run()
            left = run.left
        if lost:
            alone = Exchange(*ways, fallback.alone(bodies.contextual, request.options), None, left)
            async with alone:
                await _Reply(self, scope, request, pair, alone, send, translated, lost).run()


class _Reply:
    """One steered answer on its way from the inner app to the client."""

    def __init__(
        self,
        owner: CKMiddleware,
        scope: Scope,
        request: Steered,
        pair: str,
        exchange: Exchange | Drafting,
        send: Send,
        translated: bool,
        lost: str = "",
    ) -> None:
        self.owner, self.scope, self.request, self.pair = owner, scope, request, pair
        self.exchange, self._send = exchange, send
        self.lost = lost  # why the pair was; then this is the contextual row alone
        self.translated = translated and request.path == CHAT
        self.start: Message | None = None
        self.started = False
        self.first = True
        self.ids: list[int] = []  # of the answer, as far as vLLM was asked for them

    async def run(self) -> str:
        """Pass the answer on; a failure becomes an error reply, or an error event where the answer has begun.

        Returns:
            Empty; or why the pair was lost, where nothing was sent and the contextual row may be answered alone.
        """
        try:
            whole = b""
            reader = EventReader()
            async for message in self.exchange:
                if message["type"] == "http.response.start":
                    self.start = message
                elif message["type"] == "http.response.body":
                    if self._streams():
                        for text in reader.feed(message.get("body", b"")):
                            await self._event(text)
                    else:
                        whole += message.get("body", b"")
            if self.started:
                await self._body(b"", more=False)
            elif not self._streams():
                await self._whole(whole)
            else:
                raise Refusal(503, "the engine ended the answer before its first token.", "Try again.")
        except CKError as error:
            if isinstance(error, Lost) and self.owner.falls_back and not self.started and not self.lost:
                log.warning("a pair was lost, its contextual prompt is answered alone: %s", error.reason)
                return error.reason
            if not self.started:
                await _refuse(self._send, error)
                return ""
            await self._body(
                event(error_object(getattr(error, "status", 503), str(error))) + event("[DONE]"), more=False
            )
        return ""

    def _streams(self) -> bool:
        if self.start is None or self.start["status"] >= 400:
            return False
        return is_stream(self.start)

    async def _event(self, text: str) -> None:
        if text.startswith(":"):  # a comment that keeps the connection alive
            return await self._body(f"{text}\n\n".encode())
        if text == "[DONE]":
            return await self._body(event(text))
        chunk = read_part(text)
        reason = finish_reason(chunk)
        check_end(reason)
        self._take_ids(chunk)
        self._name(chunk)
        if self.translated:
            chunk = to_chat_chunk(chunk, first=self.first)
            self.first = False
        if reason is not None:
            chunk["ck"] = await self._echo()
        await self._body(event(chunk))

    async def _whole(self, body: bytes) -> None:
        status = self.start["status"] if self.start else 503
        if status >= 400:
            raise refusal(status, body)
        reply = read_part(body.decode("utf-8", errors="replace"))
        check_end(finish_reason(reply))
        self._take_ids(reply)
        self._name(reply)
        if self.translated:
            reply = to_chat(reply)
        reply["ck"] = await self._echo()
        await self._body(json.dumps(reply, ensure_ascii=False).encode(), more=False)

    def _take_ids(self, reply: dict[str, Any]) -> None:
        """Keep the token ids, for the trace; take out those the client did not ask for."""
        for choice in reply.get("choices", ()):
            self.ids += choice.get("token_ids") or []
        if not self.request.body.get("return_token_ids"):
            for part in (reply, *reply.get("choices", ())):
                part.pop("token_ids", None)
                part.pop("prompt_token_ids", None)

    def _name(self, reply: dict[str, Any]) -> None:
        """Give the reply its id, where it depends on who is given."""
        if isinstance(self.exchange, Drafting):
            reply["id"] = self.exchange.id

    async def _echo(self) -> dict[str, Any]:
        """Return ``ck`` of the reply; the pair has ended."""
        told, server, traced = self.request.echo(), self.owner.server, self.request.trace
        if self.lost:
            told.pop("seed", None)  # not in effect
            return told | {"fallback": "contextual", "fallback_reason": self.lost}
        if isinstance(self.exchange, Drafting):
            rows = self.exchange.rows
            told["drafts"] = self.exchange.told()
        else:
            rows = await server.trace(self.scope, self.pair, needed=traced)
        if traced:
            try:
                tokenizer = await server.tokenizer(self.scope)
            except Refusal:
                tokenizer = None  # the trace then lacks the texts
            told["trace"] = await asyncio.to_thread(told_trace, tokenizer, self.ids, rows)
        return told

    async def _body(self, data: bytes, *, more: bool = True) -> None:
        if not self.started and self.start is not None:
            self.started = True
            headers = [(name, value) for name, value in self.start["headers"] if name.lower() != b"content-length"]
            headers += [] if more else [(b"content-length", str(len(data)).encode())]
            await self.exchange.send(self._send, {**self.start, "headers": headers})
        await self.exchange.send(self._send, {"type": "http.response.body", "body": data, "more_body": more})


async def _off(size: int, function: Any, *args: Any) -> Any:
    """Call a function, in a thread where its input is large: the loop serves other clients meanwhile."""
    try:
        return await asyncio.to_thread(function, *args) if size > _LARGE else function(*args)
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply.", "Send a flat object.") from None


def _decode(body: bytes, scope: Scope) -> Any:
    """Return the JSON value of a body, or None where nobody could read it as JSON."""
    try:
        return json.loads(body)
    except ValueError as error:
        kinds = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
        if not kinds or any(b"json" in value.lower() for value in kinds):
            raise Refusal(400, f"the body is not JSON: {str(error)[:200]}.", "Send one JSON object.") from None
        return None


def _clean(data: Any) -> bytes:
    return json.dumps(without_ours(data), ensure_ascii=True).encode()


def _sized(scope: Scope, size: int) -> list[tuple[bytes, bytes]]:
    dropped = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    return [*headers, (b"content-length", str(size).encode())]


async def _refuse(send: Send, error: CKError) -> None:
    status = getattr(error, "status", 400)
    data = json.dumps(error_object(status, str(error)), ensure_ascii=True).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if status in (429, 503):
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data, "more_body": False})
