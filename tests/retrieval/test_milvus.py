"""The index over Milvus, with the real embedded engine: what it finds, keeps, replaces, forgets and refuses.

`Words` is a small but exact encoder (one axis a word), so that every score is known by hand.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from ckcontrol.errors import EmptyCorpus, IndexMismatch, MissingExtra, RetrievalError
from ckcontrol.retrieval import Hit, Passage
from ckcontrol.retrieval.milvus.index import MilvusIndex
from ckcontrol.retrieval.types import Document, Skipped

AXES = ["river", "city", "bridge", "salt", "gold", "moon", "ocean", "king"]


class Words:
    """Counts of known words, normalised. Counts what it embeds."""

    def __init__(self, axes: Sequence[str] = AXES) -> None:
        self.axes = list(axes)
        self.dim = len(self.axes)
        self.embedded: list[str] = []

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        self.embedded += [] if query else texts
        counts = np.array([[text.lower().split().count(axis) for axis in self.axes] for text in texts], np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


class Cutting(Words):
    """`Words` with a tokenizer of one token a word."""

    window = 8

    @property
    def tokenizer(self) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        core = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")


Build = Callable[..., MilvusIndex]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """A function from items to an index of them in `tmp_path`; all are closed afterwards."""
    made: list[MilvusIndex] = []

    def _build(items: Any, embedder: Any = None, **options: Any) -> MilvusIndex:
        made.append(MilvusIndex.build(items, embedder or Words(), tmp_path / "index.db", **options))
        return made[-1]

    yield _build
    for index in made:
        index.close()


def corpus(*texts: str) -> list[Passage]:
    return [Passage(f"p{number}", text) for number, text in enumerate(texts)]


def ids(hits: list[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


# --- searching ---------------------------------------------------------------------------------------------------


def test_order_score_rank_and_what_a_passage_holds(build: Build) -> None:
    kept = Passage("ü\"'\\", "river city", "a 'title'", {"n": None, "big": 2**70, "l": [1, {"x": "\\u0000"}], "f": 1.5})
    index = build([Passage("a", "salt"), kept, Passage("c", "river river city bridge")])
    hits = index.search("river city", k=9)
    assert hits[0] == Hit(kept, 1.0, 1)
    assert [hit.passage.id for hit in hits[1:]] == ["c", "a"]
    assert [hit.score for hit in hits[1:]] == pytest.approx([3 / 12**0.5, 0], abs=1e-6)
    assert index.search(["salt", "bridge"], k=1) == [index.search("salt", k=1), index.search("bridge", k=1)]
    assert index.search([]) == []


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_the_same_as_a_full_sort(build: Build, metric: str) -> None:
    """Random passages, more than one batch of them: order, ties and scores are those of sorting everything."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(AXES, 6)) + f" n{number}" for number in range(700)]
    index = build(corpus(*texts), metric=metric)
    words = Words()
    assert len(index) == 700
    for query in ("river moon", "king gold gold", "salt"):
        scores = (words.encode(texts) @ words.encode([query])[0]).round(6)
        expected = sorted(range(700), key=lambda place: (-scores[place], place))[:25]
        hits = index.search(query, k=25)
        assert ids(hits) == [f"p{place}" for place in expected]
        assert [hit.score for hit in hits] == pytest.approx(scores[expected].tolist(), abs=1e-6)


@pytest.mark.parametrize("k", [1, 9, 39, 40])
def test_ties_keep_corpus_order_at_every_k(build: Build, k: int) -> None:
    texts = [f"gold n{number}" for number in range(40)]
    hits = build(corpus("salt", *texts)).search("gold", k=k)
    assert [hit.passage.text for hit in hits] == texts[:k]


def test_equal_texts_are_embedded_and_found_once(build: Build) -> None:
    words = Words()
    copies = [Passage(f"c{number}", "gold", metadata={"lang": f"l{number}"}) for number in range(30)]
    index = build([*copies[:20], Passage("s", "salt gold")], words)
    change = index.add(copies[20:])
    assert (words.embedded.count("gold"), change.folded, change.embedded) == (1, 10, 0)
    assert ids(index.search("gold", k=3)) == ["c0", "s"]
    assert ids(index.search("gold", k=3, where={"lang": ["l25", "l7"]})) == ["c7"]
    assert len(index) == 31
    index.remove(passages=["c0"])
    assert ids(index.search("gold", k=1)) == ["c1"]


def test_where(build: Build) -> None:
    index = build([Passage(f"p{n}", f"gold {n}", metadata={"year": 1990 + n, "odd": n % 2 == 1}) for n in range(20)])
    assert ids(index.search("gold", k=2, where={"year": {"$gte": 2000, "$ne": 2001}})) == ["p10", "p12"]
    assert ids(index.search("gold", k=2, where={"odd": True, "id": ["p3", "p4"]})) == ["p3"]
    assert index.search("gold", where={"year": "1999"}) == [] and index.unmet({"year": "1999"}) == ""
    assert index.unmet({"yaer": 1}).startswith("No passage has 'yaer' to filter by. Did you mean 'year'?")
    with pytest.raises(RetrievalError, match="operator"):
        index.search("gold", where={"year": {"$near": 3}})


def test_a_reranker_orders_anew(build: Build) -> None:
    class Length:
        def score(self, query: str, texts: Sequence[str]) -> list[float]:
            return [len(text) for text in texts]

    index = build(corpus("gold", "gold gold gold", "salt and nothing but salt"))
    assert ids(index.search("gold", k=1)) == ["p0"]
    assert ids(index.search("gold", k=2, reranker=Length())) == ["p2", "p1"]


def test_hnsw(build: Build) -> None:
    index = build(corpus(*[f"gold n{number}" for number in range(50)], "moon"), kind="hnsw")
    assert index.info()["kind"] == "hnsw"
    assert ids(index.search("moon", k=1, effort=200)) == ["p50"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "bm25"}, "mode='bm25' is not for Milvus"),
        ({"mode": "hybrid"}, "not for Milvus"),
        ({"k": 0}, "k=0 is not a positive"),
        ({"k": True}, "not a positive"),
        ({"k": 20_000}, "at most 16384"),
        ({"effort": -1}, "effort=-1"),
        ({"queries": " "}, "asks nothing"),
    ],
)
def test_bad_questions(build: Build, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RetrievalError, match=message):
        build(corpus("gold")).search(**{"queries": "gold", **options})


# --- changing ----------------------------------------------------------------------------------------------------


def test_documents_are_cut_replaced_and_removed(build: Build) -> None:
    words = Cutting()
    text = "The king has gold. " * 6
    index = build([Document("a", text, "A", {"year": 1}), Document("b", "Salt of the ocean.")], words, overlap=0)
    assert len(index) == 7
    first = index.search("king gold", k=1)[0].passage
    assert (first.id, first.source, first.metadata["year"], first.metadata["document"]) == ("a#0", "A", 1, "a")
    assert text[first.metadata["start"] : first.metadata["end"]] == first.text

    words.embedded.clear()
    change = index.add([Document("a", text, "A", {"year": 1}), Document("b", "A moon over the ocean.")])
    assert (change.unchanged, change.replaced, change.added, words.embedded) == (1, 1, 0, ["A moon over the ocean."])
    change = index.add([Document("a", "The king has gold.", "A", {"year": 2})])
    assert (change.replaced, change.embedded, len(index)) == (1, 0, 2)
    assert index.search("king", k=1)[0].passage.metadata["year"] == 2
    assert index.search("salt", k=5)[0].score == 0

    assert index.remove(documents=["a"]).removed == 1
    assert ids(index.search("king", k=5)) == ["b#0"]


def test_an_interrupted_build_goes_on_where_it_was(build: Build, tmp_path: Path) -> None:
    """The third batch never comes. What had arrived is there; the same items again embed only the rest."""

    def breaking() -> Iterator[Passage]:
        for number in range(1300):
            if number == 1100:
                raise KeyboardInterrupt
            yield Passage(str(number), f"gold {number}")

    with pytest.raises(KeyboardInterrupt):
        build(breaking())
    words = Words()
    with MilvusIndex.open(tmp_path / "index.db", words) as index:
        arrived = len(index)
        assert arrived == 1024 // 512 * 512
        change = index.add(Passage(str(number), f"gold {number}") for number in range(1300))
        assert (change.unchanged, change.added, len(index)) == (arrived, 1300 - arrived, 1300)
        assert len(words.embedded) == 1300 - arrived + 1  # and the text its identity is told by
        assert index.add([Passage("7", "gold 7")]).unchanged == 1


def test_a_document_half_of_which_is_missing_is_written_again(build: Build) -> None:
    text = "The king has gold. " * 3 + "Salt of the ocean. "
    index = build([Document("a", text)], Cutting(), overlap=0)
    index.remove(passages=["a#1"])
    assert len(index) == 3
    assert index.add([Document("a", text)]).replaced == 1
    assert len(index) == 4


def test_remove_by_metadata_and_unknown_names(build: Build) -> None:
    index = build([Passage(f"p{n}", f"gold {n}", metadata={"year": n}) for n in range(10)])
    assert index.remove(where={"year": {"$lt": 4}}).removed == 4
    assert index.remove(passages=["p4"], documents=["p5"]).removed == 2
    for unknown in ({"documents": ["p9", "p0"]}, {"passages": ["p9", 'x" or key != "']}):
        with pytest.raises(RetrievalError, match="there is no"):
            index.remove(**unknown)
    assert len(index) == 4, "nothing goes when one name is unknown"
    for nothing in ({}, {"documents": "p9"}):
        with pytest.raises(RetrievalError, match=r"nothing to remove|single text"):
            index.remove(**nothing)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Passage("x", " \n"), "has no text"),
        (Passage("p0", "other"), "occurs twice"),
        (Passage("p0", "other", "b.csv"), "'b.csv' has a passage with the id 'p0', which one from 'a.csv' has"),
        (Passage("x", "ü" * 33_000), "text of more than 65535 bytes"),
        (Passage("x", "gold", metadata={"a": "b" * 70_000}), "metadata of more than 65535 bytes"),
        (Passage("x", "gold", metadata={"a": float("nan")}), "cannot be kept"),
        (Passage("x", "gold", metadata={"a": {"b": ["\0"]}}), "NUL"),
        (Passage("x", "gold\0"), "is not text: 'gold"),
        (Passage("x", "gold \ud800"), "is not text: 'gold"),
        (Passage("", "gold"), "not text"),
        (Document("x", "gold", metadata={"start": 1}), "reserved"),
    ],
)
def test_what_is_left_out_is_told_or_raised(build: Build, bad: Any, reason: str) -> None:
    skipped: list[Skipped] = []
    index = build([Passage("p0", "gold", "a.csv"), bad, Passage("p1", "salt")], Cutting(), on_skip=skipped.append)
    assert len(index) == 2
    assert [(one.name, reason in one.reason) for one in skipped] == [(bad.id, True)]
    with pytest.raises(RetrievalError, match=reason):
        index.add([Passage("p2", "moon"), Passage("p0", "gold", "a.csv"), bad])


def test_progress(build: Build) -> None:
    told: list[tuple[str, int, int]] = []
    build((Passage(str(n), f"gold {n}") for n in range(600)), on_progress=lambda *step: told.append(step))
    assert told == [("Texts", 512, 0), ("Embedding", 512, 0), ("Texts", 600, 0), ("Embedding", 600, 0)]


def test_a_corpus_of_nothing(build: Build) -> None:
    for items in ([], [Passage("a", " ")]):
        with pytest.raises(EmptyCorpus, match="corpus is empty"):
            build(items, on_skip=lambda skipped: None)
    assert len(build(corpus("gold"))) == 1, "no empty collection is left behind"


# --- opening -----------------------------------------------------------------------------------------------------


def test_reopened_by_another_process(build: Build, tmp_path: Path) -> None:
    """Closed here, opened there: same hits. Open here, it is refused there."""
    index = build(corpus("gold", "salt gold", "moon"))
    expected = [[hit.passage.id, hit.score] for hit in index.search("gold", k=3)]
    code = f"""if True:
        import json, sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from tests.retrieval.test_milvus import MilvusIndex, Words
        with MilvusIndex.open({str(tmp_path / "index.db")!r}, Words()) as index:
            print(json.dumps([[hit.passage.id, hit.score] for hit in index.search("gold", k=3)]))
    """
    run = [sys.executable, "-W", "error", "-c", code]
    locked = subprocess.run(run, capture_output=True, text=True)
    assert "IndexLocked" in locked.stderr and "open in another process" in locked.stderr
    assert "DataDirLockedError: another" not in locked.stderr.split("Traceback")[-1]
    index.close()
    done = subprocess.run(run, capture_output=True, text=True)
    assert (json.loads(done.stdout or "null"), done.stderr) == (expected, "")


def test_two_in_one_process_and_after_closing(build: Build, tmp_path: Path) -> None:
    index = build(corpus("gold"))
    other = MilvusIndex.open(tmp_path / "index.db", Words())
    index.add(corpus("gold", "salt"))
    assert len(other) == 2
    index.close()
    assert len(other) == 2
    other.close()
    other.close()
    with pytest.raises(RetrievalError, match="is closed"):
        len(other)


def test_another_embedder_is_refused(build: Build, tmp_path: Path) -> None:
    build(corpus("gold"))
    for words, field in ((Words(AXES[:5]), "dim"), (Words(AXES[1:] + AXES[:1]), "fingerprint")):
        with pytest.raises(IndexMismatch) as caught:
            MilvusIndex.open(tmp_path / "index.db", words)
        assert caught.value.field == field


def test_foreign_collections_are_refused(build: Build, tmp_path: Path) -> None:
    index = build(corpus("gold"))
    client = index._client
    with pytest.raises(RetrievalError, match=r"no collection 'ckcontrl'.*Did you mean 'ckcontrol'"):
        MilvusIndex.open(tmp_path / "index.db", Words(), collection="ckcontrl")
    with pytest.raises(RetrievalError, match=r"'ckcontrol' at .* already"):
        build(corpus("gold"))
    client.call("create_collection", "foreign", dimension=8)
    saved = json.loads(client.call("describe_collection", "ckcontrol")["properties"]["ckcontrol"])
    changes = {"format": {"format": 2}, "metric": {"metric": "l2"}, "dim": {"embedder": saved["embedder"] | {"dim": 5}}}
    for field, change in {"foreign": {}, **changes}.items():
        name = "foreign" if field == "foreign" else "ckcontrol"
        if change:
            client.call("alter_collection_properties", name, properties={"ckcontrol": json.dumps(saved | change)})
        with pytest.raises(IndexMismatch) as caught:
            MilvusIndex.open(tmp_path / "index.db", Words(), collection=name)
        assert caught.value.field == ("format" if field == "foreign" else field)


def test_paths_that_hold_no_database(tmp_path: Path) -> None:
    (tmp_path / "file.db").write_bytes(b"SQLite format 3\x00" * 9)
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "folder.db" / "notes.txt").write_text("mine")
    for name, message in {
        "file.db": "is a file",
        "folder.db": "not a Milvus database",
        "x.txt": "not a Milvus address",
    }.items():
        with pytest.raises(RetrievalError, match=message):
            MilvusIndex.open(tmp_path / name, Words())
        with pytest.raises(RetrievalError, match=message):
            MilvusIndex.build(corpus("gold"), Words(), tmp_path / name)
    with pytest.raises(RetrievalError, match="there is no Milvus database"):
        MilvusIndex.open(tmp_path / "absent.db", Words())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file.db", "folder.db", "notes.txt"]


def test_servers_that_do_not_answer(capfd: pytest.CaptureFixture[str]) -> None:
    """A closed port, and one that takes the connection but never says a word."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        for port in (1, mute.getsockname()[1]):
            with pytest.raises(
                RetrievalError, match=f"no connection to Milvus at http://127.0.0.1:{port}: .*Check"
            ) as e:
                MilvusIndex.open(f"http://me:secret@127.0.0.1:{port}", Words(), timeout=1.0)
            assert "secret" not in str(e.value)
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(MissingExtra, match=r"pymilvus.*\[milvus\]"):
        MilvusIndex.open(tmp_path / "index.db", Words())


def test_info_and_bad_options(build: Build, tmp_path: Path) -> None:
    info = build(corpus("gold", "salt")).info()
    assert json.loads(json.dumps(info)) == info
    assert (info["passages"], info["metric"], info["kind"], info["embedder"]["dim"]) == (2, "cosine", "flat", 8)
    assert (info["uri"], info["collection"]) == (str(tmp_path / "index.db"), "ckcontrol")
    for option in ({"metric": "l2"}, {"kind": "ivf"}):
        with pytest.raises(RetrievalError, match="is unknown"):
            MilvusIndex.build(corpus("gold"), Words(), tmp_path / "other.db", **option)


def test_importing_is_light() -> None:
    heavy = ["torch", "numpy", "pymilvus", "grpc", "pandas", "faiss"]
    code = f"import sys, ckcontrol.retrieval.milvus; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
