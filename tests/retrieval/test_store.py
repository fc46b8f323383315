"""What an index keeps through building, adding, replacing, removing and reopening."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckcontrol.errors import EmptyCorpus, RetrievalError
from ckcontrol.retrieval import Document, Index, Passage, Skipped, read
from ckcontrol.retrieval.store.manifest import digest_of
from ckcontrol.retrieval.store.writer import PENDING
from ckcontrol.retrieval.writing import Change

from .hashes import Hashes, corpus, state


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Index]:
    with Index.build(corpus(0, 40), Hashes(), tmp_path / "index") as index:
        yield index


def counted(change: Change | None) -> dict[str, int]:
    assert change is not None
    return {name: count for name, count in vars(change).items() if count}


def test_reopened_it_is_the_same(small: Index) -> None:
    with Index.open(small.path, Hashes()) as again, Index.build(corpus(0, 40), Hashes()) as temporary:
        assert state(again) == state(small) == state(temporary)
        assert list(again.passages()) == list(corpus(0, 40))
        folder = temporary.path
        assert folder.exists()
    assert not folder.exists()


def test_info_is_the_manifest(small: Index) -> None:
    info = json.loads(json.dumps(small.info()))
    assert (info["generation"], info["kind"], info["rows"], info["texts"], info["passages"]) == (1, "flat", 36, 36, 40)
    assert info["documents"] == 40
    assert info["settings"] == {
        "metric": "cosine", "dtype": "float32", "kind": "auto", "chunk_size": None, "overlap": 32,
        "text_field": None, "encoding": None,
    }  # fmt: skip
    assert info["bytes"] == sum(p.stat().st_size for p in (small.path / "1").iterdir() if p.name != "manifest.json")
    assert len(small) == 36
    small.add(corpus(100, 101))
    assert small.info()["created"] == info["created"]
    assert small.info()["generation"] == 2


def test_added_replaced_unchanged_and_folded(small: Index) -> None:
    assert counted(small.change) == {"added": 40, "folded": 4, "embedded": 36}
    assert counted(small.add(corpus(0, 40))) == {"unchanged": 40}
    assert small.info()["generation"] == 1, "nothing changed, nothing is written"
    change = small.add([*corpus(30, 42), Passage("p1", "new text", "s1"), Passage("copy", "new text")])
    assert counted(change) == {"unchanged": 10, "added": 3, "replaced": 1, "embedded": 3, "folded": 1}
    assert small.search("new text", k=1)[0].passage.id == "p1", "the first of equal texts"
    assert counted(small.remove(passages=["p1"])) == {"removed": 1}
    assert small.search("new text", k=1)[0].passage.id == "copy"
    assert small.search("new text", k=1, mode="bm25")[0].score > 0
    assert all(finding.ok for finding in Index.verify(small.path))


@pytest.mark.parametrize("change", [{"source": ""}, {"metadata": {"n": 1}}, {"metadata": {"n": True}}])
def test_a_change_beside_the_text_replaces_without_embedding(small: Index, change: dict[str, Any]) -> None:
    (old,) = corpus(3, 4)
    new = Passage(old.id, old.text, **{"source": old.source, "metadata": old.metadata, **change})
    assert counted(small.add([new])) == {"replaced": 1}
    (hit,) = small.search(old.text, k=1)
    assert hit.passage == new
    assert [type(value) for value in hit.passage.metadata.values()] == [type(v) for v in new.metadata.values()]


@pytest.mark.parametrize("name", ["notes.txt", "1/ann.faiss", "1/x.py", "2024/letter.txt", ".hidden", "texts.sqlite"])
def test_verify_names_what_somebody_added(small: Index, name: str) -> None:
    with Index.open(small.path, Hashes()) as held:
        small.add(corpus(40, 50))
        assert (small.path / "1").exists(), "another generation is no stranger while a reader holds it"
        assert all(finding.ok for finding in Index.verify(small.path))
        name = name.replace("1/", "2/")
        (small.path / name).parent.mkdir(exist_ok=True)
        (small.path / name).write_text("mine")
        files = Index.verify(small.path)[0]
        shown = "2024" if name.startswith("2024") else name
        assert (files.ok, files.check) == (False, "files") and repr(shown) in files.detail
        assert len(held) == 36


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("together", [True, False])
def test_an_id_in_two_files_takes_no_ones_place(tmp_path: Path, suffix: str, together: bool) -> None:
    """Not within one write, and not from one write to the next; the same file's record may change."""

    def table(name: str, text: str) -> str:
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            pyarrow = pytest.importorskip("pyarrow")
            parquet.write_table(pyarrow.table({"id": [1], "text": [text], "url": ["http://a"]}), path)
        elif suffix == ".jsonl":
            path.write_text(json.dumps({"id": 1, "text": text}))
        else:
            path.write_text("id\ttext\n1\t" + text if suffix == ".tsv" else f"id,text\n1,{text}\n")
        return path.as_posix()

    shop, hotel = table("shop", "Refunds take a week"), table("hotel", "Check in at noon")
    told: list[Skipped] = []
    first = read([shop, hotel] if together else shop)
    with Index.build(first, Tokenized(), on_skip=told.append) as index:
        if not together:
            assert index.add(read(hotel), on_skip=told.append).skipped == 1
        assert [passage.text for passage in index.passages()] == ["Refunds take a week"]
        assert [one.name for one in told] == ["1"]
        assert all(part in told[0].reason for part in (repr(shop), repr(hotel), "'1'", "their own ids", "remove"))
        with pytest.raises(RetrievalError, match="which one from") as caught:
            index.add(read(hotel))
        assert "remove that first" in (caught.value.hint or "")
        table("shop", "Refunds take a month")
        assert counted(index.add(read(shop))) == {"replaced": 1, "embedded": 1}
        index.remove(documents=["1"])
        assert index.add(read(hotel)).added == 1


def test_an_id_from_another_source_takes_no_ones_place(small: Index) -> None:
    with pytest.raises(RetrievalError, match="'hotel' has a passage with the id 'p1', which one from 's1' has"):
        small.add([Passage("p1", "other", "hotel")])
    with pytest.raises(RetrievalError, match=r"'b.md' has a document with the id 'x', which one from 'a.md' has"):
        small.add([Passage("x", "a", metadata={"path": "a.md"}), Document("x", "b", metadata={"path": "b.md"})])
    assert small.info()["generation"] == 1


def test_removing_and_adding_again(small: Index) -> None:
    before = state(small)
    assert small.remove(documents=["p1", "p1"], passages=["p2"], where={"n": [3, 4]}).removed == 4
    assert {"p1", "p2", "p3", "p4"}.isdisjoint(passage.id for passage in small.passages())
    assert counted(small.add(corpus(0, 40))) == {"added": 4, "embedded": 4, "unchanged": 36}
    assert sorted(state(small)[0]) == sorted(before[0])
    assert small.remove(where={"n": {"$gte": 0}}).removed == 40
    assert (len(small), small.search("alpha", mode="hybrid"), list(small.passages())) == (0, [], [])
    small.add(corpus(0, 40))
    assert state(small) == before, "as if it were built now"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({}, "nothing to remove"),
        ({"passages": ["p1", "nobody"]}, "no passage 'nobody'"),
        ({"documents": ["\ud800"]}, "no document"),
        ({"passages": ["\ud800"]}, "no passage"),
        ({"documents": "p1"}, "single text"),
        ({"where": {}}, "nothing to remove"),
    ],
)
def test_what_cannot_be_removed(small: Index, what: dict[str, Any], message: str) -> None:
    with pytest.raises(RetrievalError, match=message):
        small.remove(**what)
    assert small.info() == {**small.info(), "generation": 1, "passages": 40}
    assert not (small.path / "2").exists()


STRANGE = ["", " ", "a'b", 'a"b', "a\nb", "\\\\u0000", "é", "e\u0301", "\u202e", "x" * 5000, "1", "..", "%00", "NULL"]


def test_strange_ids_texts_and_sources(tmp_path: Path) -> None:
    passages = [Passage(f"{s}#", f"{s}text{n}", s, {s: s, "list": [1, None]}) for n, s in enumerate(STRANGE)]
    with Index.build(passages, Hashes(), tmp_path / "a ?#%41'é") as index:
        assert list(index.passages()) == passages
        assert index.search("1text10", k=1)[0].passage == passages[10]
        for passage in passages:
            assert counted(index.remove(passages=[passage.id])) == {"removed": 1}
        assert list(index.passages()) == []
        assert all(finding.ok for finding in Index.verify(index.path))


BAD: list[tuple[Any, str]] = [
    (Passage("", "x"), "id of passage '' is not text"),
    (Passage(None, "x"), "id of passage None is not text"),  # type: ignore[arg-type]
    (Passage("a", 7), "text of passage 'a' is not text: 7"),  # type: ignore[arg-type]
    (Passage("a", "x", None), "source of passage 'a' is not text: None"),  # type: ignore[arg-type]
    (Passage("a\0b", "x"), "id of passage .* is not text"),
    (Passage("a", "x\0y"), "text of passage 'a' is not text"),
    (Passage("a", "x", "s\0"), "source of passage 'a' is not text"),
    (Passage("a", "x", metadata={"k": "a\0b"}), "NUL"),
    (Passage("a", "x", metadata={"k\0": 1}), "NUL"),
    (Passage("a", "x", metadata={"k": ["\\", {"in": "\\\0"}]}), "NUL"),
    (Document("a", "x", metadata={"k": {"in\0": 1}}), "NUL"),
    (Passage("a", "half \ud800"), "text of passage 'a' is not text"),
    (Passage("\udfff", "x"), "id of passage .* is not text"),
    (Passage("a", "x", "\ud800"), "source of passage 'a' is not text"),
    (Passage("a", "x", metadata={"k": "\ud800"}), "metadata of passage 'a' cannot be kept"),
    (Passage("a", "x", metadata={"k": float("nan")}), "metadata of passage 'a' cannot be kept"),
    (Passage("a", "x", metadata={1: 2}), "metadata of passage 'a' cannot be kept"),  # type: ignore[dict-item]
    (Passage("a", "x", metadata={"k": object()}), "metadata of passage 'a' cannot be kept"),
    (Passage("a", "x", metadata=7), "metadata of passage 'a' cannot be kept"),  # type: ignore[arg-type]
    (Document("a", "\u2003\n"), "document 'a' has no text"),
    (Passage("p1", "other"), "'p1' occurs twice"),
]


@pytest.mark.parametrize(("item", "message"), BAD)
def test_what_cannot_be_kept_is_told_or_raised(tmp_path: Path, item: Any, message: str) -> None:
    with pytest.raises(RetrievalError, match=message):
        Index.build([*corpus(0, 5), item], Hashes(), tmp_path)
    assert not (tmp_path / "CURRENT").exists()
    told: list[Skipped] = []
    with Index.build([*corpus(0, 5), item, *corpus(5, 7)], Hashes(), tmp_path, on_skip=told.append) as index:
        assert [passage.id for passage in index.passages()] == [f"p{n}" for n in range(7)]
        assert counted(index.change)["skipped"] == len(told) == 1
    json.dumps([told[0].name, told[0].reason]).encode()
    told[0].name.encode()
    told[0].reason.encode()


def test_an_id_twice_far_apart_in_one_write(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match="'p3' occurs twice"):
        Index.build([*corpus(0, PENDING + 5), *corpus(3, 4, "omega")], Hashes(), tmp_path)
    Index.build(corpus(0, 5), Hashes(), tmp_path).close()
    with Index.open(tmp_path, Hashes()) as index, pytest.raises(RetrievalError, match="'p3' occurs twice"):
        index.add([*corpus(3, 4, "omega"), *corpus(5, PENDING + 9), *corpus(3, 4, "psi")])


class Tokenized(Hashes):
    """Has what documents are cut by: a token is a word."""

    window = 12

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = self

    @property
    def backend_tokenizer(self) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers

        core = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return core

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return 2


def article(name: str, *words: str, **metadata: Any) -> Document:
    return Document(name, " ".join(f"{word} of {name}." for word in words), f"{name}.txt", metadata)


def test_documents_are_cut_found_replaced_and_removed() -> None:
    letters = "alpha beta gamma delta epsilon zeta eta theta".split()
    with Index.build([article("a", *letters, year=7), article("b", "beta")], Tokenized(), overlap=0) as index:
        cut = [passage for passage in index.passages() if passage.metadata["document"] == "a"]
        assert len(cut) > 2
        assert [passage.id for passage in cut] == [f"a#{n}" for n in range(len(cut))]
        assert all(passage.metadata["year"] == 7 and passage.source == "a.txt" for passage in cut)
        assert index.info()["documents"] == 2
        assert {h.passage.id for h in index.search("x", k=99, where={"document": "a"})} == {p.id for p in cut}
        assert counted(index.add([article("a", *letters, year=7)])) == {"unchanged": 1}
        assert index.remove(passages=["a#0"]).removed == 1
        change = index.add([article("a", *letters, year=7), article("b", "gamma")])
        assert (change.replaced, change.unchanged, change.embedded) == (2, 0, 2), "a lacked a passage, b changed"
        assert counted(index.add([Passage("a", "a passage now")])) == {"replaced": 1, "embedded": 1}
        assert [passage.id for passage in index.passages()] == ["b#0", "a"]
        assert index.remove(documents=["a", "b"]).removed == 2
        assert index.info()["documents"] == 0


def test_documents_that_cannot_be_cut_are_told_or_raised(small: Index) -> None:
    bad = [article("start", "x", start=1), Document("half", "\ud800"), Document("blank", " "), Document("", "x")]
    for document in bad:
        with pytest.raises(RetrievalError):
            Index.build([document], Tokenized())
    told: list[Skipped] = []
    with Index.build([article("a", "x"), *bad, article("b", "y")], Tokenized(), on_skip=told.append) as index:
        assert [skipped.name for skipped in told] == ["start", "half", "blank", ""]
        assert [passage.id for passage in index.passages()] == ["a#0", "b#0"]
        assert (index.change and index.change.added, index.change and index.change.skipped) == (2, 4)
    with pytest.raises(RetrievalError, match="no tokenizer and window"):
        small.add([article("a", "x")], on_skip=told.append)


@pytest.mark.parametrize(
    "options", [{"chunk_size": n} for n in (0, -1, True, 7.0, "9", 11)] + [{"overlap": n} for n in (-1, None, "1")]
)
def test_bad_sizes(options: dict[str, Any]) -> None:
    with pytest.raises(RetrievalError, match=r"is not a number of tokens|exceeds the 10 tokens"):
        Index.build([article("a", "x")], Tokenized(), **options)


def test_a_removal_shares_the_vectors_of_the_generation_before(small: Index) -> None:
    with Index.open(small.path, Hashes()) as holder:
        before = state(holder)
        small.remove(passages=["p5"])
        assert os.path.samefile(small.path / "1/vectors.faiss", small.path / "2/vectors.faiss")
        small.add(corpus(60, 70))
        assert state(holder) == before
    small.remove(passages=["p6"])
    assert sorted(item.name for item in small.path.iterdir()) == ["4", "CURRENT", "lock"]
    assert all(finding.ok for finding in Index.verify(small.path))


def test_building_over_an_index(small: Index) -> None:
    with pytest.raises(RetrievalError, match="there is an index"):
        Index.build(corpus(0, 3), Hashes(), small.path)
    before = state(small)
    with pytest.raises(EmptyCorpus, match="corpus is empty"):
        Index.build([], Hashes(), small.path, overwrite=True)
    with Index.open(small.path, Hashes()) as index:
        assert state(index) == before
    with Index.build(corpus(50, 60), Hashes(), small.path, overwrite=True, dtype="float16") as new:
        assert state(small) == before, "an open index stays what it is"
        assert small.refresh() is True
        assert small.refresh() is False
        assert state(small) == state(new)
    (small.path / "CURRENT").write_text("rubbish")
    Index.build(corpus(0, 3), Hashes(), small.path, overwrite=True).close()
    assert all(finding.ok for finding in Index.verify(small.path))


def test_passages_are_read_from_one_generation(small: Index) -> None:
    waiting, reading = small.passages(), small.passages()
    first = next(reading)
    with Index.open(small.path, Hashes()) as other:
        other.remove(where={"n": {"$gte": 1}})
        other.add(corpus(0, 2, "omega"))
    small.refresh()
    assert [first, *reading] == list(corpus(0, 40))
    assert [passage.text for passage in waiting] == [passage.text for passage in corpus(0, 2, "omega")]


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "remove"]), st.dictionaries(st.integers(0, 12), st.integers(0, 5))),
    max_size=6,
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS)
def test_any_history_is_like_building_what_is_left(actions: list[tuple[str, dict[int, int]]]) -> None:
    """A dict is the model; texts are shared often, so they die and come back."""
    model = {"keep": "text 99"}
    with Index.build([Passage("keep", "text 99")], Hashes()) as index:
        for action, chosen in actions:
            if action == "add":
                index.add(Passage(f"d{name}", f"text {text}") for name, text in chosen.items())
                model |= {f"d{name}": f"text {text}" for name, text in chosen.items()}
            elif gone := [f"d{name}" for name in chosen if f"d{name}" in model]:
                assert index.remove(documents=gone).removed == len(gone)
                model = {name: text for name, text in model.items() if name not in gone}
            assert {p.id: p.text for p in index.passages()} == model
            assert len(index) == len(set(model.values()))
            for mode in ("dense", "bm25", "hybrid"):
                hits = index.search("text 3", k=50, mode=mode)
                assert sorted(hit.passage.text for hit in hits) == sorted(set(model.values()))
                assert all(model[hit.passage.id] == hit.passage.text for hit in hits)
        assert all(finding.ok for finding in Index.verify(index.path)), Index.verify(index.path)


@pytest.mark.parametrize(
    ("check", "damage"),
    [
        ("texts", "DELETE FROM passages WHERE id = 'p3'"),
        ("words", "UPDATE texts SET text = 'other words' WHERE num = 3"),
        ("counts", "DELETE FROM documents WHERE id = 'p3'"),
        ("counts", "UPDATE texts SET num = 99 WHERE num = 3; UPDATE passages SET num = 99 WHERE num = 3"),
    ],
)
def test_verify_sees_what_digests_do_not(small: Index, check: str, damage: str) -> None:
    """Files that agree with their digests and not with one another."""
    texts, manifest = small.path / "1/texts.sqlite", small.path / "1/manifest.json"
    link = sqlite3.connect(texts)
    link.executescript(damage)
    link.close()
    data = json.loads(manifest.read_bytes())
    data["files"]["texts.sqlite"] = digest_of(texts)
    manifest.write_text(json.dumps(data))
    (small.path / "CURRENT").write_text(f"1 {digest_of(manifest)['sha256']}\n")
    findings = {finding.check: finding for finding in Index.verify(small.path)}
    assert not findings[check].ok, findings
    assert findings["vectors"].ok


LEAKS = """
import gc, os, sys
sys.path.insert(0, {tests!r})
from hashes import Hashes, corpus, state
from ckcontrol.errors import RetrievalError
from ckcontrol.retrieval import Index

def work():
    with Index.build(corpus(0, 30), Hashes(), {path!r}, overwrite=True) as index:
        for n in range(3):
            index.add(corpus(30 + n, 31 + n))
            state(index)
            next(index.passages())
        twice = [*corpus(99, 100), *corpus(99, 100)]
        for wrong in (lambda: index.add(twice), lambda: Index.open(index.path, Hashes("x"))):
            try:
                wrong()
            except RetrievalError:
                pass
    index = Index.build(corpus(0, 30), Hashes())
    state(index)
    del index
    gc.collect()

work()
before = len(os.listdir("/proc/self/fd"))
for _ in range(4):
    work()
print(len(os.listdir("/proc/self/fd")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_nothing_is_left_open(tmp_path: Path) -> None:
    """No descriptor, no connection, no warning: in a process that turns warnings into errors."""
    code = LEAKS.format(tests=str(Path(__file__).parent), path=str(tmp_path / "index"))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), [line for line in done.stderr.splitlines() if "swig" not in line.lower()]) == ("0", [])


def test_a_closed_index_says_so() -> None:
    index = Index.build([Passage("a", "gold")], Hashes())
    index.close()
    with pytest.raises(RetrievalError, match="is closed"):
        index.search("gold")


def test_a_passage_id_that_another_document_has() -> None:
    told: list[Skipped] = []
    items = [article("a", "x"), Passage("a#0", "moon"), Passage("b", "king")]
    with Index.build(items, Tokenized(), on_skip=told.append) as index:
        assert [skipped.name for skipped in told] == ["a#0"] and "document 'a' has it" in told[0].reason
        assert len(index) == 2
        with pytest.raises(RetrievalError, match="occurs twice"):
            index.add([Passage("a#0", "moon")])
        assert index.remove(documents=["a"]).removed == 1
        assert index.add([Passage("a#0", "moon")]).added == 1
