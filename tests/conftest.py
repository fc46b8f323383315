"""Shared fixtures: no network, quiet logs, tiny models built once."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from functools import cache

import pytest
import torch

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
