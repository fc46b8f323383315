"""Answers of a model in this process, in the form that replies are made of: what the batcher tells becomes events.

Knows requests, jobs and OpenAI's completions form; knows nothing of ASGI but a client's channel.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..answer import Draft, SourceTold, plain_draft, plain_source
from ..decoding.sources import check_room
from ..decoding.token_texts import TextSoFar, pieces, said, unfinished
from ..errors import ServingError, did_you_mean
from .asgi import Gone, Message, Send, Shared
from .batcher import Batcher
from .jobs import End, Job
from .json_values import flag, integer, kind, shown
from .prompt_pairs import Room, make_pair, make_sources
from .read_request import CHAT, Steered, belongs_in_ck
from .replies import Part, Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LocalEngine", "LocalSource", "check_fields"]

# Fields of a body that this server understands, or that say nothing about the answer.
_KNOWN = {
    *("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop"),
    *("response_format", "structured_outputs", "chat_template_kwargs", "return_token_ids", "include_reasoning"),
    *("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier", "logprobs"),
    *("ck", "temperature", "top_p", "top_k", "seed", "repetition_penalty"),
}
_OF_CHATS = ("tools", "tool_choice", "top_logprobs")
_NEUTRAL: dict[str, Any] = {"functions": [], "logit_bias": {}, "n": 1}
_KINDS = ("json", "regex", "grammar")
_MOST = 20  # tokens told beside each of the answer's


def check_fields(path: str, body: Mapping[str, Any]) -> None:
    """Refuse a field of a body that this server would silently ignore.

    Raises:
        ServingError: Naming it.
    """
    known = {*_KNOWN, *(_OF_CHATS if path == CHAT else ())}
    for name, value in body.items():
        neutral = value is None or (name in _NEUTRAL and value == _NEUTRAL[name])
        if not neutral and name not in known:
            proposal = did_you_mean(name[:64], known) if name not in _NEUTRAL else "vLLM's server knows it."
            proposal = f'It belongs in ck, like {{"ck": {{"{name}": ...}}}}.' if belongs_in_ck(name) else proposal
            raise ServingError(f"{name[:64]}={shown(value)}: this server does not know the field.", proposal)
    for name in ("stream_options", "response_format", "structured_outputs", "chat_template_kwargs"):
        if body.get(name) is not None and not isinstance(body[name], dict):
            raise ServingError(f"{name} is {kind(body[name])}, not an object.", "Leave it out.")


def logprobs_of(path: str, body: Mapping[str, Any]) -> int | None:
    """Return how many of the likeliest tokens are told at each token of the answer; None tells of none, nor of it.

    Raises:
        ServingError: A value of the wrong type or out of range, or thoughts that are to be hidden.
    """
    given = body.get("logprobs")
    if path == CHAT:
        top = body.get("top_logprobs")
        if not flag("logprobs", given):
            if top is not None and top != 0:
                raise ServingError(f"top_logprobs={shown(top)} without logprobs.", 'Send "logprobs": true beside it.')
            return None
        most = 0 if top is None else integer("top_logprobs", top, 0, _MOST)
    elif given is None or given is False:
        return None
    else:
        most = integer("logprobs", given, 0, _MOST)
    if body.get("include_reasoning") is False:
        raise ServingError("include_reasoning=False hides tokens that logprobs tell.", "Leave it out.")
    return most


def structured_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema or grammar that a body asks for, as `structure_of` takes it; empty for none.

    Raises:
        ServingError: A form that is unknown, or two of them.
    """
    found = []
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        schema = form.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
            raise ServingError("response_format holds no schema.", 'Like {"json_schema": {"name": "x", "schema": {}}}.')
        found.append({"json_schema": schema["schema"]})
    elif form.get("type") == "json_object":
        found.append({"json_schema": {"type": "object"}})
    elif form and form.get("type") != "text":
        hint = did_you_mean(str(form.get("type"))[:64], ("text", "json_object", "json_schema"))
        raise ServingError(f"response_format.type={shown(form.get('type'))} is unknown.", hint)
    for name, value in (body.get("structured_outputs") or {}).items():
        if name not in _KINDS:
            raise ServingError(f"structured_outputs.{name[:64]} is unknown.", did_you_mean(name[:64], _KINDS))
        if value is not None:
            found.append({"json_schema" if name == "json" else name: value})
    if len(found) > 1:
        raise ServingError("two schemas or grammars were given.", "Give one.")
    return found[0] if found else {}


class LocalEngine:
    """What a reply asks the engine of: the tokenizer, and what was recorded of an answer.

    Args:
        batcher: Decodes.
        tokens: Longest answer, and the longest one for which nobody asked.
    """

    parses_thoughts = False

    def __init__(self, batcher: Batcher, tokens: int) -> None:
        self.batcher = batcher
        self.room = Room(batcher.positions, tokens, batcher.vocabulary, batcher.ends)
        self.traces: dict[str, Sequence[Sequence[float]]] = {}

    async def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the model's tokenizer."""
        return self.batcher.tokenizer

    async def trace(self, pair: str, *, needed: bool) -> Sequence[Sequence[float]]:
        """Return what was recorded of an answer, once."""
        return self.traces.pop(pair, ())

    def job(self, request: Steered) -> Job:
        """Make the job of a request: its prompts, and a schema that can be read. Slow: for a thread.

        Raises:
            CKError: Whatever is wrong with it.
        """
        pair, most = make_pair(request, self.batcher.tokenizer, self.room)
        sources, most = make_sources(request, self.batcher.tokenizer, self.room, most)
        stop = request.body.get("stop") or ()
        options = request.drawn(most, (stop,) if isinstance(stop, str) else tuple(text for text in stop if text))
        structured = structured_of(request.body)
        self.batcher.structure(structured)
        if structured and pair.thinking:
            raise ServingError(
                "the chat template opened a thought, and a thought is no structured answer.",
                'Where the template can do without, send "chat_template_kwargs": {"enable_thinking": false}.',
            )
        mask, favourites = self.batcher.mask(request.heads), logprobs_of(request.path, request.body)
        lean = self.batcher.lean(request.direction)
        if sources is not None:
            check_room(self.batcher.model, [sources.prompts] if sources.prompts.several else [], most)
            if structured or favourites is not None:
                what = "response_format" if structured else "logprobs"
                raise ServingError(f"{what} stands beside ck.sources, which write answers side by side.", "Drop one.")
        return Job(pair, request.control, options, structured, mask, lean, favourites, sources)


class LocalSource:
    """One answer under way, from a queued job to its end. Leaving the block tells the batcher that nobody waits.

    Args:
        engine: Decodes it.
        request: What was asked for.
        job: From `LocalEngine.job`.
        name: Of the served model.
        receive: The client's channel.
        seconds: Longest time for everything.

    Attributes:
        pair: Names the answer, for `LocalEngine.trace`.
    """

    def __init__(
        self, engine: LocalEngine, request: Steered, job: Job, name: str, receive: Shared, seconds: float
    ) -> None:
        self.start: Message | None = None
        self.drafted = job.several
        self.pair = uuid.uuid4().hex
        self.id = ("chatcmpl-" if request.path == CHAT else "cmpl-") + self.pair
        self.rows: Sequence[Sequence[float]] = ()
        self.streams = request.stream
        self._engine, self._request, self._job, self._receive = engine, request, job, receive
        self._base = {
            "id": f"cmpl-{self.pair}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._seconds, self._drafts, self._length = seconds, list[Draft](), 0
        self._sources: Sequence[SourceTold] = ()
        self._disputed = False
        tokenizer = engine.batcher.tokenizer
        self._tokenizer = tokenizer

    async def __aenter__(self) -> LocalSource:
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + self._seconds

        def tell(event: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._job.tell = tell
        self._watcher = asyncio.create_task(self._watch())
        self._engine.batcher.submit(self._job)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._job.left = True
        self._watcher.cancel()
        await asyncio.gather(self._watcher, return_exceptions=True)
        self._engine.traces.pop(self.pair, None)

    async def _watch(self) -> None:
        await self._receive()
        self._events.put_nowait(Gone())

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Yield the answer, once: a whole reply, or one event after the other; `start` is set before the first.

        Raises:
            CKError: What ended it.
            Gone: The client went away.
        """
        ids: list[int] = []
        told, held = 0, list[str]()  # tokens that were sent; text that is sent at the end
        text = TextSoFar(self._tokenizer, self._job.options.stop, self._engine.batcher.ends)
        end: End | None = None
        while end is None:
            try:
                events = [await asyncio.wait_for(self._events.get(), self._left)]
            except asyncio.TimeoutError:
                raise Refusal(503, f"no answer within {self._seconds:g} s.", "Ask for fewer tokens.") from None
            while not self._events.empty():
                events.append(self._events.get_nowait())
            fresh = len(ids)
            for event in events:
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, End):
                    end = event
                else:
                    ids.append(event)
            piece = text.feed(ids[fresh:], last=end is not None)
            if end is not None:
                self._keep(end)
                piece = "".join([*held, piece])
            elif not self.streams or not piece:
                held.append(piece)
                continue
            choice: dict[str, Any] = {"index": 0, "text": piece, "logprobs": None}
            telling = ids[told:]
            if self._job.favourites is not None:
                scores = choice["logprobs"] = await asyncio.to_thread(self._logprobs, ids, told, end is not None)
                telling = telling[: len(scores["tokens"])]
            choice |= {"finish_reason": end.reason if end else None, "token_ids": telling}
            part: dict[str, Any] = self._base | {"choices": [choice]}
            told += len(telling)
            if not self.streams:
                part["usage"] = self._usage(ids)
            self._begin()
            yield part
        if self.streams:
            if (self._request.body.get("stream_options") or {}).get("include_usage"):
                yield self._base | {"choices": [], "usage": self._usage(ids)}
            yield "[DONE]"

    def told(self) -> dict[str, Any]:
        """Return what the reply tells of drafts and sources."""
        found: dict[str, Any] = {}
        if self._request.sources is not None:
            found = {"sources": [plain_source(one) for one in self._sources], "disputed": self._disputed}
        if not self.drafted:
            return found
        ends = self._engine.batcher.ends
        stop, thinking = self._job.options.stop, self._job.pair.thinking
        texts = [said(self._tokenizer, d.token_ids, stop=stop, ends=ends, thinking=thinking).text for d in self._drafts]
        return {"drafts": [plain_draft(*each) for each in zip(self._drafts, texts, strict=True)], **found}

    async def send(self, send: Send, message: Message) -> None:
        """Send to the client, for as long as the time lasts: one that does not read cannot hold its row for ever.

        Raises:
            Gone: The time is up.
        """
        try:
            await asyncio.wait_for(send(message), self._left)
        except (asyncio.TimeoutError, OSError):
            raise Gone from None

    @property
    def _left(self) -> float:
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    def _keep(self, end: End) -> None:
        self.rows, self._drafts = end.rows, list(end.drafts)
        self._sources, self._disputed = end.sources, end.disputed
        self._engine.traces[self.pair] = end.rows

    def _usage(self, ids: Sequence[int]) -> dict[str, int]:
        prompt = len(self._job.pair.contextual)
        return {"prompt_tokens": prompt, "completion_tokens": len(ids), "total_tokens": prompt + len(ids)}

    def _logprobs(self, ids: Sequence[int], told: int, last: bool) -> dict[str, Any]:
        """Return, of the tokens from the place `told` on, what the distribution that each was drawn from says.

        Before the `last` ones, a token that holds a part of a character waits for those that hold the rest of it.
        """
        texts = pieces(self._tokenizer, ids, since=told, last=last)
        form: dict[str, Any] = {"tokens": texts, "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for place, text in enumerate(texts, told):
            logp, likeliest = self._job.scored[place]
            whole = max((i for i in range(told, place) if texts[i - told]), default=told - 1) + 1  # a character ends
            start = max(0, whole - 8)
            named = {t: self._rival([*ids[start:place], t], whole - start) for t, _ in likeliest} | {ids[place]: text}
            tops: Any = [(named[token], value) for token, value in likeliest]
            if self._request.path != CHAT:  # named by their texts, of equal ones the likeliest
                tops = dict([*reversed(tops), (text, logp)]) if tops else None
            form["token_logprobs"].append(logp)
            form["top_logprobs"].append(tops)
            form["text_offset"].append(self._length)
            self._length += len(text)
        return form

    def _rival(self, ids: Sequence[int], since: int) -> str:
        """Return what the last id would have added, where a character ends before `since`; of a part of one, U+FFFD."""
        part = unfinished(self._tokenizer, ids)[0]
        return pieces(self._tokenizer, ids, since=since)[-1] + ("\ufffd" if part else "")

    def _begin(self) -> None:
        if self.start is None:
            form = b"text/event-stream; charset=utf-8" if self.streams else b"application/json"
            headers = [(b"content-type", form), (b"cache-control", b"no-store")]
            self.start = {"type": "http.response.start", "status": 200, "headers": headers}
