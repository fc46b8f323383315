"""benchmarks/gpu.py: the page holds every figure of every card, and a package made by links is whole."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import gpu

ABOUT = {"date": "2026-11-27", "torch": "2.13", "transformers": "5.23", "shape": "8b"}


def test_every_figure_of_every_card_stands_on_the_page(tmp_path: Path) -> None:
    assert "No card has been measured" in gpu.page(tmp_path)
    steps = {**ABOUT, "batch 1, context 512": {"ms": {"ours": 10.25, "plain": 22.5}, "ours over the floor": 1.91}}
    failed = {**ABOUT, "failed": "RuntimeError: a | b"}
    for name, card in (("h100", {"card": "H100", "steps": steps}), ("l4", {"card": "L4", "vllm": failed})):
        (tmp_path / f"{name}.json").write_text(json.dumps(card), encoding="utf-8")
    page = gpu.page(tmp_path)
    for told in (
        "## H100",
        "## L4",
        "ours: 10.25",
        "plain: 22.5",
        "ours over the floor: 1.91",
        "a \\| b",
        "torch 2.13",
    ):
        assert told in page


def test_the_committed_page_is_that_of_the_committed_figures() -> None:
    assert gpu.PAGE.read_text(encoding="utf-8") == gpu.page(gpu.RESULTS)


def test_links_make_the_package_that_an_installation_would_hold(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    for name in ("ckcontrol/cli", "retrieval", "eval"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ckcontrol" / "__init__.py").touch()
    for _ in range(2):
        package = gpu.linked_package() / "ckcontrol"
        assert {path.name for path in package.iterdir()} == {"__init__.py", "cli", "retrieval", "eval"}
        assert all(path.exists() for path in package.iterdir())
