"""Runs the drafts of one steered request, one pair each, and passes on what the given one's contextual row answered.

Nothing is passed on before all of them have ended: only then is it known which one is given. One that fails fails them
all. Knows exchanges, traces and the form of vLLM's replies; knows nothing of engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ...answer import Draft, plain_draft
from ...decoding.token_texts import split_thought
from ...errors import ServingError
from ...serving.asgi import Route
from ...serving.read_request import Steered
from ...serving.replies import Part, Refusal, check_end, finish_reason
from ..contract.choose_draft import choose_draft
from .exchange import Exchange
from .inner_bodies import Bodies, redrafted

__all__ = ["Drafting"]

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class _Written:
    """What a draft's contextual row answered."""

    parts: list[Part]
    id: str
    ids: list[int]
    text: str


class Drafting(Exchange):
    """Drafts under way: the exchange of the first one and beside it those of the others; `parts` is the given one's.

    Args:
        route: Where all requests go.
        request: What was asked for; its method chooses.
        bodies: Of the first draft.
        pairs: The pair's name of each draft of `params.drafts`, in order.
        seconds: Longest time for everything.
        fetch: Returns what the workers recorded of a pair.

    Attributes:
        rows: What was recorded of the given draft; empty before it is known.
        id: Of the reply, whichever draft is given: the one that the client named, if it did.
    """

    drafted = True

    def __init__(
        self,
        route: Route,
        request: Steered,
        bodies: Bodies,
        pairs: Mapping[str, str],
        seconds: float,
        fetch: Callable[[str], Awaitable[Rows]],
    ) -> None:
        self._thinking = bodies.thinking
        self._control, self._pairs, self._fetch = request.control, pairs, fetch
        self._texts = request.texts
        super().__init__(route, bodies.contextual, bodies.parametric, seconds)
        _, *others = pairs.items()
        each = [redrafted(bodies, request, pair, draft) for draft, pair in others]
        self._others = [Exchange(route, both.contextual, both.parametric, seconds, named=False) for both in each]
        self._drafts: list[tuple[Draft, str]] = []

    async def __aenter__(self) -> Drafting:
        await super().__aenter__()
        for other in self._others:  # never suspends: nobody can be cancelled half-way
            await other.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.gather(super().__aexit__(*error), *(other.__aexit__(*error) for other in self._others))

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Yield the given draft's answer, once, when all have ended; as `Exchange.parts`.

        Raises:
            Refusal: As from an `Exchange`; a draft failed (4xx as it is, else 503, a `Lost`); or what the workers
                recorded of one was forgotten (503).
            Gone: The client went away.
        """
        answers = [super().parts(), *(other.parts() for other in self._others)]
        reading = [asyncio.create_task(_read(answer)) for answer in answers]
        try:
            written = await asyncio.gather(*reading)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        given = await self._choose(written)
        self.id = written[0].id
        for part in given.parts:
            yield part

    async def _choose(self, written: Sequence[_Written]) -> _Written:
        rows = await asyncio.gather(*map(self._fetch, self._pairs.values()))
        try:
            drafts = choose_draft(
                self._control,
                list(self._pairs),
                [one.ids for one in written],
                rows,
                [one.text for one in written],
                self._texts.asked,
                self._texts.passages,
            )
        except ServingError as error:
            raise Refusal(503, str(error)) from error
        texts = [split_thought(one.text, opened=self._thinking)[0] for one in written]
        self._drafts = list(zip(drafts, texts, strict=True))
        given = next(i for i, draft in enumerate(drafts) if draft.given)
        self.rows = rows[given]
        return written[given]

    def told(self) -> dict[str, Any]:
        """Return the drafts as the reply tells them."""
        return {"drafts": [plain_draft(draft, text) for draft, text in self._drafts]}


async def _read(answer: AsyncGenerator[Part, None]) -> _Written:
    """Read an answer to its end.

    Raises:
        Refusal: The exchange's own; or the answer was given up (`Lost`).
    """
    parts: list[Part] = []
    ids: list[int] = []
    text, name, reason = "", "", None
    async with aclosing(answer):
        async for part in answer:
            parts.append(part)
            if isinstance(part, str):
                continue
            reason = finish_reason(part) or reason
            name = name or str(part.get("id", ""))
            for choice in part["choices"][:1]:
                ids += choice.get("token_ids") or ()
                text += _text(choice)
    check_end(reason or "abort")
    return _Written(parts, name, ids, text.strip())


def _text(choice: dict[str, Any]) -> str:
    """Return what a choice of either endpoint, whole or a chunk, adds to the answer."""
    said = choice.get("message") or choice.get("delta") or {}
    return choice.get("text") or said.get("content") or ""
