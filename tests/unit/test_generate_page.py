"""docs/generate.md: its programs run, on the tiny model, and its prose names what exists."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckcontrol as ck
import ckcontrol.retrieval
from ckcontrol.answer import Answer

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "generate.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


class Letters:
    """An embedder without a model."""

    dim, name = 26, "letters"

    def __init__(self, name: str) -> None:
        assert name == "demo"

    def encode(self, texts: Any, *, query: bool = False, progress: bool = False) -> Any:
        return np.array([[1e-3 + text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)


@pytest.fixture(scope="module")
def ran(llama) -> dict[str, Any]:
    """The names that the programs leave, run one after the other as a reader would; the last needs the extra."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ck, "load", lambda name: llama, raising=False)
        patch.setattr(ckcontrol.retrieval, "Embedder", Letters)
        for number, program in enumerate(PROGRAMS):
            if number == len(PROGRAMS) - 1:
                pytest.importorskip("xgrammar")
            exec(compile(program, f"docs/generate.md, program {number + 1}", "exec"), names)
    return names


def test_the_programs_run_and_the_last_says_json(ran):
    assert len(PROGRAMS) == 4 and len(ran["answers"]) == 2
    assert ran["by_all_users"](ran["messages"]).endswith("And how long is it?")
    assert isinstance(ran["answer"], Answer) and set(json.loads(ran["answer"].text)) == {"river", "km"}


def test_what_the_page_names_exists():
    taken = set(inspect.signature(ck.generate).parameters) | set(inspect.signature(ck.Rag.ask).parameters)
    for name in re.findall(r"`(\w+)=(?:\[\.\.\.\])?`", TEXT):
        assert name in taken, name
    for name in re.findall(r"`stream\.(\w+)`", TEXT):
        assert name in inspect.getsource(ck.astream) + inspect.getsource(type(ck.astream(None, None, "x")))
