"""Damage of every kind is refused by name before anything is parsed; a write that fails leaves the index as it was."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from ckcontrol.errors import IndexMismatch, RetrievalError
from ckcontrol.retrieval import Index, Passage
from ckcontrol.retrieval.store import generations
from ckcontrol.retrieval.store.manifest import Manifest
from ckcontrol.retrieval.types import Skipped

from .hashes import Hashes, corpus, state

FILES = ["CURRENT", "1/manifest.json", "1/texts.sqlite", "1/vectors.faiss", "1/ann.faiss"]
FLIPS = 40  # of each file: 200


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "index"
    Index.build(corpus(0, 300), Hashes(), path, kind="hnsw").close()
    assert sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()) == sorted([*FILES, "lock"])
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "index"))


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whoever parses a file is caught at it."""
    caught: list[str] = []

    def catch(name: str) -> Callable[..., Any]:
        def parse(*arguments: Any, **options: Any) -> Any:
            caught.append(name)
            raise AssertionError(f"{name} was called")

        return parse

    monkeypatch.setattr(faiss, "read_index", catch("faiss.read_index"))
    monkeypatch.setattr(sqlite3, "connect", catch("sqlite3.connect"))
    return caught


def assert_refused(path: Path, name: str) -> None:
    with pytest.raises(IndexMismatch) as caught:
        Index.open(path, Hashes())
    assert Path(name).name in str(caught.value)
    assert caught.value.field in (Path(name).name, "manifest.json")
    assert caught.value.hint
    findings = Index.verify(path)
    assert [finding.ok for finding in findings] == [False]
    assert Path(name).name in findings[0].detail


@pytest.mark.parametrize("name", FILES)
def test_flipped_bytes(copy: Path, name: str, unparsed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    chance, file = random.Random(name), copy / name
    whole = file.read_bytes()
    if name in ("CURRENT", "1/manifest.json"):
        monkeypatch.setattr(Manifest, "from_bytes", lambda data: pytest.fail("the manifest was parsed"))
    for _ in range(FLIPS):
        place = chance.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= chance.randrange(1, 256)
        file.write_bytes(damaged)
        assert_refused(copy, name)
    assert not unparsed
    file.write_bytes(whole)
    monkeypatch.undo()
    assert all(finding.ok for finding in Index.verify(copy))


@pytest.mark.parametrize("name", FILES)
def test_truncated_longer_empty_and_missing_files(copy: Path, name: str, unparsed: list[str]) -> None:
    chance, file = random.Random(name), copy / name
    whole = file.read_bytes()
    for length in [0, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(5))]:
        file.write_bytes(whole[:length])
        assert_refused(copy, name)
    file.write_bytes(whole + b"\0")
    assert_refused(copy, name)
    file.unlink()
    if name == "CURRENT":
        with pytest.raises(RetrievalError, match="there is no index"):
            Index.open(copy)
    else:
        assert_refused(copy, name)
        file.mkdir()
        if name != "1/manifest.json":
            assert_refused(copy, name)
    assert not unparsed


def test_files_of_another_index(copy: Path, tmp_path: Path, unparsed: list[str], monkeypatch: Any) -> None:
    monkeypatch.undo()
    other = tmp_path / "other"
    Index.build(corpus(1, 301), Hashes(), other, kind="hnsw").close()
    for name in FILES:
        whole = (copy / name).read_bytes()
        shutil.copyfile(other / name, copy / name)
        with pytest.raises(IndexMismatch) as caught:
            Index.open(copy, Hashes())
        assert caught.value.field == ("manifest.json" if name == "CURRENT" else Path(name).name)
        (copy / name).write_bytes(whole)
    assert all(finding.ok for finding in Index.verify(copy))


def sign(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write a changed manifest, and its digest where it belongs."""
    data = json.loads((path / "1/manifest.json").read_bytes())
    change(data)
    content = json.dumps(data).encode()
    (path / "1/manifest.json").write_bytes(content)
    (path / "CURRENT").write_text(f"1 {hashlib.sha256(content).hexdigest()}\n")


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("version", lambda data: data.update(version=2)),
        ("version", lambda data: data.pop("version")),
        ("format", lambda data: data.update(format="somebody's")),
        ("kind", lambda data: data.pop("kind")),
        ("colour", lambda data: data.update(colour="blue")),
        ("settings", lambda data: data["settings"].update(colour="blue")),
        ("rows", lambda data: data.update(rows=299)),
    ],
)
def test_a_manifest_of_another_kind(copy: Path, field: str, change: Callable[[dict[str, Any]], Any]) -> None:
    sign(copy, change)
    with pytest.raises(IndexMismatch) as caught:
        Index.open(copy, Hashes())
    assert caught.value.field == field


def test_a_foreign_folder_is_neither_opened_nor_touched(tmp_path: Path) -> None:
    """Folders called by numbers are not ours either: years, for example."""
    for names in (["notes.txt"], ["2024/letter.txt"], ["7"], ["2023/texts.sqlite/x"], ["2022/mine.sqlite"]):
        root = tmp_path / names[0].replace("/", "-")
        for name in names:
            (root / name).parent.mkdir(parents=True)
            (root / name).write_text("mine")
        with pytest.raises(RetrievalError, match="there is no index"):
            Index.open(root)
        for overwrite in (False, True):
            with pytest.raises(RetrievalError, match="not an index's file"):
                Index.build(corpus(0, 9), Hashes(), root, overwrite=overwrite)
        assert [p.read_text() for p in root.rglob("*") if p.is_file()] == ["mine"]
    with pytest.raises(RetrievalError, match="is a file"):
        Index.build(corpus(0, 9), Hashes(), root / "2022/mine.sqlite")


def test_a_folder_of_years_beside_an_index_survives_its_writes(copy: Path) -> None:
    (copy / "2024").mkdir()
    (copy / "2024/letter.txt").write_text("mine")
    with Index.open(copy, Hashes()) as index:
        index.add(corpus(400, 410))
        assert (copy / "2024/letter.txt").read_text() == "mine"
        (copy / "3").mkdir()
        (copy / "3/letter.txt").write_text("mine")
        with pytest.raises(RetrievalError, match="could not be written"):
            index.add(corpus(500, 510))
        assert (copy / "3/letter.txt").read_text() == "mine"
        assert len(index) == len({passage.text for passage in [*corpus(0, 300), *corpus(400, 410)]})


# --- writes that fail -----------------------------------------------------------------------------------------


class Broken(Hashes):
    """Fails at a batch of texts, in one way or another."""

    def __init__(self, batch: int, fail: Callable[[NDArray[np.float32]], Any]) -> None:
        super().__init__()
        self.batch, self.fail, self.whole = batch, fail, 0

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        rows = super().encode(texts, query=query)
        if len(texts) > 1 and not query:
            self.batch -= 1
            if self.batch < 0:
                return self.fail(rows)
            self.whole += len(texts)
        return rows


def interrupt(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    raise KeyboardInterrupt


def poison(value: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    def change(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        rows[len(rows) // 2, 3] = value
        return rows

    return change


@pytest.mark.parametrize("batch", [0, 1, 4, 9, 11])
def test_interrupted_by_the_keyboard(tmp_path: Path, batch: int) -> None:
    path = tmp_path / "index"
    broken = Broken(batch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        Index.build(corpus(0, 3000), broken, path)
    assert {p.name for p in path.iterdir()} == {"lock", *(["unfinished"] if batch else [])}
    with pytest.raises(RetrievalError, match="there is no index") as caught:
        Index.open(path)
    assert not batch or "interrupted" in caught.value.hint
    again = Hashes()
    with Index.build(corpus(0, 3000), again, path) as index, Index.build(corpus(0, 3000), Hashes()) as fresh:
        assert index.change is not None
        assert (index.change.reused, index.change.embedded) == (broken.whole, again.seen)
        assert index.change.reused + index.change.embedded == len(index)
        assert state(index) == state(fresh)
        assert index.change.added == 3000


def test_a_small_write_does_not_throw_away_the_work_of_an_interrupted_one(tmp_path: Path) -> None:
    with Index.build(corpus(3000, 3010), Hashes(), path := tmp_path / "index") as index:
        broken = Broken(4, interrupt)
        index._embedder = broken
        with pytest.raises(KeyboardInterrupt):
            index.add(corpus(0, 3000))
        index._embedder = Hashes()
        assert index.add([Passage("one", "more")]).added == 1
        assert index.add([Passage("one", "more")]).unchanged == 1
        assert (path / "unfinished").exists()
        assert index.add(corpus(0, 3000)).reused == broken.whole > 500
        assert not (path / "unfinished").exists()


def test_embeddings_that_the_index_has_do_not_linger(tmp_path: Path) -> None:
    """Killed between publishing and deleting them: the next write, though it changes nothing, tidies up."""
    with pytest.raises(KeyboardInterrupt):
        Index.build(corpus(0, 300), Broken(1, interrupt), path := tmp_path / "index")
    left = (path / "unfinished").read_bytes()
    with Index.build(corpus(0, 300), Hashes(), path) as index:
        (path / "unfinished").write_bytes(left)
        assert index.add(corpus(0, 300)).unchanged == 300
        assert not (path / "unfinished").exists()


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (poison(np.nan), "not finite"),
        (poison(np.inf), "not finite"),
        (lambda rows: rows[:-1], "shape"),
        (lambda rows: rows[:, :-1], "shape"),
        (lambda rows: np.concatenate([rows, rows]), "shape"),
        (lambda rows: rows.ravel(), "shape"),
    ],
)
def test_an_embedder_that_returns_nonsense(
    copy: Path, fail: Callable[[NDArray[np.float32]], Any], message: str
) -> None:
    with Index.open(copy, Hashes()) as index:
        before = state(index)
    with Index.open(copy, Broken(1, fail)) as index:
        with pytest.raises(RetrievalError, match=message):
            index.add(corpus(300, 900))
        assert state(index) == before
    with Index.open(copy, Hashes()) as index:
        assert state(index) == before
        change = index.add(corpus(300, 900))
        assert (change.reused, change.added) == (256, 600)
        assert index.search(next(iter(corpus(899, 900))).text, k=1)[0].score == 1


@pytest.mark.parametrize("shape", [(1, 16), (3, 16), (2, 15), (32,)])
def test_query_vectors_of_another_shape(copy: Path, shape: tuple[int, ...]) -> None:
    class Odd(Hashes):
        def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
            return np.ones(shape, np.float32) if len(texts) == 2 else super().encode(texts)

    with Index.open(copy, Odd()) as index:
        for mode in ("dense", "hybrid"):
            with pytest.raises(RetrievalError, match=r"shape|vectors for 2 queries"):
                index.search(["one", "two"], mode=mode)


def test_vectors_that_float16_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="exceeds what float16 holds"):
        Index.build(corpus(0, 9), Hashes(norm=1e6), tmp_path / "a", metric="ip", dtype="float16")
    with Index.build(corpus(0, 9), Hashes(norm=1e6), tmp_path / "b", metric="ip") as index:
        assert index.search("alpha 3 common delta", k=1)[0].passage.id == "p3"
    Index.open(tmp_path / "b", Hashes(norm=1e6)).close()


def test_callbacks_and_corpora_that_raise(copy: Path) -> None:
    def tell(skipped: Skipped) -> None:
        raise ZeroDivisionError(skipped.name)

    def items() -> Iterator[Passage]:
        yield from corpus(300, 310)
        raise ZeroDivisionError("p7")

    def progress(stage: str, done: int, total: int) -> None:
        raise ZeroDivisionError("p7")

    def add(passages: Iterable[Passage], **options: Any) -> None:
        with pytest.raises(ZeroDivisionError, match="p7"):
            index.add(passages, **options)
        assert state(index) == before
        assert {p.name for p in copy.iterdir()} <= {"CURRENT", "lock", "1", "unfinished"}

    with Index.open(copy, Hashes()) as index:
        before = state(index)
        add([*corpus(300, 310), Passage("p7", " ")], on_skip=tell)
        add(items())
        add(corpus(300, 310), on_progress=progress)
    assert all(finding.ok for finding in Index.verify(copy))


def test_a_full_disk(copy: Path) -> None:
    """FAISS itself says nothing when only the last block of its file finds no room."""
    with Index.open(copy, Hashes()) as index:
        before = state(index)
        index.add(corpus(300, 320))
        sizes = [entry["bytes"] for entry in index.info()["files"].values()]
        index.remove(passages=[f"p{n}" for n in range(300, 320)])
        assert state(index) == before
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    chance = random.Random(0)
    limits = [
        0,
        100,
        *(size - less for size in sizes for less in (1, 2000)),
        *(chance.randrange(99_999) for _ in "12345"),
    ]
    for limit in limits:
        generation = generations.pointer(copy)
        with Index.open(copy, Hashes()) as index:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                with pytest.raises(RetrievalError, match="could not be written") as caught:
                    index.add(corpus(300, 320))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert "Make room" in caught.value.hint
            assert state(index) == before
        assert generations.pointer(copy) == generation
        assert all(finding.ok for finding in Index.verify(copy))
    with Index.open(copy, Hashes()) as index:
        assert index.add(corpus(300, 320)).added == 20


def test_a_folder_that_cannot_be_written(copy: Path) -> None:
    with Index.open(copy, Hashes()) as index:
        (copy / "lock").unlink()
        (copy / "lock").mkdir()  # what permissions do, also to root
        with pytest.raises(RetrievalError, match="could not be written"):
            index.add(corpus(300, 310))
        assert len(state(index)[0]) == 300


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(copy: Path) -> None:
    copy.chmod(0o555)
    with Index.open(copy, Hashes()) as index, pytest.raises(RetrievalError, match="could not be written"):
        index.add(corpus(300, 310))
    copy.chmod(0o755)


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_file_of_unfinished_work(tmp_path: Path, seed: int) -> None:
    """Its embeddings are used up to the damage, or it is refused; never a wrong vector."""
    path, chance = tmp_path / "index", random.Random(seed)
    with pytest.raises(KeyboardInterrupt):
        Index.build(corpus(0, 600), Broken(1, interrupt), path)
    data = bytearray((path / "unfinished").read_bytes())
    place = chance.randrange(300) if seed % 2 else chance.randrange(len(data))
    data[place] ^= 1 << chance.randrange(8)
    (path / "unfinished").write_bytes(data[: chance.randrange(len(data))] if seed % 5 == 4 else data)
    try:
        index = Index.build(corpus(0, 600), Hashes(), path)
    except IndexMismatch:
        assert place < 300
        index = Index.build(corpus(0, 600), Hashes(), path, overwrite=True)
    with index, Index.build(corpus(0, 600), Hashes()) as fresh:
        assert state(index) == state(fresh)
