"""`ckcontrol steer find`, and `run --direction`: what they print, and what they refuse before a model is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ckcontrol as ck
from ckcontrol.cli import options
from ckcontrol.cli.main import main
from ckcontrol.cli.steer import _print
from ckcontrol.heads import Direction, Fingerprint, added
from ckcontrol.heads.choosing.panel import Result
from ckcontrol.heads.directions.find import Found
from ckcontrol.models.tiny import tiny_model

ASK = ["run", "-q", "Who?", "--passage-text", "It was Ann.", "--max-new-tokens", "8"]


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, Any, Path]:
    model, tokenizer = tiny_model("llama")
    monkeypatch.setattr(options, "load", lambda *arguments: (model, tokenizer))
    torch.manual_seed(0)
    vector = torch.randn(model.config.hidden_size)
    Direction(Fingerprint.of(model), 1, vector, context=30.0, memory=0.0).save(tmp_path / "d.safetensors")
    return model, tokenizer, tmp_path / "d.safetensors"


@pytest.mark.parametrize("more", [[], ["--method", "cad", "--alpha", "0.3"]], ids=["alone", "beside cad"])
def test_run_adds_the_direction(llama: tuple[Any, Any, Path], more: list[str], capsys: Any) -> None:
    model, tokenizer, path = llama
    control = ck.Control("cad", 0.3) if more else ck.Control()
    made = {}
    for alpha in (0.0, 0.5):
        assert main([*ASK, "--json", "--direction", str(path), "--direction-alpha", str(alpha), *more]) == 0
        found = json.loads(capsys.readouterr().out)
        with added(model, Direction.load(path), alpha):
            wanted = ck.generate(model, tokenizer, "Who?", ["It was Ann."], control=control, max_new_tokens=8)
        assert [token["id"] for token in found["tokens"]] == list(wanted.token_ids)
        made[alpha] = wanted.token_ids
    assert made[0.0] != made[0.5]


def test_what_run_refuses_before_a_model_is_loaded(llama: tuple[Any, Any, Path], monkeypatch: Any, capsys: Any) -> None:
    _, _, path = llama
    monkeypatch.setattr(options, "load", lambda *arguments: pytest.fail("a model was loaded"))
    (path.parent / "text").write_text("{}")
    for arguments, said in (
        (["--direction", str(path)], "--direction and --direction-alpha go together"),
        (["--direction-alpha", "0.2"], "--direction and --direction-alpha go together"),
        (["--direction", str(path), "--direction-alpha", "1.5"], "alpha=1.5 is out of range"),
        (["--direction", str(path), "--direction-alpha", "0.8"], "does not lead toward the memory"),
        (["--direction", str(path.parent / "none"), "--direction-alpha", "0.2"], "cannot be read"),
        (["--direction", str(path.parent / "text"), "--direction-alpha", "0.2"], "cannot be read"),
        (["--direction", str(path.parent), "--direction-alpha", "0.2"], "cannot be read"),
    ):
        assert main([*ASK, *arguments]) != 0
        assert said in " ".join(capsys.readouterr().err.split())


def test_a_direction_of_another_model_is_refused_with_the_field(
    llama: tuple[Any, Any, Path], monkeypatch: Any, capsys: Any
) -> None:
    _, tokenizer, path = llama
    monkeypatch.setattr(options, "load", lambda *arguments: (tiny_model("llama", seed=1)[0], tokenizer))
    assert main([*ASK, "--direction", str(path), "--direction-alpha", "0.2"]) != 0
    assert "the direction is for another model: weights is" in " ".join(capsys.readouterr().err.split())


def test_find_refuses_facts_without_questions_and_writes_nothing(llama: tuple[Any, Any, Path], capsys: Any) -> None:
    folder = llama[2].parent
    rows = [{"relation": "r", "subject": s, "answer": s.lower(), "cloze": f"of {s} is"} for s in ("Ann", "Bob", "Cid")]
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "new.safetensors"
    assert main(["steer", "find", "--facts", str(folder / "facts.jsonl"), "--out", str(out)]) != 0
    assert "of 3 facts, 0 are used" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("contrast", "told"),
    [("followed", "7 conflicts that followed memory against 9"), ("passage", "no passage against a false one")],
)
def test_the_table_has_every_rate_with_its_interval(
    contrast: str, told: str, llama: tuple[Any, Any, Path], capsys: Any
) -> None:
    direction = replace(Direction.load(llama[2]), note={"contrast": contrast})
    cells = {name: ("memory",) * 3 + ("context",) for name in ("conflict asked", "gold", "irrelevant", "closed book")}
    found = Found(direction, {"memory": 7, "context": 9}, (), {0.0: Result(cells, 12.34), 0.5: Result(cells, 10.0)})
    _print(found)
    said = " ".join(capsys.readouterr().out.split())
    assert "75" in said and "30–95" in said and "12.3" in said
    assert told in said and "Toward the memory no strength helped" in said
