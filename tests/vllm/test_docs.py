"""docs/vllm.md: its options, fields, bounds and versions are the code's."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from typer.main import get_command

from ckcontrol.cli.main import app
from ckcontrol.serving import read_request as requests
from ckcontrol.serving.limits import Limits
from ckcontrol.vllm.engine import compat

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "vllm.md").read_text(encoding="utf-8")


def test_commands_have_their_options() -> None:
    known = {option for parameter in get_command(app).commands["serve-vllm"].params for option in parameter.opts}  # type: ignore[attr-defined]
    lines = re.findall(r"^ +ckcontrol serve-vllm (.*)$", TEXT, re.MULTILINE)
    assert lines
    for line in lines:
        assert set(re.findall(r"(?<!\S)--[a-z-]+", line)) <= known


def test_bounds_are_the_codes() -> None:
    table = dict(re.findall(r"^\| `([a-z_]+)` \| (\d+) \|$", TEXT, re.MULTILINE))
    assert table == {field.name: f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
                     for field in fields(Limits)}  # fmt: skip


def test_fields_and_versions_are_the_codes() -> None:
    for name in (*requests.SOURCES, "template", "trace", "heads", "method", "alpha"):
        assert f"`{name}`" in TEXT
    low, high = (".".join(map(str, end)) for end in compat.WINDOW)
    assert f"vLLM {low} to {high}" in TEXT and compat.VARIABLE in TEXT
