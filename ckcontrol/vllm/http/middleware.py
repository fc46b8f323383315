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
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import CKError
from ...serving.asgi import ASGIApp, Gone, Message, Receive, Route, Scope, Send, Shared, content_types
from ...serving.guard import read_body
from ...serving.json_values import DIRECTION, HEADS, shown, without_ours
from ...serving.limits import Limits
from ...serving.page import SafeHeaders, is_page, page, told_model
from ...serving.read_request import PATHS, Steered, read_request
from ...serving.read_texts import BUILT
from ...serving.replies import Refusal
from ...serving.retrieve import Retriever, opened
from ...serving.steered_reply import SteeredReply, refuse
from ..contract import fallback
from ..contract.changes import DIRECTION_FILE
from ..contract.lora_dial import VARIABLE as WEIGHTS
from ..contract.lora_dial import LoraDial
from ..contract.pair_params import new_pair
from .drafting import Drafting
from .exchange import Exchange
from .guard import FormGuard, has_key, is_form, replay, suspicious
from .inner_bodies import Bodies, make_bodies
from .server import Server

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...heads.directions.direction import Direction

__all__ = ["EMBEDDER", "INDEX", "CKMiddleware"]

INDEX = "CKCONTROL_VLLM_INDEX"  # the folder of the index for ck.retrieve
EMBEDDER = "CKCONTROL_VLLM_EMBEDDER"  # where its embedder is now

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
        weights: Folder of the dial whose adapters the server has as models; None reads the environment
            (`lora_dial.VARIABLE`).
        direction: What ``ck.direction`` leads along; None reads the file that the environment names
            (`changes.DIRECTION_FILE`), if it does.

    Raises:
        ServingError: The environment holds no valid bounds, or `on_lost` is unknown.
        WeightsError: `weights` is no dial.
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
        weights: str | None = None,
        direction: Direction | None = None,
    ) -> None:
        self.app = app
        self.limits = limits or Limits.from_env()
        self._tokenizer = tokenizer
        self._server: Server | None = None
        self._direction = direction or _direction_from_env()
        self._retriever = Retriever(_index_from_env() if index is None else index)
        folder = os.environ.get(WEIGHTS, "").strip() if weights is None else weights
        self._dial = LoraDial(folder) if folder else None
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
            request = await _off(size, partial(read_request, dial=self._dial is not None), path, data, self.limits)
            single = request.control.policy().in_weights
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
            adapter = self._adapter(server, request, data) if single else None
            push = await server.push(request.direction)
            if request.heads:
                await server.check_heads(request.heads)
            tokenizer = await _tokenizer(server, request)
            if request.texts.source == "prompt" and not single:
                await server.check_lengths(request.body)
                await server.check_lengths({**request.body, "prompt": request.texts.parametric})
            pairs = ["" if single else new_pair() for _ in names]
            bodies = await asyncio.to_thread(make_bodies, request, pairs[0], tokenizer, names[0], server.window, push)
            if adapter is not None:
                bodies = replace(bodies, contextual=bodies.contextual | {"model": adapter})
            unfit = "" if single else server.unfit(bodies)
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
                data, dial = json.loads(whole), self._dial
                data["data"] = [model for model in data["data"] if dial is None or model["id"] not in dial.served]
                for model in data["data"]:
                    most = model.get("max_model_len")
                    model["ck"] = told_model(self.limits, self._retriever, most, dial=dial is not None)
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

    def _adapter(self, server: Server, request: Steered, data: dict[str, Any]) -> str | None:
        """Return the model that a request in the weights asks of vLLM; None: the one that the client names.

        Raises:
            Refusal: It wants what an ordinary request to vLLM cannot have, or another model.
        """
        seed = data.get("seed") if request.options.do_sample else None
        for name, asked in (("ck.trace", request.trace or None), ("seed", seed)):
            if asked is not None:
                what = f"{name}={shown(asked)}: method 'weights' is an ordinary request to vLLM, without it."
                raise Refusal(400, what, "Leave it out, or use ckcontrol serve.")
        adapter = None if self._dial is None else self._dial.model(request.control)
        named = request.body.get("model")
        if server.names and named not in (None, "", *server.names):  # at 0.5 too: it would be an adapter's answer
            what = f"model={shown(named)}: the adapters of method 'weights' are those of {server.names[0]!r}."
            raise Refusal(404, what, "Name that one.")
        return adapter

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
        """Run the pair, or one per draft, and reply; `pairs` are their names by draft, `lost` why it cannot run.

        A request in the weights has no pair, and neither has one that is lost: each is answered alone.
        """
        left = self.limits.seconds
        single = request.control.policy().in_weights
        called = request.body.get("model") or next(iter(server.names), None)  # not by the name of an adapter
        reply = partial(
            SteeredReply,
            server,
            request,
            next(iter(pairs.values())),
            send=send,
            translated=route.path != request.path,
            thinking=bodies.thinking,
            passages=bodies.passages,
            model=called if single else None,
        )
        if not (lost or single):
            if len(pairs) == 1:
                run = Exchange(route, bodies.contextual, bodies.parametric, left)
            else:
                run = Drafting(route, request, bodies, pairs, left, partial(server.trace, needed=True))
            async with run:
                lost = await reply(run, falls_back=self._falls_back).run()
            left = run.left
        if lost or single:
            alone = Exchange(route, fallback.alone(bodies.contextual, request.options), None, left)
            async with alone:
                await reply(alone, lost=lost).run()


def _index_from_env() -> Any:
    """Open the index that `INDEX` names, and load its embedder; None where it is not set."""
    folder = os.environ.get(INDEX, "").strip()
    return opened(folder, os.environ.get(EMBEDDER)) if folder else None


def _direction_from_env() -> Direction | None:
    """Read the direction that `DIRECTION_FILE` names; None where it is not set."""
    file = os.environ.get(DIRECTION_FILE, "").strip()
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
        kinds = content_types(scope)
        if not kinds or any(b"json" in kind for kind in kinds):
            raise Refusal(400, f"the body is not JSON: {str(error)[:200]}.", "Send one JSON object.") from None
        return None


def _clean(data: Any) -> bytes:
    return json.dumps(without_ours(data), ensure_ascii=True).encode()


def _sized(scope: Scope | Message, size: int) -> list[tuple[bytes, bytes]]:
    dropped = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    return [*headers, (b"content-length", str(size).encode())]
