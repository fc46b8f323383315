"""Fixtures of the chains' tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """LlamaIndex takes the thread's event loop, makes one where there is none, and leaves it to the garbage collector,
    whose warning would be an error of whichever test runs then."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    asyncio.set_event_loop(None)
    made.close()
