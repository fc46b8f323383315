"""One steered answer on its way from the inner app to the client."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from ...errors import CKError
from .asgi import Message, Scope, Send
from .drafting import Drafting
from .ended_pairs import told_trace
from .exchange import Exchange
from .read_request import CHAT, Steered
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

if TYPE_CHECKING:
    from .middleware import CKMiddleware

log = logging.getLogger("ckcontrol.vllm")


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


async def _refuse(send: Send, error: CKError) -> None:
    status = getattr(error, "status", 400)
    data = json.dumps(error_object(status, str(error)), ensure_ascii=True).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if status in (429, 503):
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data, "more_body": False})
