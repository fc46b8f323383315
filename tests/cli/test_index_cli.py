"""``ckcontrol index`` and ``search``: what is built, said, skipped and refused, with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ckcontrol.cli import files
from ckcontrol.cli import index as index_command
from ckcontrol.cli.main import app, main
from ckcontrol.cli.progress import WriteProgress
from ckcontrol.errors import ControlError
from ckcontrol.retrieval import Index, Skipped

from ..warm import Warm


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    assert main(args) == code
    return capsys.readouterr()


def told(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> Any:
    """The JSON a command prints, which must be safe to print."""
    out, _ = run(capsys, *args, "--json", code=code)
    assert out.rstrip("\n").isprintable()
    return json.loads(out)


@pytest.mark.parametrize("command", ["build", "add", "remove", "override", "questions", "info", "verify"])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, ["index", command, "--help"])
    assert result.exit_code == 0 and "--json" in result.output


def test_questions_are_written_with_the_index_or_later(
    tmp_path: Path, docs: Path, embedder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def writer(*_: object) -> Any:  # the tiny model asks nothing
        return lambda texts: [[f"What of {text.split()[0]}?"] for text in texts]

    out, later = str(tmp_path / "i"), str(tmp_path / "j")
    build = ["index", "build", str(docs), "--embedder", embedder, "--out"]
    assert run(capsys, *build, out, "--questions", "no/such model", code=1)[1] and not (tmp_path / "i").exists()
    monkeypatch.setattr(index_command, "_writer", writer)
    made = told(capsys, *build, out, "--questions", "tiny")["index"]
    assert made["questions"] and made["questioned"] == made["texts"]
    run(capsys, *build, later)
    done = told(capsys, "index", "questions", later, "--model", "tiny")
    assert done["questions"]["asked"] == done["index"]["texts"] == made["texts"]
    assert "Nothing to ask" in run(capsys, "index", "questions", later, "--model", "tiny")[0]
    assert f"{made['questions']} question" in run(capsys, "index", "info", later)[0]
    assert all(check["ok"] for check in told(capsys, "index", "verify", later)["checks"])


def test_overrides_are_set_shown_kept_and_taken_out(
    tmp_path: Path, docs: Path, embedder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, out = tmp_path / "facts.jsonl", str(tmp_path / "i")
    facts.write_text('{"subject": "Ferry", "relation": "costs", "answer": "2 euros"}\n')
    build = ["index", "build", str(docs), "--out", out, "--embedder", embedder, "--overrides"]
    _, err = run(capsys, *build, str(tmp_path / "none.jsonl"), code=2)
    assert "none.jsonl" in err and not (tmp_path / "i").exists()
    assert told(capsys, *build, str(facts))["index"]["overrides"] == 1
    assert "1 that outrank what is found" in run(capsys, "index", "info", out)[0]
    facts.write_text('{"prompt": "Who?"}\n')
    _, err = run(capsys, "index", "override", out, str(facts), code=2)
    assert "record 1" in err and "neither answer nor statement" in err
    assert told(capsys, "index", "info", out)["overrides"] == 1
    facts.write_text('{"question": "Who?", "answer": "I"}\n{"question": "What?", "answer": "It"}\n')
    assert "2 overrides" in run(capsys, "index", "override", out, str(facts))[0]
    for wrong in ([], [str(facts), "--none"]):
        run(capsys, "index", "override", out, *wrong, code=2)
    assert told(capsys, "index", "override", out, "--none")["index"]["overrides"] == 0
    assert all(check["ok"] for check in told(capsys, "index", "verify", out)["checks"])


# --- build ----------------------------------------------------------------------------------------


def test_build_says_what_it_did(
    tmp_path: Path, docs: Path, embedder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out, err = run(capsys, "index", "build", str(docs), "--out", str(tmp_path / "i"), "--embedder", embedder)
    assert "5 added · 0 replaced · 0 unchanged" in out
    assert "files      4 " in out and "embedded   5 texts" in out
    assert "flat: 5 vectors, exact search is fast up to 768 MiB" in out
    assert "skipped" not in out + err
    with Index.open(tmp_path / "i") as index:
        assert {p.metadata["document"].rpartition("/")[2] for p in index.passages()} == {
            "bridge.txt",
            "ferry.md",
            "library.html",
            "row-a",
            "row-b",
        }


def test_build_takes_its_options(tmp_path: Path, docs: Path, embedder: str, capsys: pytest.CaptureFixture[str]) -> None:
    (docs / "long.txt").write_text("Many words are here. " * 40, encoding="utf-8")
    options = ["--kind", "hnsw", "--metric", "ip", "--dtype", "float16", "--chunk-size", "20", "--overlap", "4"]
    data = told(capsys, "index", "build", str(docs), "--out", str(tmp_path / "i"), "--embedder", embedder, *options)
    settings = data["index"]["settings"]
    given = {"kind": "hnsw", "metric": "ip", "dtype": "float16", "chunk_size": 20, "overlap": 4}
    assert settings == {**given, "text_field": None, "encoding": None}
    assert data["index"]["passages"] > data["index"]["documents"] == 6
    assert data["files"] == 5 and data["change"]["added"] == 6 and data["skipped"] == []
    hits = told(capsys, "search", str(tmp_path / "i"), "salt", "--embedder", embedder)["hits"]
    assert max(hit["score"] for hit in hits) > 1.01  # inner products: the vectors have their own lengths


def test_static_embeddings_have_no_window_and_passages_a_size_all_the_same(
    tmp_path: Path, embedder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their tokenizer is of another class, and they read texts of any length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(f"{embedder}/tokenizer.json")
    SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=8)], device="cpu").save(str(tmp_path / "static"))
    (tmp_path / "a.txt").write_text("salt and gold and the sea. " * 60, encoding="utf-8")
    static, out = str(tmp_path / "static"), str(tmp_path / "i")
    data = told(capsys, "index", "build", str(tmp_path / "a.txt"), "--out", out, "--embedder", static)
    assert data["index"]["passages"] > 4  # a letter is a token here
    assert told(capsys, "search", out, "salt")["hits"]


def test_an_embedder_folder_is_kept_by_its_whole_path(
    tmp_path: Path, docs: Path, embedder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(embedder).parent)
    run(capsys, "index", "build", str(docs), "--out", str(tmp_path / "i"), "--embedder", Path(embedder).name)
    monkeypatch.chdir(tmp_path)
    assert told(capsys, "search", "i", "ferry")["hits"]


@pytest.mark.parametrize("held", [None, "", "x"])
def test_a_folder_that_is_no_embedder_is_bad_input(
    tmp_path: Path, docs: Path, index: str, held: Any, capsys: Any
) -> None:
    bad = tmp_path / "bad"
    if held is not None:
        bad.mkdir()
        (bad / "config.json").write_text(held, encoding="utf-8")
    build = ["index", "build", str(docs), "--out", str(tmp_path / "i"), "--embedder", str(bad)]
    for command in (build, ["search", index, "salt", "--rerank", str(bad)]):
        err = run(capsys, *command, code=2)[1]
        assert repr(str(bad)) in err and ("Give" in err or "Copy" in err)


def test_skipped_inputs_are_named_counted_and_code_3(
    tmp_path: Path, docs: Path, embedder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    (docs / "latin.txt").write_bytes("Käse".encode("latin-1"))
    (docs / "evil\x1b[31m.xyz").write_text("x", encoding="utf-8")
    (docs / "rows.jsonl").write_text('{"text": "fine"}\n{"text": \n', encoding="utf-8")
    build = ["index", "build", str(docs), str(tmp_path / "none"), "--out", str(tmp_path / "i"), "--embedder", embedder]
    out, err = run(capsys, *build, code=3)
    lines = [line for line in err.splitlines() if line.startswith("skipped  ")]
    assert len(lines) == 5 and "\x1b" not in out + err
    for name in ("broken.pdf", "latin.txt", "evil.xyz", "rows.jsonl line 2", "none"):
        assert sum(name in line for line in lines) == 1
    assert "5 inputs, named on stderr" in out
    assert next(line for line in lines if "latin.txt" in line).endswith("or name its encoding: --encoding cp1252.")
    assert told(capsys, *build, "--overwrite", code=3)["change"]["skipped"] == 5
    assert told(capsys, "index", "info", str(tmp_path / "i"))["documents"] == 4


def test_an_index_of_nothing_is_bad_input_and_says_why(tmp_path: Path, index: str, embedder: str, capsys: Any) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "rows.jsonl").write_text('{"no_text_here": 1}', encoding="utf-8")
    sources = [str(tmp_path / "latin.txt"), str(tmp_path / "rows.jsonl")]
    build = ["index", "build", *sources, "--out", str(tmp_path / "i"), "--embedder", embedder]
    out, err = run(capsys, *build, code=2)
    assert out == "" and err.count("latin.txt: ") == err.count("rows.jsonl") == 1, "each reason is told once"
    last = "ckcontrol: no index was made: every input was skipped, as said above. Name files that can be read."
    assert err.splitlines()[-1] == last
    assert "--text-field" in err and "text_field=" not in err
    (tmp_path / "empty").mkdir()
    _, err = run(capsys, "index", "build", str(tmp_path / "empty"), *build[4:], code=2)
    assert "no index was made" in err
    run(capsys, "index", "add", index, *sources, str(tmp_path / "none"), code=3)
    run(capsys, "index", "add", index, str(tmp_path / "none"), code=3)


def test_sources_that_are_not_there_are_told_before_the_embedder_is_loaded(
    tmp_path: Path, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["--out", str(tmp_path / "i"), "--embedder", str(tmp_path / "no embedder")]
    _, err = run(capsys, "index", "build", str(tmp_path / "none"), str(tmp_path / "*.xyz"), *build, code=2)
    assert "every input was skipped" in err and "there is no such file or folder" in err and "no embedder" not in err
    assert main(["index", "build", str(docs), str(tmp_path / "none"), *build]) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("skipped  ") and "no embedder" in lines[-1]


@pytest.mark.parametrize(
    "command",
    [
        ["search", "INDEX", "x"],
        ["ask", "INDEX", "x"],
        ["calibrate", "INDEX", "QUESTIONS"],
        ["index", "info", "INDEX"],
        ["index", "verify", "INDEX"],
        ["index", "remove", "INDEX", "--document", "x"],
        ["index", "add", "INDEX", "QUESTIONS"],
        ["serve", "--model", "tiny", "--index", "INDEX"],
    ],
)
def test_a_missing_index_is_bad_input_in_every_command(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    missing, questions = tmp_path / "none", tmp_path / "questions.jsonl"
    rows = (f'{{"question": "Who is {i}?", "answer": "Me"}}\n' for i in range(8))
    questions.write_text("".join(rows), encoding="utf-8")
    given = [{"INDEX": str(missing), "QUESTIONS": str(questions)}.get(word, word) for word in command]
    err = run(capsys, *given, code=2)[1].splitlines()[-1]
    assert err == f"ckcontrol: there is no index at {str(missing)!r}. Build one first: ckcontrol index build."
    assert not missing.exists()


def test_an_index_among_its_own_sources_is_not_read(
    docs: Path, embedder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(docs)
    data = told(capsys, "index", "build", ".", "--out", "idx", "--embedder", embedder)
    assert data["files"] == 4 and data["change"]["skipped"] == 0
    (docs / "new.txt").write_text("A new one.", encoding="utf-8")
    data = told(capsys, "index", "add", "idx", ".")
    assert data["files"] == 5 and data["change"]["added"] == 1 and data["skipped"] == []


def test_other_encodings_and_fields_can_be_named(
    tmp_path: Path, embedder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.csv").write_bytes("name,story\nx,Käse\n".encode("latin-1"))
    source, out = str(tmp_path / "latin.csv"), str(tmp_path / "i")
    run(capsys, "index", "build", source, "--out", out, "--embedder", embedder, "--encoding", "latin-1", code=2)
    run(capsys, "index", "build", source, "--out", out, "--embedder", embedder, "--text-field", "story", code=2)
    both = ["--encoding", "latin-1", "--text-field", "story"]
    run(capsys, "index", "build", source, "--out", out, "--embedder", embedder, *both)
    assert told(capsys, "search", out, "Käse", "--mode", "bm25")["hits"][0]["text"] == "Käse"


def test_an_index_is_not_replaced_unless_asked(index: str, docs: Path, embedder: str, capsys: Any) -> None:
    build = ["index", "build", str(docs / "ferry.md"), "--out", index, "--embedder", embedder]
    _, err = run(capsys, *build, code=2)
    assert "there is an index" in err and "--overwrite" in err and "index add" in err
    run(capsys, *build, "--overwrite")
    assert told(capsys, "index", "info", index)["documents"] == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--kind", "tree"], "--kind"),
        (["--dtype", "int8"], "--dtype"),
        (["--chunk-size", "2"], "--chunk-size"),
        (["--encoding", "klingon"], "encoding='klingon'"),
    ],
)
def test_bad_options_are_code_2(tmp_path: Path, docs: Path, capsys: Any, args: list[str], says: str) -> None:
    _, err = run(capsys, "index", "build", str(docs), "--out", str(tmp_path / "i"), *args, code=2)
    assert says in err and err.count("\n") == 1 and not (tmp_path / "i").exists()


def test_interrupted_the_same_command_resumes(tmp_path: Path, embedder: str, warm: Warm) -> None:
    lines = [json.dumps({"id": str(n), "text": f"Passage number {n} of many, and some words."}) for n in range(1000)]
    (tmp_path / "many.jsonl").write_text("\n".join(lines), encoding="utf-8")
    build = ["index", "build", str(tmp_path / "many.jsonl"), "--out", str(tmp_path / "i"), "--embedder", embedder]
    interrupting = (  # a real Ctrl-C, once the first texts are embedded
        "import os, signal, sys\nfrom ckcontrol.cli.main import main\n"
        "from ckcontrol.cli.progress import WriteProgress\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs are born deaf to it
        "tell = WriteProgress.on_progress\n"
        "def on_progress(self, stage, done, total):\n"
        "    tell(self, stage, done, total)\n"
        "    if stage == 'Texts': os.kill(os.getpid(), signal.SIGINT)\n"
        "WriteProgress.on_progress = on_progress\nsys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    told_how: dict[str, Any] = {"env": environment, "capture_output": True, "text": True, "encoding": "utf-8"}
    stopped = subprocess.run([warm.python, "-c", interrupting, *build], **told_how)
    assert stopped.returncode == 130, stopped.stderr
    heard = stopped.stderr.splitlines()
    assert "The same command goes on where this one stopped." in heard and heard[-1] == "ckcontrol: interrupted."
    command = [warm.python, "-m", "ckcontrol", *build]
    done = subprocess.run([*command, "--json"], check=True, **told_how)
    change = json.loads(done.stdout)["change"]
    assert change["reused"] >= 256 and change["reused"] + change["embedded"] == change["added"] == 1000


# --- add, remove, info, verify --------------------------------------------------------------------


def test_add_tells_new_changed_and_unchanged_apart(tmp_path: Path, docs: Path, embedder: str, capsys: Any) -> None:
    index = str(tmp_path / "i")
    run(capsys, "index", "build", str(docs), "--out", index, "--embedder", embedder)
    (docs / "ferry.md").write_text("The ferry rests in winter.", encoding="utf-8")
    (docs / "new.txt").write_text("A new one.", encoding="utf-8")
    (docs / "copy.txt").write_text("A new one.", encoding="utf-8")
    change = told(capsys, "index", "add", index, str(docs))["change"]
    assert {name: change[name] for name in ("added", "replaced", "unchanged", "folded", "embedded")} == {
        "added": 2,
        "replaced": 1,
        "unchanged": 4,
        "folded": 1,
        "embedded": 2,
    }
    out, _ = run(capsys, "index", "info", index)
    assert "7 (1 share another's text)" in " ".join(out.split())
    (docs / "bad.txt").write_bytes(b"\xff")
    run(capsys, "index", "add", index, str(docs), code=3)


def test_an_id_of_another_file_is_refused_by_both_names(tmp_path: Path, embedder: str, capsys: Any) -> None:
    for name, text in (("shop", "Refunds take a week."), ("hotel", "Check in at noon.")):
        (tmp_path / f"{name}.csv").write_text(f"id,text\n1,{text}\n", encoding="utf-8")
    index, shop, hotel = (str(tmp_path / name) for name in ("idx", "shop.csv", "hotel.csv"))
    run(capsys, "index", "build", shop, "--out", index, "--embedder", embedder)
    for command in (
        ["add", index, hotel],
        ["build", shop, hotel, "--out", index, "--overwrite", "--embedder", embedder],
    ):
        err = run(capsys, "index", *command, code=3)[1]
        said = " ".join(err.split())
        assert all(part in said for part in (f"{shop!r}", f"{hotel!r}", "the id '1'", "their own ids"))
        (hit,) = told(capsys, "search", index, "week", "--mode", "bm25")["hits"]
        assert hit["text"] == "Refunds take a week."


def test_info_and_verify(index: str, embedder: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out, _ = run(capsys, "index", "info", index)
    for part in ("5", "cosine, float32, 16 numbers each", embedder, "generation 1", "exact search"):
        assert part in out
    out, _ = run(capsys, "index", "verify", index)
    assert out.count("ok ") == 5
    data = told(capsys, "index", "verify", index)
    assert data["ok"] and {check["check"] for check in data["checks"]} >= {"files", "texts", "vectors"}
    victim = next(Path(index).glob("*/vectors.faiss"))
    victim.write_bytes(victim.read_bytes()[:-1])
    out, _ = run(capsys, "index", "verify", index, code=1)
    assert "FAILED" in out and "vectors.faiss" in out
    assert not told(capsys, "index", "verify", index, code=1)["ok"]
    assert "vectors.faiss" in run(capsys, "search", index, "ferry", code=1)[1]


@pytest.mark.parametrize(
    ("kind", "asked", "says"),
    [
        ("flat", "auto", "exact search is fast up to 768 MiB"),
        ("ivf", "auto", "beyond 768 MiB"),
        ("ivfpq", "auto", "beyond 32 GiB"),
        ("hnsw", "hnsw", "as asked"),
        ("flat", "ivf", "too few to train the ivf that was asked for"),
    ],
)
def test_the_kind_comes_with_its_reason(kind: str, asked: str, says: str) -> None:
    settings = {"kind": asked, "dtype": "float16"}
    line = index_command._why({"kind": kind, "settings": settings, "rows": 5183, "embedder": {"dim": 384}})
    assert says in line and line.startswith(f"{kind}: ") and "5,183 vectors (4 MiB)" in line


# --- search ---------------------------------------------------------------------------------------


def test_search_prints_and_filters(index: str, embedder: str, capsys: Any) -> None:
    out, _ = run(capsys, "search", index, "ferry river", "--mode", "bm25")
    first, second = out.splitlines()
    assert first.startswith("[1] ") and "ferry.md#0" in first and "ferry crosses the river" in second
    assert len(told(capsys, "search", index, "salt", "-k", "2")["hits"]) == 2
    hits = told(capsys, "search", index, "salt", "--where", "year>=1950", "--where", "lang=de", "--mode", "hybrid")
    assert [hit["id"] for hit in hits["hits"]] == ["row-b#0"]
    assert told(capsys, "search", index, "salt", "--embedder", embedder)["hits"]
    out, err = run(capsys, "search", index, "salt", "--where", "lang=fr")
    assert (out, err) == ("", "Nothing was found.\n")
    out, err = run(capsys, "search", index, "salt", "--where", "yaer=1950", "--json")
    assert json.loads(out)["hits"] == [] and "No passage has 'yaer' to filter by. Did you mean 'year'?" in err


def test_a_text_may_begin_with_a_dash(index: str, capsys: Any) -> None:
    for query in ("-5 degrees", "-5", "--how cold is it", "-k is a letter, ferry", "-h is a letter"):
        for args in ([index, query, "-k", "2"], ["-k2", index, query], ["-k", "2", "--", index, query]):
            out, _ = run(capsys, "search", "--mode", "bm25", "--json", *args)
            data = json.loads(out)
            assert data["query"] == query and len(data["hits"]) <= 2
    assert "No such option: --how" in run(capsys, "search", index, "--how", code=2)[1]
    assert "No such option: --moed" in run(capsys, "search", index, "ferry", "--moed=a b", code=2)[1]
    _, err = run(capsys, "index", "add", index, "-5 none.txt", code=3)
    assert "skipped  -5 none.txt" in err


def test_a_pipe_has_no_edge(tmp_path: Path, embedder: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    text = " ".join(f"word{n}" for n in range(60))
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    index = str(tmp_path / "i")
    run(capsys, "index", "build", str(tmp_path / "long.txt"), "--out", index, "--embedder", embedder)
    whole = [hit["text"] for hit in told(capsys, "search", index, "word59")["hits"]]
    out, _ = run(capsys, "search", index, "word59")
    assert [line.strip() for line in out.splitlines()[1::2]] == whole and max(map(len, whole)) > 90


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["-k", "0"], 2, "-k"),
        (["--mode", "magic"], 2, "--mode"),
        (["--where", "lang"], 2, "--where 'lang'"),
        (["--where", "year>1", "--where", "year>2"], 2, "twice"),
    ],
)
def test_bad_searches_are_refused(index: str, capsys: Any, args: list[str], code: int, says: str) -> None:
    assert says in run(capsys, "search", index, "salt", *args, code=code)[1]


def test_another_embedder_is_refused(index: str, tmp_path: Path, embedder: str, capsys: Any) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    subprocess.run(["cp", "-r", embedder, str(other)], check=True)
    weights = load_file(other / "model.safetensors")
    save_file({name: -value.flip(0) for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    _, err = run(capsys, "search", index, "salt", "--embedder", str(other), code=1)
    assert "embeds" in err and "differently" in err


# --- conditions -----------------------------------------------------------------------------------


def test_conditions_are_typed() -> None:
    given = ["year>=2000", "year < 2010", "lang=en", "n!=3", "ok=true", 'zip="007"', "id=12", "a b==x=y", "e="]
    given.append('f=">2"')
    assert files.parse_where(given) == {
        "year": {"$gte": 2000, "$lt": 2010},
        "lang": {"$eq": "en"},
        "n": {"$ne": 3},
        "ok": {"$eq": True},
        "zip": {"$eq": "007"},
        "id": {"$eq": "12"},
        "a b": {"$eq": "x=y"},
        "e": {"$eq": ""},
        "f": {"$eq": ">2"},
    }
    assert files.parse_where([]) is None


@pytest.mark.parametrize("given", [["year"], ["=2000"], [""], [">1"], ["a=1", "a==2"], ["a>>2"], ["a<>2"], ["a=>2"]])
def test_bad_conditions_are_refused(given: list[str]) -> None:
    with pytest.raises(ControlError, match="--where"):
        files.parse_where(given)


# --- progress -------------------------------------------------------------------------------------


def test_progress_counts_files_and_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with WriteProgress(tmp_path) as progress:
        assert progress.line() == "looking for files"
        for name, done in (("a.txt", 0), ("a.txt", 10), ("b\x1b[31m.txt", 10), ("b\x1b[31m.txt", 20)):
            progress.on_file(name, done, 20)
        assert progress.line() == "2 files · b.txt"
        progress.on_progress("Texts", 512, 0)
        assert "512 texts embedded" in progress.line()
        progress.on_progress("Building hnsw", 0, 900)
        assert progress.line() == "Building hnsw of 900 vectors"
        progress.on_skip(Skipped("c\n.txt", "broken \x1b]0;t\x07one."))
    assert capsys.readouterr().err == "skipped  c .txt: broken one.\n"
    assert progress.files == 2 and len(progress.skipped) == 1


def test_progress_is_drawn_on_a_terminal_and_leaves_nothing_but_skips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with WriteProgress(tmp_path) as progress:
        progress.on_file("a [b].txt", 0, 20)
        progress.on_skip(Skipped("a [b].txt", "why"))
        progress.on_progress("Building ivf", 0, 5000)
    assert "skipped  a [b].txt: why\n" in capsys.readouterr().err.replace("\r", "")
