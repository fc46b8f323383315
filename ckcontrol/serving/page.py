"""The page at ``/`` and what a server tells it of itself: its files, the headers that keep it to itself, and ``ck``.

Both servers show the same page; it asks ``/v1/models`` what can be asked for. Knows files and methods; knows no model.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from starlette.staticfiles import StaticFiles

from ..control import Control
from ..errors import CKError
from ..policies import build
from ..policies import names as method_names
from .asgi import ASGIApp, Receive, Scope, Send
from .limits import Limits
from .retrieve import Retriever

__all__ = ["SafeHeaders", "is_page", "page", "told_model"]

_PAGE = Path(__file__).with_name("playground")
_SAFE = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


def page() -> ASGIApp:
    """Return the app that serves the page's files."""
    return StaticFiles(directory=_PAGE, html=True)


def is_page(path: str) -> bool:
    """Whether a path names a file of the page, ``/`` included."""
    return path in _paths()


@cache
def _paths() -> frozenset[str]:
    return frozenset({"/", *(f"/{file.name}" for file in _PAGE.iterdir())})


def told_model(
    limits: Limits, retriever: Retriever, tokens: int | None, *, dial: bool = False, sources: int | None = None
) -> dict[str, Any]:
    """Return what ``/v1/models`` tells of steering, as ``data[0].ck``.

    Args:
        limits: Bounds of requests.
        retriever: Searches for passages, or refuses to.
        tokens: Longest answer.
        dial: The model has a dial of adapters, for the methods that act in the weights.
        sources: How many may stand in ``ck.sources``; None: the server does not take it.
    """
    methods = [name for name in method_names() if dial or not Control(name).policy().in_weights]
    return {
        "methods": methods,
        "dials": [method for method in methods if _has_dial(method)],
        "retrieve": retriever.told(),
        "max_tokens": tokens,
        "passages": limits.passages,
        "sources": sources,
    }


@cache
def _has_dial(method: str) -> bool:
    """Whether a method takes alpha."""
    try:
        build(method, 0.5)
    except CKError:
        return False
    return True


class SafeHeaders:
    """Adds to every reply what keeps a browser from running or loading anything that is not the page's own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""

        async def safe(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_SAFE.items()]}
            await send(message)

        await self._app(scope, receive, safe)
