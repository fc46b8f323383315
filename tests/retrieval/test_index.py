"""The index: right order, honest ties, and a clear refusal of what has no answer.

`Words` is a small but exact encoder (one axis a word), so that every score is known by hand.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ckcontrol.errors import MissingExtra, RetrievalError
from ckcontrol.retrieval import Embedder, Index, Passage

AXES = ["river", "city", "bridge", "salt", "gold", "moon", "ocean", "king"]


class Words:
    """Counts of known words, normalised."""

    dim = len(AXES)

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        counts = np.array([[text.lower().split().count(axis) for axis in AXES] for text in texts], np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def corpus(*texts: str) -> list[Passage]:
    return [Passage(f"p{number}", text) for number, text in enumerate(texts)]


def test_order_score_and_rank() -> None:
    index = Index.build(corpus("salt", "river city", "river river city bridge"), Words())
    hits = index.search("river city", k=3)
    assert [hit.passage.id for hit in hits] == ["p1", "p2", "p0"]
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 3 / 12**0.5, 0.0], abs=1e-6)


def test_one_question_gives_a_list_several_give_lists() -> None:
    index = Index.build(corpus("river", "gold", "moon"), Words())
    both = index.search(["gold", "moon"], k=1)
    assert [[hit.passage.id for hit in hits] for hits in both] == [["p1"], ["p2"]]
    assert index.search("gold", k=1) == both[0]
    assert index.search(["gold"], k=1) == [both[0]]
    assert index.search([], k=1) == []


def test_k_beyond_the_corpus_gives_everything() -> None:
    index = Index.build(corpus("river", "gold"), Words())
    assert len(index.search("gold", k=50)) == 2


@pytest.mark.parametrize("k", [1, 3, 9, 17, 39, 40])
def test_ties_keep_corpus_order_at_every_k(k: int) -> None:
    """Forty passages with one vector: any heap may return any k of them; the first k are wanted."""
    texts = [f"gold n{number}" for number in range(40)]
    hits = Index.build(corpus("salt", *texts), Words()).search("gold", k=k)
    assert [hit.passage.text for hit in hits] == texts[:k]


def test_differences_below_the_sixth_decimal_are_ties() -> None:
    class Noisy(Words):
        def encode(self, texts: Sequence[str], **_: bool) -> NDArray[np.float32]:
            vectors = super().encode(texts)
            return vectors * (1 + 1e-7 * np.arange(len(texts), dtype=np.float32))[:, None]

    index = Index.build(corpus("gold a", "gold b", "gold c"), Noisy())
    assert [hit.passage.id for hit in index.search("gold", k=3)] == ["p0", "p1", "p2"]


def test_against_a_full_sort() -> None:
    """Random passages; the index must agree with sorting all scores."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(AXES, 6)) + f" n{number}" for number in range(300)]
    words = Words()
    index = Index.build(corpus(*texts), words)
    for query in ("river moon", "king gold gold", "salt"):
        scores = (words.encode(texts) @ words.encode([query])[0]).round(6)
        expected = sorted(range(300), key=lambda place: (-scores[place], place))[:25]
        assert [hit.passage.id for hit in index.search(query, k=25)] == [f"p{place}" for place in expected]


def test_equal_texts_are_folded_into_the_first() -> None:
    index = Index.build([Passage("a", "gold"), Passage("b", "salt"), Passage("c", "gold")], Words())
    assert len(index) == 2
    assert [hit.passage.id for hit in index.search("gold", k=3)] == ["a", "b"]


def test_a_corpus_may_be_a_generator() -> None:
    assert len(Index.build((Passage(str(n), f"gold {n}") for n in range(3)), Words())) == 3


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ([], "corpus is empty"),
        ([Passage("a", "gold"), Passage("a", "salt")], "'a' occurs twice"),
        ([Passage("a", "gold"), Passage("b", " \n")], "'b' has no text"),
    ],
)
def test_bad_corpora(passages: list[Passage], message: str) -> None:
    with pytest.raises(RetrievalError, match=message) as caught:
        Index.build(passages, Words())
    assert caught.value.hint


@pytest.mark.parametrize("query", ["", "  \n", ["gold", ""], ["gold", None]])
def test_blank_queries(query: str | list[str]) -> None:
    with pytest.raises(RetrievalError, match="asks nothing"):
        Index.build(corpus("gold"), Words()).search(query)


def test_a_query_that_holds_half_a_character_is_refused() -> None:
    with pytest.raises(RetrievalError, match=r"query 1 is 'caf\\udce9'.*errors='replace'"):
        Index.build(corpus("gold"), Words()).search(["fine", "caf\udce9"])


@pytest.mark.parametrize("k", [0, -1, True, 2.0, "3"])
def test_bad_k(k: int) -> None:
    with pytest.raises(RetrievalError, match="positive whole number"):
        Index.build(corpus("gold"), Words()).search("gold", k=k)


def test_records_are_values() -> None:
    passage = Passage("a", "gold", metadata={"page": 3})
    assert dataclasses.asdict(passage)["metadata"] == {"page": 3}
    assert json.dumps(dataclasses.asdict(Index.build([passage], Words()).search("gold")[0]))
    assert len({passage, Passage("a", "gold", metadata={"page": 3})}) == 1


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtra, match=r"faiss-cpu.*\[retrieval\]"):
        Index.build(corpus("gold"), Words())
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"sentence-transformers.*\[retrieval\]"):
        Embedder("anywhere")


def test_a_folder_that_is_no_embedder(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(RetrievalError, match="could not be loaded"):
            Embedder(name, device="cpu")


@pytest.mark.parametrize("directory", ["retrieval", "eval"])
def test_a_second_copy_cannot_be_imported(directory: str) -> None:
    """From the repository root `import retrieval` would make a twin whose classes equal nothing."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", f"import {directory}"], cwd=root, capture_output=True, text=True)
    assert f"installed as ckcontrol.{directory}; import that name" in done.stderr


def test_import_is_light() -> None:
    code = (
        "import sys, ckcontrol.retrieval; "
        "print([n for n in ('torch', 'faiss', 'sentence_transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    from ckcontrol.errors import ModelUnavailable
    from ckcontrol.models.load import embedder_path

    try:
        return Embedder(embedder_path(), device="cpu")
    except ModelUnavailable as error:
        pytest.skip(f"demo embedder unavailable: {error}")


@pytest.mark.real
def test_vectors_are_unit_and_in_order(embedder: Embedder) -> None:
    """Batches are sorted by length inside; the rows must come back in the caller's order."""
    texts = ["a " * 60 + "bridge", "gold", "The Moon is far away.", "x"] * 20
    vectors = embedder.encode(texts)
    assert (vectors.shape, vectors.dtype) == ((80, embedder.dim), np.float32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    for row in (0, 1, 2, 3, 42):
        assert vectors[row] @ embedder.encode([texts[row]])[0] == pytest.approx(1, abs=1e-5)
    assert embedder.encode([]).shape == (0, embedder.dim)


@pytest.mark.real
def test_meaning_is_found(embedder: Embedder) -> None:
    index = Index.build(corpus("The cat sat on the mat.", "Stocks fell sharply on Monday."), embedder)
    assert index.search("What happened on the markets?", k=1)[0].passage.id == "p1"
