"""Questions beside an index: found by them, kept with their texts, written once, and damaged ones refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from ckcontrol.errors import IndexLocked, IndexMismatch, RetrievalError
from ckcontrol.retrieval import Index, MilvusIndex, Passage, write_questions
from ckcontrol.retrieval.store import generations
from ckcontrol.retrieval.store.asked import Asked
from ckcontrol.retrieval.store.vectors import EXACT, Rows, Vectors, new_exact, write


class Letters:
    """An embedder: how often each letter stands in a text."""

    dim = 26
    name = "letters"

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def encode(self, texts: Sequence[str], *, query: bool = False) -> np.ndarray:
        counts = [[text.lower().count(chr(97 + (i + self.shift) % 26)) for i in range(26)] for text in texts]
        return np.array(counts, np.float32)


PASSAGES = [
    Passage("a", "bcd bcd", metadata={"lang": "en"}),
    Passage("b", "efg efg", metadata={"lang": "de"}),
    Passage("c", "hij hij", metadata={"lang": "de"}),
]
ASKED = {"bcd bcd": ["xxx?", "bcx?"], "efg efg": ["yyy?", "xxx?"], "hij hij": []}


class Writer:
    """Writes what `ASKED` says, and remembers what it was asked."""

    def __init__(self, asked: dict[str, list[str]] | None = None) -> None:
        self.asked, self.seen = asked or ASKED, list[str]()

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        self.seen += texts
        return [self.asked[text] for text in texts]


def ids(index: Index, query: str, **options: object) -> list[str]:
    return [hit.passage.id for hit in index.search(query, **{"k": 3, **options})]  # type: ignore[call-overload]


def tree(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and "questions" not in str(file.relative_to(path)) and not file.name.endswith("lock")
    }


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.build(PASSAGES, Letters(), tmp_path / "idx")


def test_a_passage_is_found_by_a_question_that_it_answers(index: Index) -> None:
    before = tree(index.path)
    assert index.search("yyy", k=1)[0].score == 0
    done = write_questions(index, Writer(), batch_size=2)
    assert astuple(done) == (3, 3, 1, 4, 0)
    first = index.search("yyy", k=3)
    assert (first[0].passage.id, first[0].score) == ("b", pytest.approx(1))
    assert first[0].passage == PASSAGES[1], "the passage itself, not its question"
    assert ids(index, "xxx")[:2] == ["a", "b"], "two passages answer the same question: corpus order"
    assert ids(index, "hij")[0] == "c", "a passage without questions is found as before"
    assert len(index.search("xxx", k=3)) == 3 and len({*ids(index, "xxx")}) == 3, "each passage once"
    assert ids(index, "xxx", where={"lang": "de"})[0] == "b"
    assert ids(index, "xxx", min_score=0.5) == ["a", "b"]
    assert ids(index, "yyy", mode="hybrid", min_score=0.5) == ["b"]
    assert tree(index.path) == before, "the index itself is the one it was"
    assert {"questions": 3, "questioned": 2}.items() <= index.info().items()
    assert len(index) == 3 and [passage.id for passage in index.passages()] == ["a", "b", "c"]


def test_searches_of_an_index_without_questions_are_what_they_were(index: Index) -> None:
    plain = {query: [(h.passage.id, h.score) for h in index.search(query, k=3)] for query in ("bcd", "e", "hx")}
    write_questions(index, lambda texts: [["qqq?"]] * len(texts))
    assert plain == {q: [(h.passage.id, h.score) for h in index.search(q, k=3)] for q in plain}


def test_scores_are_the_best_of_text_and_questions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def text() -> str:
        return "".join(chr(97 + i) for i in rng.integers(0, 26, 6))

    passages = [Passage(str(number), text()) for number in range(80)]
    asked = {passage.text: [text() + "?" for _ in range(rng.integers(0, 5))] for passage in passages}
    index = Index.build(passages, Letters(), tmp_path / "idx")
    write_questions(index, Writer(asked))

    def unit(words: Sequence[str]) -> np.ndarray:
        rows = Letters().encode(words)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    for query in (text() for _ in range(20)):
        wanted = sorted(
            float(max(unit([passage.text, *asked[passage.text]]) @ unit([query])[0])) for passage in passages
        )
        found = [hit.score for hit in index.search(query, k=7)]
        assert found == pytest.approx(wanted[::-1][:7], abs=1e-5)


def test_questions_are_written_once_and_go_with_their_text(index: Index) -> None:
    write_questions(index, Writer())
    again = Writer()
    assert astuple(write_questions(index, again)) == (3, 0, 0, 0, 0) and again.seen == []
    index.remove(documents=["a"])
    assert ids(index, "xxx")[0] == "b" and "a" not in ids(index, "xxx")
    index.add([Passage("b", "klm klm"), Passage("d", "bcd bcd")])
    assert ids(index, "xxx")[0] == "d", "the same text in another document: its questions hold"
    assert index.search("yyy", k=1)[0].score == 0, "a text that changed has lost its questions"
    writer = Writer({"klm klm": ["www?"], "hij hij": []})
    done = write_questions(index, writer)
    assert writer.seen == ["klm klm"] and done.removed == 2
    assert ids(index, "www")[0] == "b"


def test_interrupted_it_goes_on_after_the_last_batch(index: Index, tmp_path: Path) -> None:
    whole = Index.build(PASSAGES, Letters(), tmp_path / "whole")
    write_questions(whole, Writer(), batch_size=1)
    writer = Writer()

    def stopped(texts: Sequence[str]) -> list[list[str]]:
        if "efg efg" in texts:
            raise KeyboardInterrupt
        return writer(texts)

    with pytest.raises(KeyboardInterrupt):
        write_questions(index, stopped, batch_size=1)
    index.refresh()
    assert ids(index, "xxx")[0] == "a"
    write_questions(index, writer, batch_size=1)
    assert writer.seen == ["bcd bcd", "efg efg", "hij hij"]
    for query in ("xxx", "yyy", "bcx"):
        assert [h.to_dict() for h in index.search(query)] == [h.to_dict() for h in whole.search(query)]


def test_another_process_sees_them_from_its_refresh_on(index: Index) -> None:
    with Index.open(index.path, Letters()) as other:
        assert not other.refresh()
        write_questions(index, Writer())
        assert other.search("yyy", k=1)[0].score == 0
        assert other.refresh() and not other.refresh()
        assert ids(other, "yyy")[0] == "b"


def test_hostile_questions_are_texts_like_any_other(index: Index) -> None:
    texts = ["<script>alert(1)</script>?", "x" * 20_000 + "?", " ", "", "é?\n", "é?", "a\0b?", "\ud800?"]
    write_questions(index, lambda given: [texts * 3] * len(given))
    assert index.info()["questions"] == 2
    assert all(finding.ok for finding in Index.verify(index.path))


@pytest.mark.parametrize("given", [[], [["a?"]], [["a?"], [1], ["b?"]]], ids=["none", "one", "a number"])
def test_what_is_no_list_of_questions_per_text_is_refused(index: Index, given: list[list[str]]) -> None:
    with pytest.raises(RetrievalError, match="3 texts"):
        write_questions(index, lambda texts: given)
    assert index.info()["questions"] == 0


def test_a_collection_of_milvus_has_no_place_for_them() -> None:
    with pytest.raises(RetrievalError, match="MilvusIndex"):
        write_questions(MilvusIndex.__new__(MilvusIndex), Writer())  # type: ignore[arg-type]


def test_two_writers_are_one_too_many(index: Index) -> None:
    with generations.write_lock(index.path, generations.QUESTIONS_LOCK), pytest.raises(IndexLocked):
        write_questions(index, Writer())
    index.add([Passage("e", "nop")])  # an index can grow while its questions are written


def test_a_damaged_question_is_found_and_named(index: Index) -> None:
    write_questions(index, Writer())
    index.close()
    folder = index.path / "questions"
    checks = [finding for finding in Index.verify(index.path) if finding.check.startswith("questions: ")]
    assert len(checks) == 5 and all(check.ok for check in checks)
    (file,) = folder.glob("*/vectors.faiss")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(IndexMismatch, match=f"{folder}"):
        Index.open(index.path, Letters())
    assert not all(finding.ok for finding in Index.verify(index.path))


def test_another_embedder_embeds_them_again_and_asks_nothing(index: Index, caplog: pytest.LogCaptureFixture) -> None:
    write_questions(index, Writer())
    index.close()
    other = Index.build(PASSAGES, Letters(3), index.path, overwrite=True)
    assert other.search("yyy", k=1)[0].score == 0 and "ckcontrol index questions" in caplog.text
    writer = Writer()
    write_questions(other, writer)
    assert writer.seen == [] and ids(other, "yyy")[0] == "b"


def test_a_folder_with_questions_is_no_strangers(index: Index) -> None:
    write_questions(index, Writer())
    assert [finding for finding in Index.verify(index.path) if not finding.ok] == []
    assert json.dumps(index.info())


def test_the_join_looks_where_it_is_told(tmp_path: Path) -> None:
    exact = new_exact(2, "float32")
    exact.add(np.array([[1, 0], [0, 1], [1, 0]], np.float32))
    write(exact, tmp_path / EXACT)
    asked = Asked(Vectors(tmp_path, "flat", "cosine"), 3, [(0, 4), (1, 2), (2, 0)])
    assert asked.counts == (3, 3)
    query = np.array([[1, 0]], np.float32)
    assert asked.join([[(2, 0.5)]], query, 2, Rows.of([2, 4], 5), 5, None) == [[(4, 1.0), (2, 0.5)]]
    assert asked.join([[(1, 0.5)]], query, 2, Rows.of([1, 3], 5), 5, None) == [[(1, 0.5)]]
    assert asked.join([[]], query, 3, Rows(5, None), 5, None) == [[(0, 1.0), (4, 1.0), (2, 0.0)]]
