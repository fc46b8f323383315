"""``ckcontrol ask``: retrieval and steering in one command, on the tiny model and a real embedder of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ckcontrol import Control, Rag
from ckcontrol.cli.main import app, main
from ckcontrol.retrieval import Index

QUESTION = "How often does the ferry cross the river?"
TINY = ["--model", "tiny", "--device", "cpu", "--max-new-tokens", "6"]


def ask(capsys: pytest.CaptureFixture[str], index: str, *args: str, code: int = 0) -> tuple[str, str]:
    assert main(["ask", index, QUESTION, *TINY, *args]) == code
    return capsys.readouterr()


def test_help() -> None:
    result = CliRunner().invoke(app, ["ask", "--help"])
    assert result.exit_code == 0
    for option in ("--alpha", "--method", "--where", "--explain", "--rerank", "--stream"):
        assert option in result.output


def test_ask_equals_the_library(index: str, llama: Any, capsys: Any) -> None:
    out, _ = ask(capsys, index, "--method", "cad", "--alpha", "0.2", "--k", "2", "--mode", "hybrid", "--json")
    with Index.open(index) as opened:
        rag = Rag(llama, opened, k=2, mode="hybrid", control=Control("cad", 0.2), max_new_tokens=6)
        assert json.loads(out) == json.loads(rag.ask(QUESTION).to_json())
    assert out.rstrip("\n").isprintable()


def test_ask_prints_the_answer_then_its_passages(index: str, capsys: Any) -> None:
    data = json.loads(ask(capsys, index, "--mode", "bm25", "--json")[0])
    out, _ = ask(capsys, index, "--mode", "bm25")
    answer, passages = out.split("\n\n[1] ")
    assert answer.strip() != "" and data["hits"][0]["source"] in passages
    assert "ferry crosses the river" in passages
    streamed, _ = ask(capsys, index, "--mode", "bm25", "--stream")
    assert streamed == out


def test_filters_reach_the_search(index: str, capsys: Any) -> None:
    data = json.loads(ask(capsys, index, "--where", "lang=de", "--json")[0])
    assert [hit["id"] for hit in data["hits"]] == ["row-b#0"]
    out, _ = ask(capsys, index, "--where", "lang=fr")
    assert "Nothing was found: answered closed book" in out


def test_passages_that_do_not_fit_are_cut_and_said(tmp_path: Path, embedder: str, capsys: Any) -> None:
    (tmp_path / "long.txt").write_text(" ".join(f"Word {n} of many words." for n in range(300)), encoding="utf-8")
    index = str(tmp_path / "i")
    assert main(["index", "build", str(tmp_path / "long.txt"), "--out", index, "--embedder", embedder]) == 0
    capsys.readouterr()
    data = json.loads(ask(capsys, index, "--k", "60", "--json")[0])
    assert data["notice"].startswith("Not everything fitted the prompt: ")
    assert 0 < sum(hit["prompted"] for hit in data["hits"]) < len(data["hits"])
    out, _ = ask(capsys, index, "--k", "60")
    assert f"! {data['notice']}" in " ".join(out.split())


def test_explain_writes_a_page_with_the_passages(index: str, tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "why.html"
    _, err = ask(capsys, index, "--alpha", "1", "--mode", "bm25", "--explain", str(page), "--json")
    assert err == f"Wrote {page}\n"
    html = page.read_text(encoding="utf-8")
    assert "ferry.md#0" in html and "every twenty minutes" in html and "Token by token" in html


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--alpha", "3"], 2, "alpha=3.0"),
        (["--method", "cda"], 2, "Did you mean 'cad'?"),
        (["--max-new-tokens", "0"], 2, "--max-new-tokens 0 "),
        (["--where", "year"], 2, "--where 'year'"),
        (["--where", "tenant=acme\0evil"], 2, "has NUL or broken UTF-8"),
        (["--where", "tenant=\udcff"], 2, r"'tenant=\udcff' is not UTF-8"),
        (["-k", "0"], 2, "-k"),
        (["--stream", "--json"], 2, "exclude each other"),
        (["--explain", "no/such/folder/x.html"], 2, "not a folder"),
    ],
)
def test_bad_options_cost_no_loading(index: str, capsys: Any, args: list[str], code: int, says: str) -> None:
    out, err = ask(capsys, index, *args, "--model", "no/such/model/at/all", code=code)
    assert out == "" and says in err and err.count("\n") == 1


def test_questions_and_indexes_that_are_none(index: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["ask", index, "  ", *TINY]) == 2
    assert main(["ask", str(tmp_path / "no"), "Who?", *TINY]) == 2
    assert "there is no index" in capsys.readouterr().err


@pytest.mark.real
def test_the_dial_turns_over_a_false_passage(tmp_path: Path, real: Any, capsys: Any) -> None:
    """The pipeline of the README: a file that lies, built, asked at both ends."""
    (tmp_path / "lie.txt").write_text("The capital of France is Lyon, where the government sits.", encoding="utf-8")
    index = str(tmp_path / "idx")
    assert main(["index", "build", str(tmp_path / "lie.txt"), "--out", index]) == 0
    said = {}
    for alpha in ("0.4", "1"):
        capsys.readouterr()
        assert (
            main(["ask", index, "What is the capital of France?", "--alpha", alpha, "--device", "cpu", "--json"]) == 0
        )
        said[alpha] = json.loads(capsys.readouterr().out)["text"]
    assert "Lyon" in said["0.4"] and "Paris" in said["1"]


def test_sources_say_who_says_what(index: str, llama: Any, capsys: Any) -> None:
    out, _ = ask(capsys, index, "--k", "3", "--alpha", "0.3", "--sources", "each")
    assert all(name in out for name in ("memory", "passage 1", "passage 3", "all"))
    data = json.loads(ask(capsys, index, "--k", "3", "--alpha", "0.3", "--sources", "each", "--json")[0])
    with Index.open(index) as opened:
        rag = Rag(llama, opened, k=3, control=Control(alpha=0.3), max_new_tokens=6)
        answer = rag.ask(QUESTION, sources="each")
    assert data == json.loads(answer.to_json())
    assert len(answer.answer.sources) == 5
