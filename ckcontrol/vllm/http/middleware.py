"""`CKMiddleware`: the OpenAI endpoints of vLLM understand a ``ck`` object. A pure ASGI class, set by ``--middleware``.

A request with ``ck`` becomes a pair of inner requests, or one pair per draft; a contextual one's answer is the reply.
From every other request the engine arguments that are ours are taken out, so that no client can name a pair. Knows ASGI
and the order of things; what a request may hold is in read_request.py, how a pair runs in exchange.py and drafting.py,
what is replied in steered_reply.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import CKError
from ...serving.asgi import ASGIApp, Gone, Message, Receive, Route, Scope, Send, Shared
from ...serving.guard import read_body
from ...serving.json_values import DIRECTION, HEADS, without_ours
from ...serving.limits import Limits
from ...serving.page import SafeHeaders, is_page, page, told_model
from ...serving.read_request import PATHS, Steered, read_request
from ...serving.read_texts import BUILT
from ...serving.replies import Refusal
from ...serving.retrieve import Retriever, opened
from ...serving.steered_reply import SteeredReply, refuse
from ..contract import fallback
from ..contract.pair_params import new_pair
from .drafting import Drafting
from .exchange import Exchange
from .guard import FormGuard, has_key, is_form, replay, suspicious
from .inner_bodies import Bodies, make_bodies
from .server import Server

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...heads.directions.direction import Direction

__all__ = ["EMBEDDER", "INDEX", "LED", "CKMiddleware"]

INDEX = "CKCONTROL_VLLM_INDEX"  # the folder of the index for ck.retrieve
EMBEDDER = "CKCONTROL_VLLM_EMBEDDER"  # where its embedder is now
LED = "CKCONTROL_VLLM_DIRECTION"  # the file of the direction for ck.direction

_LARGE = 256 * 1024  # bytes from which a body is read in a thread of its own
log = logging.getLogger("ckcontrol.vllm")


class CKMiddleware:
    """Steers requests that hold a ``ck`` object at ``/v1/chat/completions`` and ``/v1/completions``.

    Args:
        app: The app it wraps.
        limits: Bounds; None reads them from the environment (`limits.VARIABLE`).
        tokenizer: Of the served model; None loads what the server's arguments name, at the first request that needs it.
        on_lost: What happens when the engine gives a pair up before anything was sent: ``"fail"``, or ``"contextual"``,
            the prompt with the passages is answered alone. None reads the environment (`fallback.VARIABLE`).
        index: An `Index` or anything with its ``search``, for ``ck.retrieve``; None opens the folder that
            the environment names (`INDEX`), if it does.
        direction: What ``ck.direction`` leads along; None reads the file that the environment names
            (`LED`), if it does.

    Raises:
        ServingError: The environment holds no valid bounds, or `on_lost` is unknown.
        RetrievalError: The index cannot be opened, or its embedder not be loaded.
        HeadsError: The direction's file is none.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        on_lost: str | None = None,
        index: Any = None,
        direction: Direction | None = None,
    ) -> None:
        self.app = app
        self.limits = limits or Limits.from_env()
        self._tokenizer = tokenizer
        self._server: Server | None = None
        self._direction = direction or _direction_from_env()
        self._retriever = Retriever(_index_from_env() if index is None else index)
        self._page = SafeHeaders(page())
        self._falls_back = (fallback.from_env() if on_lost is None else fallback.choice(on_lost)) == "contextual"
        self.pairs = 0  # under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if is_page(path):
                return await self._page(scope, receive, send)
            if path == "/v1/models" and scope["method"] == "GET":
                return await self.app(scope, receive, self._telling(send))
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            return await self.app(scope, receive, send)
        try:
            if not has_key(scope):
                raise Refusal(401, "this server asks for an API key.", "Send the header Authorization: Bearer KEY.")
            if is_form(scope):
                return await FormGuard().run(self.app, scope, receive, send)
            body = await read_body(scope, receive, self.limits)
            if not suspicious(body):
                return await self.app(scope, replay(body, receive), send)
            data = await _off(len(body), _decode, body, scope)
            if isinstance(data, dict) and data.get("ck") is not None:
                return await self._steer(scope, receive, send, data, len(body))
            if data is not None and any(suspicious(body, ours.encode()) for ours in ("ck_", HEADS, DIRECTION)):
                body = await _off(len(body), _clean, data)
                scope = {**scope, "headers": _sized(scope, len(body))}
            return await self.app(scope, replay(body, receive), send)
        except Gone:
            return None
        except CKError as error:
            return await refuse(send, error)

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
            if request.texts.wanted is not None:
                request = await asyncio.to_thread(self._retriever.find, request)
            names, server = request.drafts, self._bound(scope)
            if len(names) > self.limits.pairs:
                what = f"method {request.control.method!r} takes {len(names)} pairs; this server runs"
                raise Refusal(400, f"{what} {self.limits.pairs} at once.", "Take another, or have `pairs` raised.")
            if self.pairs + len(names) - held > self.limits.pairs:
                raise Refusal(429, f"{self.pairs - held} pairs are under way.", "Try again in a moment.")
            self.pairs += len(names) - held
            held = len(names)
            push = await server.push(request.direction)
            if request.heads:
                await server.check_heads(request.heads)
            tokenizer = await _tokenizer(server, request)
            if request.texts.source == "prompt":
                await server.check_lengths(request.body)
                await server.check_lengths({**request.body, "prompt": request.texts.parametric})
            pairs = [new_pair() for _ in names]
            bodies = await asyncio.to_thread(make_bodies, request, pairs[0], tokenizer, names[0], server.window, push)
            unfit = server.unfit(bodies)
            if unfit and not self._falls_back:
                raise Refusal(400, unfit, "Shorten the passages or ask for fewer tokens, or have the cache enlarged.")
            shared = Shared(receive)
            route = Route(self.app, scope, shared, bodies.path)
            try:
                await self._run(route, send, server, request, bodies, dict(zip(names, pairs, strict=True)), unfit)
            finally:
                await shared.close()
        finally:
            self.pairs -= held

    def _telling(self, send: Send) -> Send:
        """Return a channel for the reply of ``/v1/models`` that adds to each model what can be asked of it."""
        start: Message = {}
        whole = b""

        async def told(message: Message) -> None:
            nonlocal start, whole
            if message["type"] == "http.response.start":
                start = message
                return
            whole += message.get("body", b"")
            if message.get("more_body"):
                return
            if start["status"] == 200:
                data = json.loads(whole)
                for model in data["data"]:
                    model["ck"] = told_model(self.limits, self._retriever, model.get("max_model_len"))
                whole = json.dumps(data).encode()
                start["headers"] = _sized(start, len(whole))
            await send(start)
            await send({"type": "http.response.body", "body": whole})

        return told

    def _bound(self, scope: Scope) -> Server:
        """Return the server around us, bound at the first steered request: only a request knows the app."""
        self._server = self._server or Server(
            getattr(scope.get("app"), "state", None), self._tokenizer, self._direction
        )
        return self._server

    async def _run(
        self,
        route: Route,
        send: Send,
        server: Server,
        request: Steered,
        bodies: Bodies,
        pairs: dict[str, str],
        lost: str,
    ) -> None:
        """Run the pair, or one per draft, and reply; `pairs` are their names by draft, `lost` why it cannot run."""
        left = self.limits.seconds
        reply = partial(
            SteeredReply,
            server,
            request,
            next(iter(pairs.values())),
            send=send,
            translated=route.path != request.path,
            thinking=bodies.thinking,
            passages=bodies.passages,
        )
        if not lost:
            if len(pairs) == 1:
                run = Exchange(route, bodies.contextual, bodies.parametric, left)
            else:
                run = Drafting(route, request, bodies, pairs, left, partial(server.trace, needed=True))
            async with run:
                lost = await reply(run, falls_back=self._falls_back).run()
            left = run.left
        if lost:
            alone = Exchange(route, fallback.alone(bodies.contextual, request.options), None, left)
            async with alone:
                await reply(alone, lost=lost).run()


def _index_from_env() -> Any:
    """Open the index that `INDEX` names, and load its embedder; None where it is not set."""
    folder = os.environ.get(INDEX, "").strip()
    return opened(folder, os.environ.get(EMBEDDER)) if folder else None


def _direction_from_env() -> Direction | None:
    """Read the direction that `LED` names; None where it is not set."""
    file = os.environ.get(LED, "").strip()
    if not file:
        return None
    from ...heads.directions.direction import Direction

    return Direction.load(file)


async def _tokenizer(server: Server, request: Steered) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer, which passages need and a chat is better told with; None where there is none."""
    try:
        return await server.tokenizer() if request.texts.source in (*BUILT, "messages") else None
    except Refusal:
        if request.texts.source in BUILT:
            raise
        return None


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


def _sized(scope: Scope | Message, size: int) -> list[tuple[bytes, bytes]]:
    dropped = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    return [*headers, (b"content-length", str(size).encode())]
