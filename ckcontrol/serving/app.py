"""``ckcontrol serve``: OpenAI's endpoints over one model in this process, and the page. Starlette, served by uvicorn.

A key is asked for before anything of a request is read; then its size, form and fields are checked, its passages are
searched for where it says so, and it waits for its answer in the batcher. Knows HTTP and the order of things.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..decoding.sources import MAX_SOURCES
from ..errors import CKError
from .asgi import ASGIApp, Gone, Receive, Scope, Send, Shared, content_types
from .batcher import Batcher
from .guard import names_key, read_body
from .json_values import shown
from .limits import Limits
from .local import LocalEngine, LocalSource, check_fields
from .page import SafeHeaders, page, told_model
from .read_request import CHAT, COMPLETIONS, Steered, read_request
from .replies import Refusal, error_object
from .retrieve import Retriever
from .steered_reply import SteeredReply, refuse

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..heads.directions.direction import Direction

__all__ = ["create_app"]

_LARGE = 256 * 1024  # bytes from which a body is read in a thread of its own
_GUARDED = ("/v1", "/metrics")  # where a key is asked for
log = logging.getLogger("ckcontrol.serving")


def create_app(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    keys: Sequence[str] = (),
    limits: Limits | None = None,
    index: Any = None,
    rows: int = 8,
    tokens: int = 1024,
    hosts: Sequence[str] = ("*",),
    direction: Direction | None = None,
) -> Starlette:
    """Return the server as an ASGI app.

    Args:
        model: A decoder-only transformers model; from here on the app's alone.
        tokenizer: Its own.
        name: What clients call the model.
        keys: API keys, any of which opens ``/v1`` and ``/metrics``; none asks for no key.
        limits: Bounds of requests.
        index: An `Index` or anything with its ``search``, for ``ck.retrieve``; None refuses it.
        rows: Most answers decoded at once.
        tokens: Longest answer, and the longest one for which a request names no length.
        hosts: Host names under which the server answers.
        direction: What ``ck.direction`` leads along; None refuses it.

    Raises:
        UnsupportedMode, TokenizerMismatch: Model and tokenizer cannot be steered, or do not fit.
        HeadsError: The direction is for another model.
    """
    if direction is not None:
        direction.check(model)
    batcher = Batcher(model, tokenizer, rows, direction)
    server = _Server(LocalEngine(batcher, tokens), name, limits or Limits(), Retriever(index))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.to_thread(batcher.close)

    app = Starlette(
        routes=[
            Route(CHAT, server.chat, methods=["POST"]),
            Route(COMPLETIONS, server.completions, methods=["POST"]),
            Route("/v1/models", server.models),
            Route("/v1/models/{name:path}", server.one_model),
            Route("/health", server.health),
            Route("/metrics", server.metrics),
        ],
        middleware=[
            Middleware(SafeHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
            Middleware(_Keys, keys=tuple(keys)),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _broken},
        lifespan=lifespan,
    )
    app.router.default, app.router.redirect_slashes = page(), False  # a mount would take what a route refuses
    return app


class _Endpoint:
    """An endpoint that reads a request and answers it; an app of its own, as it streams and must see clients leave."""

    def __init__(self, server: _Server, path: str) -> None:
        self._server, self._path = server, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._server.answer(self._path, scope, receive, send)
        except Gone:
            return
        except CKError as error:
            await refuse(send, error)


class _Server:
    def __init__(self, engine: LocalEngine, name: str, limits: Limits, retriever: Retriever) -> None:
        self._engine, self._name, self._limits, self._retriever = engine, name, limits, retriever
        self._under_way = self._refused = 0
        self._since = int(time.time())
        self.chat, self.completions = _Endpoint(self, CHAT), _Endpoint(self, COMPLETIONS)

    async def answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request for a completion."""
        body = await read_body(scope, receive, self._limits)
        data = await _off(len(body), _decode, body, scope)
        if self._under_way >= self._limits.pairs:
            self._refused += 1
            raise Refusal(429, f"{self._under_way} requests are under way.", "Try again in a moment.")
        self._under_way += 1
        try:
            request = await _off(len(body), self._read, path, data)
            if request.texts.wanted is not None:
                request = await asyncio.to_thread(self._retriever.find, request)
            job = await asyncio.to_thread(self._engine.job, request)
            shared = Shared(receive)
            try:
                async with LocalSource(self._engine, request, job, self._name, shared, self._limits.seconds) as source:
                    reply = SteeredReply(
                        self._engine,
                        request,
                        source.pair,
                        source,
                        send,
                        translated=path == CHAT,
                        thinking=job.pair.thinking,
                        passages=job.pair.passages,
                    )
                    await reply.run()
            finally:
                await shared.close()
        finally:
            self._under_way -= 1

    def _read(self, path: str, data: dict[str, Any]) -> Steered:
        if data.get("model") not in (None, self._name):
            raise Refusal(404, f"there is no model {shown(data['model'])} here.", f"It is {self._name!r}.")
        dial, most = self._engine.batcher.dial, self._engine.room.tokens
        request = read_request(path, data, self._limits, dial=dial, sources=True, most=most)
        check_fields(path, request.body)
        return request

    def _told_model(self) -> dict[str, Any]:
        bounds = self._engine.room
        return {
            "id": self._name,
            "object": "model",
            "created": self._since,
            "owned_by": "ckcontrol",
            "max_model_len": bounds.positions,
            "ck": told_model(
                self._limits, self._retriever, bounds.tokens, dial=self._engine.batcher.dial, sources=MAX_SOURCES
            ),
        }

    async def models(self, _: Request) -> Response:
        """Name the model, and what can be asked of it."""
        return JSONResponse({"object": "list", "data": [self._told_model()]})

    async def one_model(self, request: Request) -> Response:
        """Name the model, if it is this one."""
        if request.path_params["name"] != self._name:
            raise HTTPException(404, f"there is no model {shown(request.path_params['name'])} here.")
        return JSONResponse(self._told_model())

    async def health(self, _: Request) -> Response:
        """Say that the server can answer; 503 where its thread has died."""
        return Response(status_code=200 if self._engine.batcher.alive else 503)

    async def metrics(self, _: Request) -> Response:
        """Tell figures in Prometheus' text form."""
        batcher = self._engine.batcher
        lines = [
            f"# TYPE ckcontrol_{name} {kind}\nckcontrol_{name} {value}"
            for name, kind, value in [
                ("requests_running", "gauge", batcher.running),
                ("requests_waiting", "gauge", batcher.waiting),
                ("requests_refused_total", "counter", self._refused),
                *((f"{name}_total", "counter", batcher.counts[name]) for name in batcher.COUNTED),
            ]
        ]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


async def _off(size: int, function: Any, *args: Any) -> Any:
    """Call a function, in a thread where its input is large: the loop serves other clients meanwhile."""
    try:
        return await asyncio.to_thread(function, *args) if size > _LARGE else function(*args)
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply.", "Send a flat object.") from None


def _decode(body: bytes, scope: Scope) -> dict[str, Any]:
    if not any(b"json" in kind for kind in content_types(scope)):  # what a page of another origin may send unasked
        raise Refusal(400, "the body is not called JSON.", "Send the header Content-Type: application/json.")
    try:
        data = json.loads(body)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {str(error)[:200]}.", "Send one JSON object.") from None
    if not isinstance(data, dict):
        raise Refusal(400, "the body is not an object.", "Send one JSON object.")
    return data


class _Keys:
    """Refuses whoever names no key, before anything of the request is read."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and scope["path"].startswith(_GUARDED)
        if guarded and self._keys and not names_key(scope, self._keys):
            hint = "Send the header Authorization: Bearer KEY."
            return await refuse(send, Refusal(401, "this server asks for an API key.", hint))
        await self._app(scope, receive, send)


async def _http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    detail, headers = str(getattr(error, "detail", "")), dict(getattr(error, "headers", None) or {})
    path = shown(request.url.path)
    if status == 405:
        taken = headers["Allow"] = headers.get("Allow", "GET, HEAD")
        detail = f"{path} does not take {shown(request.method)}. Send {' or '.join(sorted(taken.split(', ')))}."
    elif detail == "Not Found":
        detail = f"there is nothing at {path}."
    return JSONResponse(error_object(status, detail), status, headers)


async def _broken(_: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return JSONResponse(error_object(500, f"the server failed: {type(error).__name__}."), 500)
