"""``ckcontrol index add``, later, and ``remove``: what is gone of the sources, how it was read, and who else writes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ckcontrol.retrieval import Index
from ckcontrol.retrieval.store.manifest import Manifest

from ..warm import Warm
from .test_index_cli import run, told


def found(index: str) -> set[str]:
    """What the index holds, by document."""
    with Index.open(index) as opened:
        return {str(passage.metadata.get("document", passage.id)) for passage in opened.passages()}


def test_what_is_gone_of_the_sources_is_told_and_removed_when_asked(
    tmp_path: Path, docs: Path, embedder: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (docs / "table.csv").write_text("text\nOne row.\nAnother row.\n", encoding="utf-8")
    Path("beside.txt").write_text("It stands beside the folder.", encoding="utf-8")
    run(capsys, "index", "build", "docs", "beside.txt", "--out", "i", "--embedder", embedder)
    whole = found("i")
    (docs / "ferry.md").rename(docs / "boat.md")
    (docs / "table.csv").write_text("text\nOne row.\n", encoding="utf-8")
    Path("beside.txt").unlink()  # under no source of what follows
    out, err = run(capsys, "index", "add", "i", "docs")
    assert "docs/ferry.md" in err and "docs/table.csv: 1 record" in err and "beside" not in err and "--prune" in out
    assert found("i") == whole | {"docs/boat.md"}
    data = told(capsys, "index", "add", "i", "docs/*.md", "docs/table.csv")
    assert data["gone"] == {"docs/ferry.md": ["docs/ferry.md"], "docs/table.csv": ["docs/table.csv#2"]}
    assert not data["pruned"] and data["change"]["removed"] == 0
    assert told(capsys, "index", "add", "i", "docs", "--prune")["pruned"]
    assert found("i") == whole - {"docs/ferry.md", "docs/table.csv#2"} | {"docs/boat.md"}
    assert told(capsys, "index", "add", "i", "docs")["gone"] == {}
    assert told(capsys, "index", "add", "i", "beside.txt", code=3)["gone"] == {}  # it was skipped


def test_a_source_that_is_not_there_prunes_nothing(
    tmp_path: Path, docs: Path, embedder: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (docs / "mount").mkdir()
    (docs / "mount" / "far.txt").write_text("It lies on another disk.", encoding="utf-8")
    run(capsys, "index", "build", "docs", "--out", "i", "--embedder", embedder)
    whole = found("i")
    (docs / "mount").rename("disk")
    (docs / "mount").symlink_to("nowhere")
    (docs / "ferry.md").unlink()
    data = told(capsys, "index", "add", "i", "docs", "--prune", code=3)
    assert list(data["gone"]) == ["docs/ferry.md"] and "docs/mount" in [one["name"] for one in data["skipped"]]
    whole -= {"docs/ferry.md"}
    docs.rename("elsewhere")
    for source in ("docs", "docs/*.md"):
        data = told(capsys, "index", "add", "i", source, "--prune", code=3)
        assert data["gone"] == {} and data["change"]["removed"] == 0 and found("i") == whole
    docs.symlink_to("nowhere")
    assert told(capsys, "index", "add", "i", "docs", "--prune", code=3)["gone"] == {} and found("i") == whole
    docs.unlink()
    docs.mkdir()
    (docs / ".hidden").touch()
    _, err = run(capsys, "index", "add", "i", "docs", "--prune", code=2)
    assert f"{len(whole)} documents" in err and "'docs'" in err and "index remove" in err and found("i") == whole
    assert told(capsys, "index", "add", "i", "docs", code=3)["gone"] == {}


def test_of_a_file_that_was_not_read_whole_nothing_is_gone(
    tmp_path: Path, embedder: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = Path("rows.jsonl")
    rows.write_text('{"id": "a", "text": "One."}\n{"id": "b", "text": "Two."}\n', encoding="utf-8")
    run(capsys, "index", "build", "rows.jsonl", "--out", "i", "--embedder", embedder)
    rows.write_text('{"id": "a", "text": "One."}\n{"id": "b", "text": \n', encoding="utf-8")
    assert told(capsys, "index", "add", "i", "rows.jsonl", "--prune", code=3)["gone"] == {}
    rows.write_bytes(b'{"id": "a", "text": "K\xe4se"}\n')
    assert told(capsys, "index", "add", "i", "rows.jsonl", "--prune", code=3)["gone"] == {}
    assert found("i") == {"a", "b"}


def test_records_that_moved_to_another_file_can_come_in(
    tmp_path: Path, embedder: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    Path("docs/old.jsonl").write_text('{"id": "a", "text": "One."}\n', encoding="utf-8")
    run(capsys, "index", "build", "docs", "--out", "i", "--embedder", embedder)
    Path("docs/old.jsonl").rename("docs/new.jsonl")
    assert told(capsys, "index", "add", "i", "docs", code=3)["gone"] == {"docs/old.jsonl": ["a"]}
    data = told(capsys, "index", "add", "i", "docs", "--prune")
    assert data["change"]["added"] == data["change"]["removed"] == 1 and found("i") == {"a"}


def test_add_reads_as_the_index_was_built(tmp_path: Path, embedder: str, capsys: Any) -> None:
    first, second, out = tmp_path / "first.csv", tmp_path / "second.csv", str(tmp_path / "i")
    first.write_bytes("name,story\nx,Käse\n".encode("latin-1"))
    second.write_bytes("name,story,note\ny,Gemüse,Brot\n".encode("latin-1"))
    how = ["--encoding", "latin-1", "--text-field", "story"]
    run(capsys, "index", "build", str(first), "--out", out, "--embedder", embedder, *how)
    assert told(capsys, "index", "add", out, str(second))["change"]["added"] == 1
    assert told(capsys, "search", out, "Gemüse", "--mode", "bm25")["hits"][0]["text"] == "Gemüse"
    assert told(capsys, "index", "add", out, str(second), "--text-field", "note")["change"]["replaced"] == 1
    assert "story" in run(capsys, "index", "info", out)[0]
    assert told(capsys, "index", "info", out)["settings"]["text_field"] == "story"


def test_an_index_without_these_settings_is_what_older_versions_wrote(index: str) -> None:
    data = (Path(index) / "1" / "manifest.json").read_bytes()
    assert json.loads(data)["settings"].keys() == {"metric", "dtype", "kind", "chunk_size", "overlap"}
    assert Manifest.from_bytes(data).settings.text_field is None


def test_while_one_writes_another_is_refused_and_told_to_wait(tmp_path: Path, embedder: str, warm: Warm) -> None:
    docs, out = tmp_path / "docs", str(tmp_path / "i")
    docs.mkdir()
    (docs / "one.txt").write_text("One.", encoding="utf-8")
    held = (  # a build that stops before its first text is embedded, until it is told to go on
        "import sys\nfrom ckcontrol.cli.main import main\nfrom ckcontrol.retrieval.store.writer import Writer\n"
        "embed = Writer._embed\n"
        "def _embed(self, texts):\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    return embed(self, texts)\n"
        "Writer._embed = _embed\nsys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment, "text": True}

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        command = [warm.python, "-m", "ckcontrol", *args]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    build = ["index", "build", str(docs), "--out", out, "--embedder", embedder]
    with subprocess.Popen([warm.python, "-c", held, *build], **pipes) as builder:
        assert builder.stdout is not None and builder.stdout.readline() == "writing\n"
        adding, building = call("index", "add", out, str(docs)), call(*build)
        assert adding.returncode == 2 and "being built" in adding.stderr and "Wait" in adding.stderr
        assert building.returncode == 1 and repr(out) in building.stderr and "Wait" in building.stderr
        builder.communicate("\n", timeout=120)
    assert builder.returncode == 0
    (docs / "two.txt").write_text("Two.", encoding="utf-8")
    with subprocess.Popen([warm.python, "-c", held, "index", "add", out, str(docs)], **pipes) as adder:
        assert adder.stdout is not None and adder.stdout.readline() == "writing\n"
        adding = call("index", "add", out, str(docs))
        assert adding.returncode == 1 and repr(out) in adding.stderr and "Wait" in adding.stderr
        adder.communicate("\n", timeout=120)
    with Index.open(out) as opened:
        assert adder.returncode == 0 and opened.info()["documents"] == 2


def test_remove_by_document_passage_and_metadata(index: str, capsys: Any) -> None:
    names = [hit["metadata"]["document"] for hit in told(capsys, "search", index, "bridge", "--mode", "bm25")["hits"]]
    out, _ = run(capsys, "index", "remove", index, "--document", names[0])
    assert out == "Removed 1 passage; 4 passages left.\n"
    assert told(capsys, "index", "remove", index, "--where", "year>=2000")["removed"] == 1
    assert told(capsys, "index", "remove", index, "--passage", "row-a#0")["index"]["documents"] == 2
    _, err = run(capsys, "index", "remove", index, "--document", "row-a", code=1)
    assert "row-a" in err
    assert "--where" in run(capsys, "index", "remove", index, code=2)[1]
    out, _ = run(capsys, "index", "remove", index, "--where", "yaer=2000")
    assert out.startswith("Removed 0 passages; 2 passages left. No passage has 'yaer'")
