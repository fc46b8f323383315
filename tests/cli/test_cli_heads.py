"""`ckcontrol heads find`: what it prints and writes, on the transformer whose heads are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckcontrol.cli import options
from ckcontrol.cli.main import main
from ckcontrol.heads.finding.scores import HeadScores

from ..heads.known import CONTEXT, MEMORY, known_model


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The known model behind any name, and the path of its facts."""
    made = known_model()
    monkeypatch.setattr(options, "load", lambda *arguments: (made.model, made.tokenizer))
    keys = ("relation", "subject", "answer", "cloze", "context_template")
    lines = [json.dumps({key: getattr(fact, key) for key in keys}) for fact in made.facts]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "facts.jsonl"


def test_find_prints_the_best_heads_and_writes_the_scores(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = known.parent / "heads.json"
    assert main(["heads", "find", "--facts", str(known), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "12 facts scored of 12" in printed and "Heads that promote memory" in printed and f"Wrote {out}" in printed
    scores = HeadScores.load(out)
    assert scores.top("memory", 1) == [MEMORY] and scores.top("context", 1) == [CONTEXT]


def test_find_as_json(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = known.parent / "heads.json"
    arguments = ["heads", "find", "--facts", str(known), "--out", str(out), "--n", "6", "--relation", "tree", "--json"]
    assert main(arguments) == 0
    data = json.loads(capsys.readouterr().out)
    best = data["memory"]["heads"][0]
    assert (best["layer"], best["head"]) == MEMORY and best["agreement"] == 1 and best["mean"] > best["error"] > 0
    assert data["facts"] == 6 and data["settings"]["n"] == 6
    assert main(arguments[:-1]) == 0, "a finished run is told again"
    read = data["settings"]["facts_read"]
    assert f"6 facts scored of {read} ({read - 6} left out by --n)" in capsys.readouterr().out
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == data


def test_an_interrupted_find_says_how_to_go_on(
    known: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ckcontrol.heads.finding.find as module

    score, calls = module.score_batch, iter([True, False])

    def once(*arguments: Any) -> Any:
        if next(calls):
            return score(*arguments)
        raise KeyboardInterrupt

    out = known.parent / "heads.json"
    arguments = ["heads", "find", "--facts", str(known), "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(module, "score_batch", once)
        assert main(arguments) == 130
    assert "heads.json.partial; the same command goes on there" in capsys.readouterr().err
    assert not out.exists() and main(arguments) == 0 and out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--relation", "bush"], "no relation 'bush'"),
        (["--format", "cloze"], "no prompt format 'cloze'"),
        (["--n", "0"], "n=0"),
        (["--out", "none/heads.json"], "is not a folder"),
    ],
)
def test_bad_input_is_one_line(
    known: Path, capsys: pytest.CaptureFixture[str], change: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(known.parent)
    assert main(["heads", "find", "--facts", str(known), *change]) == 2
    err = capsys.readouterr().err.strip()
    assert words in err and "Traceback" not in err
