"""`ckcontrol heads show | tune | export` and `run --heads`, on the transformer whose heads are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckcontrol import Control, generate
from ckcontrol.cli import options
from ckcontrol.cli.main import main
from ckcontrol.heads import HeadMask, pruned
from ckcontrol.heads.finding.find import find
from ckcontrol.heads.finding.scores import HeadScores
from ckcontrol.models.tiny import tiny_model

from ..heads.known import CONTEXT, MEMORY, Known, known_model


@pytest.fixture(scope="module")
def known() -> Known:
    return known_model()


@pytest.fixture(scope="module")
def scored(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of twelve facts, four of each split."""
    folder = tmp_path_factory.mktemp("scores")
    made = find(known.model, known.tokenizer, known.facts, folder / "found.json")
    ordered = sorted(made.records, key=lambda r: r.subject)
    split = {r.id: ("find", "find", "dev", "dev", "test", "test")[i % 6] for i, r in enumerate(ordered)}
    records = [replace(r, split=split[r.id]) for r in made.records]
    path = folder / "heads.json"
    path.write_text(HeadScores(made.model, made.settings, records, made.examples).to_json(), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def loading(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "load", lambda *arguments: (known.model, known.tokenizer))


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Run something that must fail with code 2 and one line."""
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    told = err.strip()  # a progress bar that never began leaves an empty line
    assert out == "" and told.startswith("ckcontrol: ") and "\n" not in told
    return told


# --- show ---


def test_show_prints_and_draws(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    png, html = tmp_path / "map.png", tmp_path / "map.html"
    assert main(["heads", "show", str(scored), "--png", str(png), "--html", str(html)]) == 0
    printed = capsys.readouterr().out
    assert "gpt2: 2 layers of 3 heads, 12 facts" in printed and "Heads that promote memory" in printed
    assert f"{MEMORY[0]}.{MEMORY[1]}" in printed and f"Wrote {png}" in printed
    assert png.read_bytes().startswith(b"\x89PNG") and html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_show_as_json(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", "show", str(scored), "--top", "1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    (best,) = data["context"]["heads"]
    assert (best["layer"], best["head"]) == CONTEXT and data["facts"] == 12 and data["memory"]["relations"] == []


def test_show_refuses(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "was not scored. Did you mean" in refused(capsys, "heads", "show", scored, "--format", "substitutio")
    assert "is not a folder" in refused(capsys, "heads", "show", scored, "--html", tmp_path / "no" / "map.html")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    assert "not a file of head scores" in refused(capsys, "heads", "show", tmp_path / "other.json")
    assert "cannot be read" in refused(capsys, "heads", "show", tmp_path / "missing.json")


# --- tune ---


def test_tune_finds_the_context_head(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mask.json"
    methods = [part for name in ("top-k", "greedy", "consistent") for part in ("--method", name)]
    arguments = ["--direction", "memory", "--out", str(out), "--draws", "2", "--new-tokens", "2"]
    assert main(["heads", "tune", str(scored), *arguments, *methods]) == 0
    printed = capsys.readouterr().out
    assert "Chosen: context:1 (layer.head 1.1)" in printed and "random 2" in printed
    assert "4 development facts: the best of each method" in printed and "4 test facts ·" in printed
    assert HeadMask.load(out).heads == (CONTEXT,)


def test_tune_as_json_reports_every_trial_and_every_test_outcome(
    scored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--direction", "memory", "--draws", "1", "--new-tokens", "2", "--budget", "4", "--json"]
    assert main(["heads", "tune", str(scored), *arguments]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["winner"] == "top-k" and data["chosen"] == "context:1" and len(data["controls"]) == 1
    names = [row["name"] for row in data["selections"]["top-k"]["candidates"]]
    assert names[0] == "none" and len(names) <= 5
    assert set(data["test"]) == {"none", "top-k"}
    assert data["test"]["top-k"]["outcomes"]["conflict substitution"] == "mmmm"
    assert HeadMask.from_dict(data["mask"]).heads == (CONTEXT,)


def test_tune_says_when_nothing_helps(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pruning the memory head follows every context, and knows nothing closed book: the unpruned model wins."""
    out = tmp_path / "mask.json"
    arguments = ["--direction", "context", "--out", str(out), "--new-tokens", "2"]
    assert main(["heads", "tune", str(scored), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "No mask beats the unpruned model in total" in printed and "facts: no mask is better than none" in printed
    assert not out.exists()


def test_tune_refuses(
    scored: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "Did you mean 'context'" in refused(capsys, "heads", "tune", scored, "--direction", "contxt")
    arguments = ("heads", "tune", scored, "--direction", "memory")
    assert "Did you mean 'greedy'" in refused(capsys, *arguments, "--method", "gredy")
    read = HeadScores.load(scored)
    one = HeadScores(read.model, read.settings, [replace(r, split="find") for r in read.records], read.examples)
    (tmp_path / "find.json").write_text(one.to_json(), encoding="utf-8")
    assert "no known record is in the split 'dev'" in refused(
        capsys, *arguments[:2], tmp_path / "find.json", *arguments[3:]
    )
    monkeypatch.setattr(options, "load", lambda *arguments: tiny_model("llama"))
    assert "family is 'gpt2' there and 'llama' here" in refused(capsys, *arguments)


# --- export ---


def test_export_writes_what_was_chosen(
    scored: Path, known: Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, lora = tmp_path / "out", tmp_path / "lora"
    choice = ["--prune", "context:1"]
    assert main(["heads", "export", str(scored), *choice, "--out", str(out), "--lora", str(lora)]) == 0
    printed = capsys.readouterr().out
    assert f"Wrote {lora}. " in printed
    against = f"Wrote {out}. Reloaded, against the model whose heads are masked as it runs: 8 of 8 greedy continuations"
    assert against in printed and printed.endswith(".\n")
    assert HeadMask.load(out / "head_mask.json").heads == HeadMask.load(lora / "head_mask.json").heads == (CONTEXT,)
    assert "exists" in refused(capsys, "heads", "export", scored, *choice, "--out", out)


def test_export_refuses(scored: Path, known: Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to write" in refused(capsys, "heads", "export", scored, "--prune", "memory:1")
    assert "--prune memory:7" in refused(capsys, "heads", "export", scored, "--out", tmp_path / "out")
    mask = tmp_path / "mask.json"
    HeadMask.of(known.model, [MEMORY]).save(mask)
    assert "is a mask already" in refused(
        capsys, "heads", "export", mask, "--prune", "memory:1", "--out", tmp_path / "out"
    )
    assert "cannot be read" in refused(capsys, "heads", "export", tmp_path / "none.json", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- run ---


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, Any, Path]:
    model, tokenizer = tiny_model("llama")
    monkeypatch.setattr(options, "load", lambda *arguments: (model, tokenizer))
    HeadMask.of(model, [(0, 1), (1, 3)]).save(tmp_path / "mask.json")
    return model, tokenizer, tmp_path / "mask.json"


ASK = ["run", "-q", "Who?", "--passage-text", "It was Ann.", "--max-new-tokens", "8", "--json"]


@pytest.mark.parametrize("stream", ["both", "contextual", "parametric"])
def test_run_prunes_and_steers_together(
    llama: tuple[Any, Any, Path], stream: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer, path = llama
    mask = HeadMask.load(path)
    arguments = ["--heads", str(path), "--prune-stream", stream, "--method", "cad", "--alpha", "0.3"]
    assert main([*ASK, *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    given = {"mask": mask} if stream == "both" else {stream: mask}
    with pruned(model, **given):
        answer = generate(model, tokenizer, "Who?", ["It was Ann."], control=Control("cad", 0.3), max_new_tokens=8)
    assert found == json.loads(answer.to_json())
    assert main([*ASK, "--method", "cad", "--alpha", "0.3"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] != found["tokens"], "and it is gone afterwards"


def test_run_takes_a_choice_from_scores(
    known: Known, scored: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    HeadMask.of(known.model, [CONTEXT]).save(tmp_path / "mask.json")
    question = [
        "run",
        "-q",
        "the tree of Bont is",
        "--passage-text",
        "the tree of Bont is elm .",
        "--max-new-tokens",
        "2",
    ]
    texts = []
    for arguments in (["--heads", str(scored), "--prune", "context:1"], ["--heads", str(tmp_path / "mask.json")], []):
        assert main([*question, "--json", *arguments]) == 0
        texts.append(json.loads(capsys.readouterr().out)["tokens"])
    assert texts[0] == texts[1] != texts[2]


def test_run_refuses_before_the_model_is_loaded(
    scored: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> Any:
        raise RuntimeError("loaded")

    monkeypatch.setattr(options, "load", never)
    ask = ["run", "-q", "Who?"]
    assert "--prune without --heads" in refused(capsys, *ask, "--prune", "memory:7")
    assert "is not a choice of heads" in refused(capsys, *ask, "--heads", scored, "--prune", "memory")
    assert "--prune memory:7" in refused(capsys, *ask, "--heads", scored)
    assert "Did you mean 'parametric'" in refused(capsys, *ask, "--heads", scored, "--prune-stream", "parametrc")
