"""Runs the drafts of one steered request, a pair each, and passes on what the given one's contextual row answered.

Nothing is passed on before all of them have ended: only then is known which is given. One that fails fails them all.
Knows exchanges, traces and the form of vLLM's replies; knows nothing of engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...answer import Draft
from ...errors import ServingError
from ..contract.choose_draft import choose_draft
from .asgi import ASGIApp, Message, Receive, Scope, Send
from .exchange import Exchange
from .inner_bodies import Bodies, redrafted
from .read_request import Steered
from .replies import EventReader, Refusal, check_end, finish_reason, is_stream, read_part, refusal

__all__ = ["Drafting", "Shared"]

Rows = Sequence[Sequence[float]]


class Shared:
    """A client's channel for several exchanges: it is read once, and all are told when the client is gone."""

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


@dataclass(frozen=True)
class _Written:
    """What a draft's contextual row answered; `messages` come after `start`."""

    start: Message
    messages: list[Message]
    id: str
    ids: list[int]
    text: str


class Drafting:
    """Drafts under way; iterate over it, once, for the ASGI messages of the given one, as over an `Exchange`.

    Args:
        ways: The first four arguments of every `Exchange`; the channel among them is a `Shared` one.
        request: What was asked for; its method chooses.
        bodies: Of the first draft.
        pairs: The pair's name of each draft of `params.drafts`, in order.
        seconds: Longest time for everything.
        fetch: Returns what the workers recorded of a pair.

    Attributes:
        rows: What was recorded of the given draft; empty before it is known.
        id: Of the reply, whichever draft is given: the one that the client named, if it did.

    Raises:
        Refusal: While iterating: as from an `Exchange`; or a draft failed (4xx as it is, else 503, a `Lost`), or what
            the workers recorded of it was forgotten (503).
        Gone: While iterating: the client went away.
    """

    def __init__(
        self,
        ways: tuple[ASGIApp, Scope, Shared, str],
        request: Steered,
        bodies: Bodies,
        pairs: Mapping[str, str],
        seconds: float,
        fetch: Callable[[str], Awaitable[Rows]],
    ) -> None:
        self._control, self._pairs, self._fetch = request.control, pairs, fetch
        _, *others = pairs.items()
        each = [bodies, *(redrafted(bodies, request, pair, draft) for draft, pair in others)]
        self._exchanges = [
            Exchange(*ways, both.contextual, both.parametric, seconds, named=both is bodies) for both in each
        ]
        self._drafts: list[tuple[Draft, str]] = []
        self.rows: Rows = ()
        self.id = ""

    async def __aenter__(self) -> Drafting:
        for exchange in self._exchanges:  # never suspends: nobody can be cancelled half-way
            await exchange.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.gather(*(exchange.__aexit__(*error) for exchange in self._exchanges))

    async def __aiter__(self) -> AsyncIterator[Message]:
        reading = [asyncio.create_task(_read(exchange)) for exchange in self._exchanges]
        try:
            written = await asyncio.gather(*reading)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        given = await self._choose(written)
        self.id = written[0].id
        yield written[0].start
        for message in given.messages:
            yield message

    async def _choose(self, written: Sequence[_Written]) -> _Written:
        rows = await asyncio.gather(*map(self._fetch, self._pairs.values()))
        try:
            drafts = choose_draft(self._control, list(self._pairs), [one.ids for one in written], rows)
        except ServingError as error:
            raise Refusal(503, str(error)) from error
        self._drafts = list(zip(drafts, (one.text for one in written), strict=True))
        given = next(i for i, draft in enumerate(drafts) if draft.given)
        self.rows = rows[given]
        return written[given]

    @property
    def left(self) -> float:
        """Seconds left for everything."""
        return self._exchanges[0].left

    async def send(self, send: Send, message: Message) -> None:
        """As `Exchange.send`."""
        await self._exchanges[0].send(send, message)

    def told(self) -> list[dict[str, Any]]:
        """Return the drafts as the reply tells them."""
        kept = ("name", "surprise_ctx", "surprise_par", "given")
        return [{name: getattr(draft, name) for name in kept} | {"text": text} for draft, text in self._drafts]


async def _read(exchange: Exchange) -> _Written:
    """Read an answer to its end.

    Raises:
        Refusal: The exchange's own; or the answer is an error, is not JSON (503), or was given up (`Lost`).
    """
    start, *messages = [message async for message in exchange] or [{"status": 503}]
    body = b"".join(message.get("body", b"") for message in messages)
    if start["status"] >= 400:
        raise refusal(start["status"], body)
    ids: list[int] = []
    text, name, reason = "", "", None
    for part in _parts(body) if is_stream(start) else [body.decode("utf-8", errors="replace")]:
        told = read_part(part)
        reason = finish_reason(told) or reason
        name = name or str(told.get("id", ""))
        for choice in told["choices"][:1]:
            ids += choice.get("token_ids") or ()
            text += _text(choice)
    check_end(reason or "abort")
    return _Written(start, messages, name, ids, text.strip())


def _parts(body: bytes) -> list[str]:
    return [text for text in EventReader().feed(body) if text != "[DONE]" and not text.startswith(":")]


def _text(choice: dict[str, Any]) -> str:
    """Return what a choice of either endpoint, whole or a chunk, adds to the answer."""
    said = choice.get("message") or choice.get("delta") or {}
    return choice.get("text") or said.get("content") or ""
