"""What goes back to the client: vLLM's reply with ``ck`` added, in the form of the endpoint that was asked.

Token-id prompts are answered by the completions endpoint; a client that asked for a chat gets a chat, whole or as
server-sent events. Errors have OpenAI's form. Knows JSON and events; knows nothing of ASGI or engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..decoding.token_texts import Thoughts, split_thought
from ..errors import CKError
from .asgi import content_types

__all__ = [
    "EventReader",
    "Lost",
    "Part",
    "Refusal",
    "check_end",
    "error_object",
    "error_text",
    "event",
    "finish_reason",
    "is_stream",
    "part_chunk",
    "part_thought",
    "read_part",
    "refusal",
    "to_chat",
    "to_chat_chunk",
]

Part = str | dict[str, Any]  # a whole reply or one event of it; text is a comment, with its colon, or ``[DONE]``
_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeout",
    413: "RequestTooLarge",
    429: "TooManyRequests",
}
_LARGEST_EVENT = 64 * 2**20


class Refusal(CKError):
    """A request that is answered with an HTTP error.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.status = status


class Lost(Refusal):
    """The engine gave a row of the pair up (503); the prompt with the passages alone may still be answered."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(503, message, hint)
        self.reason = message


def error_object(status: int, message: str) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kind = _TYPES.get(status, "ServiceUnavailable" if status == 503 else "Error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def check_end(reason: str | None, *, paired: bool = True) -> None:
    """Make sure that an answer did not end because its row was lost, of a pair or an ordinary request.

    Raises:
        Lost: It did.
    """
    if reason in ("abort", "error"):
        what = (
            "the pair was broken: its other row was lost in the engine" if paired else "the engine gave the answer up"
        )
        raise Lost(f"{what}.", "Try again.")


def refusal(status: int, body: bytes, who: str = "") -> Refusal:
    """Return what an error reply of vLLM becomes for the client: 4xx as it is, the rest as 503, a `Lost`.

    vLLM keeps to itself why it gave a row up, so the hint names the usual reasons.
    """
    text = error_text(body)
    if status < 500:
        return Refusal(status, who + text)
    hint = (
        "A prompt may be too short (at least two tokens), both may not fit the KV cache, or a row was lost: try again."
    )
    return Lost(f"{who}the engine gave the request up: {text.rstrip('.')}.", hint)


def error_text(body: bytes) -> str:
    """Return the message of an error reply, or its first characters; one line."""
    try:
        found = json.loads(body)["error"]
        text = str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, LookupError, TypeError, RecursionError):
        text = body[:500].decode("utf-8", errors="replace")
    return " ".join(text.split())[:500]


def event(data: Any) -> bytes:
    """Return one server-sent event; text is sent as it is."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


class EventReader:
    """Cuts a byte stream into server-sent events, however it is cut into pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterable[str]:
        """Yield the events completed by this piece: the data, or a whole comment with its colon.

        Raises:
            Refusal: An event never ends.
        """
        *events, self._rest = (self._rest + data).split(b"\n\n")
        if len(self._rest) > _LARGEST_EVENT:
            raise Refusal(503, "the engine sent an event without an end.", "Try again.")
        for block in events:
            text = block.decode("utf-8", errors="replace")
            yield text[5:].lstrip() if text.startswith("data:") else text


def is_stream(start: Mapping[str, Any]) -> bool:
    """Return whether an ASGI ``http.response.start`` begins server-sent events."""
    return any(kind.startswith(b"text/event-stream") for kind in content_types(start))


def read_part(text: str) -> dict[str, Any]:
    """Return a reply, or one event of it.

    Raises:
        Refusal: It is not JSON, or an error object in the middle of an answer (503, a `Lost`).
    """
    try:
        part = json.loads(text)
    except ValueError:
        raise Refusal(503, "the engine's reply is not JSON.", "Try again.") from None
    if not isinstance(part, dict) or not isinstance(part.get("choices"), list):
        raise refusal(503, text.encode())
    return part


def finish_reason(reply: Mapping[str, Any]) -> str | None:
    """Return why the answer, or this chunk of it, ended; None while it goes on."""
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        return None
    reason = choices[0].get("finish_reason")
    return None if reason is None else str(reason)


def to_chat(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return a completion as a chat completion."""
    choices = []
    for choice in reply.get("choices", ()):
        kept = {key: value for key, value in choice.items() if key not in ("text", "logprobs")}
        message = {"role": "assistant", "content": choice.get("text", "")}
        choices.append(kept | {"message": message, "logprobs": _logprobs(choice.get("logprobs"))})
    return {**reply, "id": _id(reply), "object": "chat.completion", "choices": choices}


def to_chat_chunk(chunk: Mapping[str, Any], *, first: bool) -> dict[str, Any]:
    """Return a chunk of a completion as a chunk of a chat completion; the first one names the role."""
    choices = []
    for choice in chunk.get("choices", ()):
        kept = {key: value for key, value in choice.items() if key not in ("text", "logprobs")}
        delta = ({"role": "assistant"} if first else {}) | {"content": choice.get("text", "")}
        part = kept | {"delta": delta, "finish_reason": choice.get("finish_reason")}
        if choice.get("logprobs") is not None:
            part["logprobs"] = _logprobs(choice["logprobs"])
        choices.append(part)
    return {**chunk, "id": _id(chunk), "object": "chat.completion.chunk", "choices": choices}


def part_thought(reply: Mapping[str, Any], *, opened: bool, told: bool) -> None:
    """Move the thought of a whole chat reply out of its content, and, if it is `told`, beside it."""
    for choice in reply.get("choices", ()):
        message = choice.get("message") or {}
        answer, thought = split_thought(message.get("content") or "", opened=opened)
        if thought is not None:
            message["content"] = answer or None
            message |= _reasoning(thought) if told else {}


def part_chunk(chunk: Mapping[str, Any], thoughts: Thoughts, *, told: bool) -> None:
    """As `part_thought`, with one chunk of a chat; what may still become a tag comes with a later one."""
    for choice in chunk.get("choices", ())[:1]:
        delta = choice.setdefault("delta", {})
        last = choice.get("finish_reason") is not None
        answer, thought = thoughts.feed(delta.get("content") or "", last=last)
        if answer or "content" in delta:
            delta["content"] = answer
        if thought and told:
            delta |= _reasoning(thought)


def _reasoning(thought: str) -> dict[str, str]:
    """Return a thought under the name that clients of most servers read, and under vLLM's own."""
    return {"reasoning_content": thought, "reasoning": thought}


def _id(reply: Mapping[str, Any]) -> str:
    return "chatcmpl-" + str(reply.get("id", "")).removeprefix("chat").removeprefix("cmpl-")


def _logprobs(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return log-probabilities in the form of the chat endpoint."""
    if given is None:
        return None
    tokens, chosen = given.get("tokens") or [], given.get("token_logprobs") or []
    tops = given.get("top_logprobs") or [None] * len(tokens)
    content = []
    for token, logprob, top in zip(tokens, chosen, tops, strict=False):
        others = [_entry(name, value) for name, value in (top.items() if isinstance(top, Mapping) else top or ())]
        content.append(_entry(token, logprob) | {"top_logprobs": others})
    return {"content": content}


def _entry(token: str, logprob: float | None) -> dict[str, Any]:
    value = -9999.0 if logprob is None else logprob
    return {"token": token, "logprob": value, "bytes": list(token.encode("utf-8", errors="replace"))}
