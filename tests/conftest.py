"""Shared fixtures: no network, quiet logs, tiny models built once."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from .browser import WIDE, Page

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a run in the background: what it starts would be deaf too
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tiny models: more threads only wait for each other


@cache
def _tiny(family: str):
    from ckcontrol.models.tiny import tiny_model

    return tiny_model(family)


@pytest.fixture(scope="session")
def tiny():
    """A function family -> (model, tokenizer), built once per run."""
    return _tiny


@pytest.fixture(scope="session")
def llama(tiny):
    return tiny("llama")


@pytest.fixture
def byte():
    """The tiny tokenizer, a fresh one: some tests change it."""
    from ckcontrol.models.tiny import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture(scope="session")
def warm():
    """Commands that run Python programs in forks of an interpreter which has imported torch: see warm.py."""
    from .warm import Warm

    started = Warm()
    yield started
    started.close()


@pytest.fixture(scope="session")
def real():
    """The demo model, fetched on first use; skips only where it cannot be obtained."""
    from ckcontrol.errors import ModelUnavailable
    from ckcontrol.models.load import load

    try:
        return load("demo", device="cpu")
    except ModelUnavailable as error:
        pytest.skip(f"demo model unavailable: {error}")


@pytest.fixture(scope="module")  # while it lives, its event loop runs in this thread
def chromium() -> Iterator[Any]:
    """Headless Chromium; skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra dev, is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Page]]:
    """A function that opens the playground of a server, of anything with its `url`."""
    contexts = []

    def new(server: Any, size: dict[str, int] = WIDE, scheme: str = "light") -> Page:
        context = chromium.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        return Page(context.new_page(), server.url + "/").open()

    yield new
    for context in contexts:
        context.close()
