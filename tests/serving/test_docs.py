"""docs/serve.md and what the server tells of itself are the code's."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from ckcontrol.cli.main import app
from ckcontrol.retrieval.store.snapshot import MODES
from ckcontrol.serving.retrieve import Retriever

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


def test_options_are_the_commands() -> None:
    parameters = {p.opts[0]: p for p in get_command(app).commands["serve"].params}  # type: ignore[attr-defined]
    lines = re.findall(r"^ +ckcontrol serve (.*)$", TEXT, re.MULTILINE)
    named = {option for line in lines for option in re.findall(r"(?<!\S)--[a-z-]+", line)}
    assert lines and (named | set(re.findall(r"`(--[a-z-]+)", TEXT))) <= set(parameters)
    assert f"`--max-new-tokens` ({parameters['--max-new-tokens'].default})" in TEXT


def test_modes_are_those_of_an_index() -> None:
    assert Retriever(object()).told() == {"modes": list(MODES)} and Retriever(None).told() is None
    assert all(f"`{mode}`" in TEXT for mode in MODES)
