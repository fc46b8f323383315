"""A server of ours in a thread, on a free port, for the real client."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from openai import OpenAI

from ckcontrol.decoding.running import RunningBatch
from ckcontrol.serving.app import create_app
from ckcontrol.serving.limits import Limits

TURNS = (
    "<|bos|>{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot|>\n{% endfor %}"
    "{% if mood is defined %}{{ mood }} {% endif %}assistant: "
)


class Served:
    """A running server.

    Attributes:
        url: Its root.
        client: An OpenAI client of it, which tries nothing twice.
    """

    def __init__(self, port: int, key: str = "none") -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def post(self, body: Any, path: str = "chat/completions", **more: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/{path}", json=body, timeout=120, **more)

    def figures(self) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {self.client.api_key}"}).text
        return {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}

    def until(self, name: str, value: float) -> None:
        """Wait until a figure has a value."""
        end = time.monotonic() + 120
        while self.figures()[f"ckcontrol_{name}"] != value:
            assert time.monotonic() < end, f"{name} never became {value}"
            time.sleep(0.02)


def alike(told: Any, wanted: Any) -> bool:
    """Whether two JSON values are the same, numbers to five digits: torch does not always add up in one order."""
    if isinstance(wanted, dict):
        return (
            isinstance(told, dict) and list(told) == list(wanted) and alike(list(told.values()), list(wanted.values()))
        )
    if isinstance(wanted, (list, tuple)):
        return len(told) == len(wanted) and all(map(alike, told, wanted))
    same = told == (pytest.approx(wanted, rel=1e-4, abs=1e-5) if isinstance(wanted, float) else wanted)
    return bool(same)


class Held:
    """Steps of every batch of this process, one for each that is let through; then all of them, once it is `open`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open = False
        self._steps = threading.Semaphore(0)
        step = RunningBatch.step

        def held(batch: RunningBatch) -> None:
            end = time.monotonic() + 120
            while not (self.open or self._steps.acquire(timeout=0.02)):
                assert time.monotonic() < end, "no step was let through"
            step(batch)

        patch.setattr(RunningBatch, "step", held)

    def let(self, steps: int) -> None:
        """Let this many steps through."""
        self._steps.release(steps)


@contextmanager
def serve(
    model: Any, tokenizer: Any, key: str = "", limits: dict[str, Any] | None = None, name: str = "tiny", **more: Any
) -> Iterator[Served]:
    keys = [key] if key else []
    app = create_app(model, tokenizer, name=name, keys=keys, limits=Limits(**(limits or {})), **more)
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", lifespan="on", ws="none", timeout_graceful_shutdown=20)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        served = Served(server.servers[0].sockets[0].getsockname()[1], key or "none")
        with served.client:
            yield served
    finally:
        server.should_exit = True
        thread.join(60)
