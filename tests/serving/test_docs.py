"""docs/serve.md and what the server tells of itself are the code's."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ckcontrol.cli.main import app
from ckcontrol.models.tiny import tiny_model
from ckcontrol.retrieval import Index, Passage
from ckcontrol.retrieval.store.snapshot import MODES
from ckcontrol.serving.retrieve import Retriever

from ..retrieval.hashes import Hashes
from .served import serve

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "serve.md").read_text(encoding="utf-8")


def test_options_are_the_commands() -> None:
    parameters = {p.opts[0]: p for p in get_command(app).commands["serve"].params}  # type: ignore[attr-defined]
    lines = re.findall(r"^ +ckcontrol serve (.*)$", TEXT, re.MULTILINE)
    named = {option for line in lines for option in re.findall(r"(?<!\S)--[a-z-]+", line)}
    assert lines and (named | set(re.findall(r"`(--[a-z-]+)", TEXT))) <= set(parameters)
    assert f"`--max-new-tokens` ({parameters['--max-new-tokens'].default})" in TEXT


@pytest.mark.parametrize("page", ["serve", "vllm"])
def test_the_clients_code_runs_as_it_stands(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against `serve`, which reads the same requests as `serve-vllm`; only the address is another."""
    text = DOCS.joinpath(f"{page}.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "OpenAI(" in block]
    model, tokenizer = tiny_model("llama")
    passages = [Passage("0", "The Tellin runs through Orvendale.", "0.txt", {"year": 2001})]
    more: dict[str, Any] = {"name": "MODEL", "tokens": 8}
    with Index.build(passages, Hashes()) as index, serve(model, tokenizer, index=index, **more) as server:
        file = tmp_path / "client.py"
        file.write_text(code.replace("http://127.0.0.1:8000", server.url), encoding="utf-8")
        runpy.run_path(str(file))
    printed = capsys.readouterr().out
    assert ("0.txt" if page == "serve" else "'source': 'passages'") in printed


def test_modes_are_those_of_an_index() -> None:
    assert Retriever(object()).told() == {"modes": list(MODES)} and Retriever(None).told() is None
    assert all(f"`{mode}`" in TEXT for mode in MODES)
