"""An ASGI app that behaves like vLLM's endpoints, without an engine; and a client that can go away at any moment.

Rows of a pair wait for each other, as our scheduler makes them; both see ``http.disconnect`` the way vLLM does. What
arrived is kept in `seen`; `running` must be 0 after every story. Knows ASGI and the shapes of vLLM's replies.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

WORDS = ["Orven", "dale", " is", " a", " town", "."]


class Inner:
    """vLLM's two endpoints. `refuse` maps a role to a status; `fail` is "abort", "lost", "raise", "event" or "never".

    Lost are rows of pairs alone: they abort. "mute" sends no token ids. `texts` maps a draft to its words, where they
    are not `WORDS`. A reply's id is the one the client gave, or a number.
    """

    def __init__(self, *, refuse: dict[str, int] | None = None, fail: str = "", pause: float = 0.0) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.refuse, self.fail, self.pause = refuse or {}, fail, pause
        self.running = 0
        self.most = 0
        self.aborted = 0
        self.pairs: dict[str, dict[str, asyncio.Event]] = {}
        self.texts: dict[str, list[str]] = {}
        self.headers: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] != "POST":
            return await reply(send, 200, {"fine": True})
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message["body"]
            more = message.get("more_body", False)
        try:
            data = json.loads(body)
        except ValueError:
            return await reply(send, 400, {"error": {"message": "not JSON"}})
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        assert lengths in ([], [str(len(body)).encode()]), "the length is that of the body"
        self.seen.append((scope["path"], data))
        self.headers.append(dict(scope["headers"]))
        name = "cmpl-" + dict(scope["headers"]).get(b"x-request-id", str(len(self.seen)).encode()).decode()
        self.running += 1
        self.most = max(self.most, self.running)
        gone = asyncio.create_task(until_gone(receive))
        work = asyncio.create_task(self.answer(scope["path"], data, send, name))
        try:
            await asyncio.wait([gone, work], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            else:
                self.aborted += 1
                work.cancel()
        finally:
            gone.cancel()
            self.running -= 1

    async def answer(self, path: str, data: dict[str, Any], send: Any, name: str) -> None:
        if not isinstance(data, dict):
            return await reply(send, 422, {"error": {"message": "no object"}})
        extra = data.get("vllm_xargs")
        extra = extra if isinstance(extra, dict) else {}
        role = extra.get("ck_role", "")
        if role in self.refuse:
            status = self.refuse[role]
            return await reply(send, status, {"error": {"message": f"{role} is too long", "code": status}})
        if role:
            rows = self.pairs.setdefault(extra["ck_pair"], {})
            assert role not in rows and len(rows) < 2, "a pair is two rows"
            rows[role] = asyncio.Event()
            if len(rows) == 2:
                for ready in rows.values():
                    ready.set()
            await rows[role].wait()
        words = self.texts.get(extra.get("ck_draft", ""), WORDS)
        if self.fail == "never":
            await asyncio.sleep(3600)
        if role != "parametric":
            if self.fail == "raise":
                raise RuntimeError("secret detail")
        chat = path.endswith("chat/completions")
        aborted = self.fail == "abort" or (self.fail == "lost" and role)
        if not data.get("stream"):
            await asyncio.sleep(self.pause * len(words))
            reason = "abort" if aborted else "stop"
            text = "".join(words)
            choice: dict[str, Any] = {"text": text, "logprobs": None}
            if chat:
                choice = {"message": {"role": "assistant", "content": text}}
            if data.get("return_token_ids") and self.fail != "mute":
                choice |= {"token_ids": list(range(5, 5 + len(words))), "prompt_token_ids": [1, 2, 3]}
            if data.get("logprobs") is not None and not chat:
                choice["logprobs"] = logprobs(words)
            usage = {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 3 + len(words)}
            return await reply(
                send, 200, {"id": name, "choices": [{"index": 0, "finish_reason": reason} | choice], "usage": usage}
            )
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for i, word in enumerate(words):
            await asyncio.sleep(self.pause)
            if self.fail == "event" and i == 3:
                await put(send, {"error": {"message": "the engine stumbled"}})
                break
            reason = None if i < len(words) - 1 else "abort" if aborted else "stop"
            if self.fail == "lost" and role and not i:
                reason = "abort"  # before anything was said
            part: dict[str, Any] = {"delta": {"content": word}} if chat else {"text": word}
            if data.get("return_token_ids") and self.fail != "mute":
                part["token_ids"] = [5 + i]
            await put(send, {"id": name, "choices": [{"index": 0, "finish_reason": reason} | part]})
        if (data.get("stream_options") or {}).get("include_usage"):
            await put(send, {"id": name, "choices": [], "usage": {"prompt_tokens": 3}})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def logprobs(words: list[str]) -> dict[str, Any]:
    return {
        "tokens": words,
        "token_logprobs": [-0.5] * len(words),
        "top_logprobs": [{word: -0.5, "x": -1.5} for word in words],
        "text_offset": [0] * len(words),
    }


async def put(send: Any, data: Any) -> None:
    await send({"type": "http.response.body", "body": f"data: {json.dumps(data)}\n\n".encode(), "more_body": True})


async def reply(send: Any, status: int, data: Any) -> None:
    body = json.dumps(data).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Answer:
    """What a client got."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.ended = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])

    @property
    def events(self) -> list[Any]:
        texts = [block.removeprefix("data: ") for block in self.body.decode().split("\n\n") if block]
        assert not texts or texts[-1] == "[DONE]"
        return [json.loads(text) for text in texts[:-1]]


async def ask(
    app: Any,
    body: Any,
    path: str = "/v1/chat/completions",
    *,
    method: str = "POST",
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"application/json"),),
    leave_after: float | None = None,
    leave_at: Callable[[Answer], bool] | None = None,
    piece: int = 65_536,
    slow: float = 0.0,
    state: Any = None,
) -> Answer:
    """Send one request. The client leaves after some seconds, or as soon as `leave_at` says so of what it has got.

    `state` is what vLLM keeps at ``app.state``.
    """
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    pieces = [data[i : i + piece] for i in range(0, len(data), piece)] or [b""]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": list(headers),
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "state": {},
        "app": SimpleNamespace(state=state),
    }
    got, left, position = Answer(), asyncio.Event(), 0
    if leave_after is not None:
        asyncio.get_running_loop().call_later(leave_after, left.set)

    async def receive() -> Any:
        nonlocal position
        if position < len(pieces):
            await asyncio.sleep(slow)
            position += 1
            return {"type": "http.request", "body": pieces[position - 1], "more_body": position < len(pieces)}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert not got.ended, "nothing follows the end"
        if message["type"] == "http.response.start":
            assert not got.status, "a reply starts once"
            got.status, got.headers = message["status"], dict(message["headers"])
        else:
            assert got.status
            got.body += message.get("body", b"")
            got.ended = not message.get("more_body", False)
            if b"content-length" in got.headers and got.ended:
                assert int(got.headers[b"content-length"]) == len(got.body)
        if leave_at is not None and leave_at(got):
            left.set()

    await app(scope, receive, send)
    return got
