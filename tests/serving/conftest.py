"""A tiny model whose template tells every turn, and `ckcontrol serve` over it: once for each file of tests."""

from __future__ import annotations

from typing import Any

import pytest

from ckcontrol.models.tiny import tiny_model

from .served import TURNS, serve


@pytest.fixture(scope="module")
def model() -> Any:
    model, tokenizer = tiny_model("llama")
    tokenizer.chat_template = TURNS
    return model.float(), tokenizer


@pytest.fixture(scope="module")
def served(model: Any) -> Any:
    with serve(*model) as server:
        yield server
