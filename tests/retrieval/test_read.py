"""Which files are read, in what order and under what names, and that nothing is left out without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckcontrol.errors import RetrievalError
from ckcontrol.retrieval.reading.read import read
from ckcontrol.retrieval.types import Document, Skipped


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"text of {name}", encoding="utf-8")


def take(paths: object, **options: object) -> tuple[list[str], dict[str, str]]:
    """The ids that were read and, by name, the reasons for what was not."""
    skipped: list[Skipped] = []
    ids = [document.id for document in read(paths, on_skip=skipped.append, **options)]  # type: ignore[arg-type]
    assert len({item.name for item in skipped}) == len(skipped)
    return ids, {item.name: item.reason for item in skipped}


def test_a_folder_is_walked_in_order_without_hidden_files() -> None:
    write(
        "docs/b.md", "docs/a/z.txt", "docs/a/b/c.TXT", "docs/.git/x.md", "docs/.hidden.md", "docs/c.rst", "docs/LICENSE"
    )
    ids, skipped = take("docs/")
    assert ids == ["docs/a/b/c.TXT", "docs/a/z.txt", "docs/b.md"]
    assert sorted(skipped) == ["docs/LICENSE", "docs/c.rst"]
    assert "not a supported format (.rst)" in skipped["docs/c.rst"]
    assert take(["./docs"])[0] == take(Path("docs"))[0] == ids


def test_the_document_of_a_file(here: Path) -> None:
    write("docs/a.md")
    assert list(read(["docs/a.md"])) == [Document("docs/a.md", "text of docs/a.md", "docs/a.md", {"path": "docs/a.md"})]
    assert [document.id for document in read(here / "docs")] == [(here / "docs" / "a.md").as_posix()]


def test_a_file_named_outright_may_be_hidden() -> None:
    write(".notes.md", ".cfg/a.txt")
    assert take([".notes.md", ".cfg"])[0] == [".notes.md", ".cfg/a.txt"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("docs/*.md", ["docs/a.md", "docs/b.md"]),
        ("docs/[a].md", ["docs/a.md"]),
        ("docs/?.*", ["docs/a.md", "docs/b.md", "docs/c.txt"]),
        ("**/*.md", ["docs/a.md", "docs/b.md", "docs/in/a.md", "docs/in/deep/a.md"]),
        ("docs/**/a.md", ["docs/a.md", "docs/in/a.md", "docs/in/deep/a.md"]),
        ("docs/**/**/deep/*.md", ["docs/in/deep/a.md"]),
        ("*/in", ["docs/in/a.md", "docs/in/deep/a.md"]),
        ("docs/in/**", ["docs/in/a.md", "docs/in/deep/a.md"]),
    ],
)
def test_patterns(pattern: str, found: list[str], here: Path) -> None:
    write("docs/a.md", "docs/b.md", "docs/c.txt", "docs/in/a.md", "docs/in/deep/a.md", "docs/.x/a.md")
    assert take(pattern) == (found, {})
    assert [Path(name).relative_to(here).as_posix() for name in take(str(here / pattern))[0]] == found


def test_a_file_whose_name_looks_like_a_pattern() -> None:
    write("a[1].txt", "a1.txt")
    assert take("a[1].txt")[0] == ["a[1].txt"]


def test_a_file_named_twice_is_read_once() -> None:
    write("docs/a.md", "docs/b.md")
    assert take(["docs/b.md", "docs", "docs/*.md"])[0] == ["docs/b.md", "docs/a.md"]


def test_links_lead_in_no_circle() -> None:
    write("docs/a.md", "docs/in/b.md", "other/c.md")
    os.symlink("..", "docs/in/up")
    os.symlink("../other", "docs/more")
    os.symlink("../other", "docs/more2")
    os.symlink("absent", "docs/broken.md")
    os.symlink("self.md", "docs/self.md")
    ids, skipped = take("docs")
    assert ids == ["docs/a.md", "docs/in/b.md", "docs/more/c.md"]
    assert "link to the folder docs, which is read already" in skipped["docs/in/up"]
    assert "docs/more, which is read already" in skipped["docs/more2"]
    assert "leads nowhere" in skipped["docs/broken.md"]
    assert "symbolic links" in skipped["docs/self.md"]
    assert take("**/*.md")[0] == [*ids, "other/c.md"][: len(take("**/*.md")[0])]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_hang() -> None:
    os.mkfifo("pipe.txt")
    assert take("pipe.txt") == ([], {"pipe.txt": "neither a regular file nor a folder."})


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may read everything")
def test_permissions() -> None:
    write("a.txt", "in/b.txt")
    Path("a.txt").chmod(0)
    Path("in").chmod(0)
    try:
        assert take(["a.txt", "in"])[1] == {
            "a.txt": "cannot be read: Permission denied.",
            "in": "cannot be listed: Permission denied.",
        }
    finally:
        Path("in").chmod(0o755)


def test_what_cannot_be_reached_is_said() -> None:
    os.mkdir("empty")
    write("odd.zip", "noted")
    ids, skipped = take(["absent.txt", "absent/*.md", "empty", "empty/**", "odd.zip", "noted", "x" * 300 + ".txt"])
    assert ids == [] and len(skipped) == 7
    assert skipped["absent.txt"] == "there is no such file or folder."
    assert skipped["absent/*.md"] == skipped["empty/**"]
    assert "no file matches" in skipped["empty/**"]
    assert "holds no files" in skipped["empty"]
    assert "(.zip); supported are .txt, .md" in skipped["odd.zip"] and "(no suffix)" in skipped["noted"]
    assert "too long" in skipped["x" * 300 + ".txt"]


def test_a_name_that_is_no_text(here: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(here) + b"/caf\xe9.txt")).write_text("coffee")
    except OSError:
        pytest.skip("this file system wants Unicode names")
    ((name, reason),) = take(here)[1].items()
    assert name.endswith(r"caf\udce9.txt") and "rename it" in reason


def test_without_on_skip_the_first_one_raises() -> None:
    write("docs/a.md", "docs/b.rst")
    documents = read("docs")
    assert next(documents).id == "docs/a.md"
    with pytest.raises(RetrievalError, match=r"docs/b\.rst: not a supported format.*on_skip=") as caught:
        next(documents)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        ("", {}, "'' is not a path"),
        (["a", 3], {}, "3 is not a path"),
        ([b"a"], {}, "b'a' is not a path"),
        ("a\0b", {}, "is not a path"),
        ("a", {"encoding": "utf-9"}, "encoding='utf-9' is unknown"),
        ("a", {"encoding": "hex"}, "encoding='hex' is unknown"),
    ],
)
def test_bad_arguments_raise_at_the_call(paths: object, options: dict[str, str], message: str) -> None:
    with pytest.raises(RetrievalError, match=message):
        read(paths, **options)  # type: ignore[arg-type]


def test_an_error_of_on_skip_is_the_callers() -> None:
    def stop(item: Skipped) -> None:
        raise OSError("mine")

    with pytest.raises(OSError, match="mine"):
        list(read("absent", on_skip=stop))


def test_progress_counts_bytes() -> None:
    write("docs/a.txt", "docs/b.txt", "docs/c.rst")
    Path("docs/big.jsonl").write_text('{"text": "%s"}\n' % ("x" * 300_000) * 10)
    calls: list[tuple[str, int, int]] = []
    list(read(["docs", "absent"], on_skip=lambda _: None, on_file=lambda *call: calls.append(call)))
    total = sum(path.stat().st_size for path in Path("docs").iterdir())
    assert {call[2] for call in calls} == {total}
    places = [call[1] for call in calls]
    assert places == sorted(places) and (places[0], places[-1]) == (0, total)
    assert list(dict.fromkeys(call[0] for call in calls)) == [f"docs/{name}" for name in sorted(os.listdir("docs"))]
    assert sum(name == "docs/big.jsonl" for name, *_ in calls) > 3


def test_reading_waits_for_the_reader() -> None:
    """One document at a time: what comes later may not even exist yet."""
    Path("a.jsonl").write_text('{"text": "one"}\n')
    documents: Iterator[Document] = read(["a.jsonl", "b.txt"])
    assert next(documents).text == "one"
    write("b.txt")
    assert next(documents).id == "b.txt"


def test_the_readers_are_loaded_when_needed() -> None:
    code = (
        "import sys, ckcontrol.retrieval.reading.read, ckcontrol.retrieval.chunk\n"
        "print([n for n in ('torch', 'bs4', 'pypdf', "
        "'pyarrow', 'semantic_text_splitter') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
