"""docs/retrieval.md: its commands have the options it names, its numbers are the code's."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from typer.main import get_command

import ckcontrol.retrieval
from ckcontrol.cli.main import app
from ckcontrol.retrieval.store.snapshot import MODES
from ckcontrol.retrieval.store.vectors import KINDS, MEMORY, SCAN
from ckcontrol.retrieval.where import OPERATORS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "retrieval.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ +ckcontrol ((?:index )?\w+) (.*)$", TEXT, re.MULTILINE)


def options(command: str) -> set[str]:
    found = get_command(app)
    for name in command.split():
        found = found.commands[name]  # type: ignore[attr-defined]
    return {option for parameter in found.params for option in parameter.opts}


@pytest.mark.parametrize(("command", "rest"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_commands_have_their_options(command: str, rest: str) -> None:
    assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)) <= options(command)


def test_every_option_named_in_passing_exists() -> None:
    known = set.union(*(options(command) for command, _ in COMMANDS))
    assert set(re.findall(r"`(--[a-z-]+)", TEXT)) <= known


def test_numbers_names_and_formats_are_the_codes() -> None:
    assert f"up to {SCAN >> 20} MiB of vectors" in TEXT and f"beyond {MEMORY >> 30} GiB" in TEXT
    for word in (*KINDS, *MODES):
        assert f"`{word}`" in TEXT
    assert set(re.findall(r"\$\w+", TEXT)) == set(OPERATORS)
    for suffix in importlib.import_module("ckcontrol.retrieval.reading.read").READERS:
        assert f"`{suffix}`" in TEXT
    for name in ("Embedder", "Index", "MilvusIndex", "from_retriever", "read", "Reranker"):
        assert name in TEXT and hasattr(ckcontrol.retrieval, name)
