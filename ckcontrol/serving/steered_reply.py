"""One steered answer on its way from the inner app to the client: translated where needed, with ``ck`` added.

Knows the parts of an answer, what is told beside it and ASGI's messages; knows nothing of how pairs are run.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol

from ..answer import plain_trace
from ..citations import cite
from ..decoding.prompts import missing
from ..decoding.recorder import record
from ..decoding.token_texts import Thoughts, pieces
from ..errors import CKError, PromptTooLong
from .asgi import Message, Send
from .read_request import CHAT, Steered, constrained
from .read_texts import PLAIN
from .replies import (
    Lost,
    Part,
    Refusal,
    check_end,
    error_object,
    event,
    finish_reason,
    part_chunk,
    part_thought,
    to_chat,
    to_chat_chunk,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Engine", "Source", "SteeredReply", "refuse"]

Rows = Sequence[Sequence[float]]
log = logging.getLogger("ckcontrol.serving")


class Source(Protocol):
    """An answer that arrives, in the form of the completions endpoint, or of the one that the client asked.

    Attributes:
        start: The message that begins the answer; None before.
        drafted: The answer is one of several drafts.
        id: Of the reply, where the answer is drafted.
        rows: What was recorded of the given draft, likewise.
    """

    start: Message | None
    drafted: bool
    id: str
    rows: Rows

    @property
    def streams(self) -> bool:
        """Whether the answer comes as events."""

    def parts(self) -> AsyncGenerator[Part, None]:
        """Yield the answer, once: a whole reply, or one event after the other; `start` is set before the first."""

    def told(self) -> dict[str, Any]:
        """Return what the reply tells of drafts and sources; empty where there are none."""

    async def send(self, send: Send, message: Message) -> None:
        """Send to the client, for as long as the time lasts."""


class Engine(Protocol):
    """What gives answers: asked for what it recorded of one, and for the tokenizer to tell that with."""

    @property
    def parses_thoughts(self) -> bool:
        """Whether it takes thoughts out of chats itself."""

    async def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the model's tokenizer."""

    async def trace(self, pair: str, *, needed: bool) -> Rows:
        """Return what was recorded of an answer that has ended, one row per token."""


class SteeredReply:
    """One answer.

    Args:
        server: Asked for traces, and for the tokenizer to tell them with.
        request: What the client asked for.
        pair: Name of the pair; of the first one, if there are several drafts. Empty: an ordinary request, of which
            nothing was recorded, and which the engine draws by random numbers of its own.
        exchange: What gives the answer.
        send: The client's channel.
        translated: The inner endpoint is another than the client asked.
        thinking: The prompt ended in an open thought.
        falls_back: A pair lost before anything was sent is reported by `run`, not to the client.
        passages: Those that stand in the prompt, where they are not all of the request's.
        lost: Why the pair was lost; then this answer is the contextual row's alone.
        model: What the reply calls the model; None leaves what the answer says.
    """

    def __init__(
        self,
        server: Engine,
        request: Steered,
        pair: str,
        exchange: Source,
        send: Send,
        *,
        translated: bool,
        thinking: bool = False,
        falls_back: bool = False,
        passages: Sequence[str] | None = None,
        lost: str = "",
        model: str | None = None,
    ) -> None:
        self._server, self._request, self._pair = server, request, pair
        self._exchange, self._send = exchange, send
        self._falls_back, self._lost = falls_back and not lost, lost
        self._model = model
        self._translated = translated and request.path == CHAT
        parted = request.path == CHAT and (translated or not server.parses_thoughts)
        self._thoughts = Thoughts(opened=thinking) if parted else None
        self._opened, self._tells = thinking, request.body.get("include_reasoning") is not False
        self._started = False
        self._first = True
        self._passages = request.texts.passages if passages is None else passages
        self._text: list[str] = []
        self._ids: list[int] = []  # of the answer, as far as vLLM was asked for them

    async def run(self) -> str:
        """Pass the answer on; a failure becomes an error reply, or an error event where the answer has begun.

        Returns:
            Empty; or why the pair was lost, where nothing was sent and the contextual row may be answered alone.
        """
        try:
            async with aclosing(self._exchange.parts()) as parts:
                async for part in parts:
                    if isinstance(part, dict):
                        await self._part(part)
                    else:  # [DONE], or a comment that keeps the connection alive
                        await self._body(f"{part}\n\n".encode() if part.startswith(":") else event(part))
            if not self._started:
                raise Refusal(503, "the engine ended the answer before its first token.", "Try again.")
            if self._exchange.streams:
                await self._body(b"", more=False)
        except CKError as failure:
            error = await self._explained(failure)
            if isinstance(error, Lost) and self._falls_back and not self._started:
                log.warning("a pair was lost, its contextual prompt is answered alone: %s", error.reason)
                return error.reason
            if not self._started:
                await refuse(self._send, error)
                return ""
            told = error_object(getattr(error, "status", 503), str(error))
            await self._body(event(told) + event("[DONE]"), more=False)
        return ""

    async def _explained(self, error: CKError) -> CKError:
        """Return a 400 for a pair that was lost to its own grammar, any other error as it is.

        vLLM ends a row whose grammar allows no token without saying why; the workers know that no logit was finite.
        """
        if not isinstance(error, Lost) or self._lost or not self._pair or not constrained(self._request.body):
            return error
        try:
            await self._server.trace(self._pair, needed=False)
        except Refusal as told:
            if told.status == 500:  # its method raised, and the grammar did not take the end
                return told
            hint = "Let every rule and every $ref that leads back to itself have another way out."
            return Refusal(400, "the grammar or schema came to a point where it allows no token at all.", hint)
        return error

    async def _part(self, part: dict[str, Any]) -> None:
        """Pass on a whole reply, or one event of it."""
        reason = finish_reason(part)
        check_end(reason, paired=bool(self._pair) and not self._lost)
        self._take_ids(part)
        if self._exchange.drafted:  # whichever draft is given
            part["id"] = self._exchange.id
        if self._model is not None:
            part["model"] = self._model
        whole = not self._exchange.streams
        if self._translated:
            part = to_chat(part) if whole else to_chat_chunk(part, first=self._first)
            self._first = False
        if self._thoughts is not None:
            if whole:
                part_thought(part, opened=self._opened, told=self._tells)
            else:
                part_chunk(part, self._thoughts, told=self._tells)
        self._text += [told for choice in part.get("choices", ())[:1] if (told := _said(choice))]
        if (whole or reason is not None) and self._request.texts.source != PLAIN:
            part["ck"] = await self._echo()
        data = json.dumps(part, ensure_ascii=False).encode() if whole else event(part)
        await self._body(data, more=not whole)

    def _take_ids(self, reply: dict[str, Any]) -> None:
        """Keep the token ids, for the trace; take out those the client did not ask for."""
        for choice in reply.get("choices", ()):
            self._ids += choice.get("token_ids") or []
        if not self._request.body.get("return_token_ids"):
            for part in (reply, *reply.get("choices", ())):
                part.pop("token_ids", None)
                part.pop("prompt_token_ids", None)

    async def _echo(self) -> dict[str, Any]:
        """Return ``ck`` of the reply; the pair has ended."""
        told, traced = self._request.echo(), self._request.trace
        texts = self._request.texts
        found = [(hit["rank"], hit["text"]) for hit in texts.hits]
        if texts.wanted is not None and (notice := missing(found, self._passages)):
            told["notice"] = notice
        if self._passages:
            given = "".join(self._text), self._passages, self._request.texts.asked
            told["cited"] = [sentence.to_dict() for sentence in await asyncio.to_thread(cite, *given)]
        if self._lost or not self._pair:
            told.pop("seed", None)  # not in effect
            return told | ({"fallback": "contextual", "fallback_reason": self._lost} if self._lost else {})
        if self._exchange.drafted:
            rows = self._exchange.rows
        else:
            rows = await self._server.trace(self._pair, needed=traced)
        told |= self._exchange.told()
        if traced:
            try:
                tokenizer = await self._server.tokenizer()
            except Refusal:
                tokenizer = None  # the trace then lacks the texts
            told["trace"] = await asyncio.to_thread(told_trace, tokenizer, self._ids, rows)
        return told

    async def _body(self, data: bytes, *, more: bool = True) -> None:
        start = self._exchange.start
        if not self._started and start is not None:
            self._started = True
            headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            headers += [] if more else [(b"content-length", str(len(data)).encode())]
            await self._exchange.send(self._send, {**start, "headers": headers})
        await self._exchange.send(self._send, {"type": "http.response.body", "body": data, "more_body": more})


def _said(choice: dict[str, Any]) -> str:
    """Return what a choice adds to the answer, in whichever form; a thought adds nothing."""
    holder = choice.get("message") or choice.get("delta") or {}
    return str(holder.get("content") or choice.get("text") or "")


async def refuse(send: Send, error: CKError) -> None:
    """Answer a client with an error; nothing was sent before."""
    status = getattr(error, "status", 400)
    told = " ".join(error.parts("max_tokens")) if isinstance(error, PromptTooLong) else str(error)
    data = json.dumps(error_object(status, told), ensure_ascii=True).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if status in (429, 503):
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data, "more_body": False})


def told_trace(
    tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int], rows: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """Return the trace as the reply tells it: one `TokenTrace` per token, as plain values.

    Args:
        tokenizer: For the text each token added; None leaves it empty.
        ids: The answer's token ids.
        rows: What the workers recorded, per token.
    """
    count = min(len(ids), len(rows))
    texts = pieces(tokenizer, ids[:count]) if tokenizer is not None else [""] * count
    return [plain_trace(record(ids[i], texts[i], rows[i][0], rows[i][1:])) for i in range(count)]
