"""docs/chains.md: its programs run, on the tiny model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "chains.md"


def test_its_programs_run_and_its_pattern_finds(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("langchain_core", "llama_index.core", "haystack"):
        pytest.importorskip(package)
    monkeypatch.setattr("ckcontrol.models.load.load", lambda name, *_: llama)
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for number, program in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
        exec(compile(program, f"docs/chains.md, program {number + 1}", "exec"), names)
    assert names["answer"].response_metadata["ck"]["passages"] == 1
    pattern = re.search(r'`context=r"(.*)"`', text)
    assert pattern is not None and re.search(pattern[1], "FACTS[One.]")["passages"] == "One."  # type: ignore[index]
