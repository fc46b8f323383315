"""Another embedder is refused wherever one can be given, by what it does and not by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ckcontrol.errors import IndexMismatch, RetrievalError
from ckcontrol.retrieval import Embedder, Index, Passage
from ckcontrol.retrieval.embed import check_identity, identify

from .hashes import Hashes, corpus, state

OTHERS = [(Hashes(seed="other"), "fingerprint"), (Hashes(dim=15), "dim"), (Hashes(dim=32), "dim")]


class QueriesOnly(Hashes):
    """The same passages, but queries with another prompt."""

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        return super().encode([f"query: {text}" for text in texts] if query else texts)


class Stops(Hashes):
    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        if len(texts) > 1 and self.seen:
            raise KeyboardInterrupt
        return super().encode(texts)


@pytest.mark.parametrize(("other", "field"), [*OTHERS, (QueriesOnly(), "fingerprint")])
def test_another_embedder_cannot_open(tmp_path: Path, other: Hashes, field: str) -> None:
    with Index.build(corpus(0, 30), Hashes(), tmp_path) as index:
        before = state(index)
    with pytest.raises(IndexMismatch) as caught:
        Index.open(tmp_path, other)
    assert caught.value.field == field
    assert "hashes" in caught.value.hint
    with Index.open(tmp_path, Hashes()) as index:
        assert state(index) == before


@pytest.mark.parametrize(("other", "field"), OTHERS)
def test_an_index_that_was_replaced_by_another_embedders(tmp_path: Path, other: Hashes, field: str) -> None:
    """The object at hand goes on with what it has; it neither reads nor writes the new one."""
    with Index.build(corpus(0, 30), Hashes(), tmp_path) as index:
        before = state(index)
        Index.build(corpus(5, 40), other, tmp_path, overwrite=True).close()
        for use in (index.refresh, lambda: index.add(corpus(50, 60)), lambda: index.remove(passages=["p7"])):
            with pytest.raises(IndexMismatch) as caught:
                use()
            assert caught.value.field == field
            assert state(index) == before
    with Index.open(tmp_path, other) as index:
        assert index.info()["passages"] == 35


@pytest.mark.parametrize(("other", "field"), OTHERS)
def test_unfinished_work_of_another_embedder(tmp_path: Path, other: Hashes, field: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        Index.build(corpus(0, 900), Stops(), tmp_path)
    with pytest.raises(IndexMismatch, match="interrupted build") as caught:
        Index.build(corpus(0, 900), other, tmp_path)
    assert caught.value.field == field
    with Index.build(corpus(0, 900), Hashes(), tmp_path) as index:
        assert index.change is not None
        assert index.change.reused == 256


def test_overwriting_starts_over_for_another_embedder_only(tmp_path: Path) -> None:
    """Interrupted, `build(..., overwrite=True)` goes on when it is called again: its own work is not overwritten."""
    Index.build(corpus(0, 30), Hashes(), tmp_path).close()
    for embedder, reused in ((Hashes(seed="other"), 0), (Hashes(), 256)):
        with pytest.raises(KeyboardInterrupt):
            Index.build(corpus(0, 900), Stops(), tmp_path, overwrite=True)
        with Index.build(corpus(0, 900), embedder, tmp_path, overwrite=True) as index:
            assert index.change is not None
            assert index.change.reused == reused
            assert index.search("alpha 3 common delta", k=1)[0].score == 1


@pytest.mark.parametrize("other", [{"metric": "ip"}, {"dtype": "float16"}])
def test_unfinished_work_of_another_metric_or_dtype_is_not_mixed_in(tmp_path: Path, other: dict[str, str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        Index.build(corpus(0, 900), Stops(norm=3), tmp_path)
    with Index.build(corpus(0, 900), Hashes(norm=3), tmp_path, **other) as index:  # type: ignore[arg-type]
        assert index.change is not None
        assert index.change.reused == 0
        lengths = np.linalg.norm(index._snapshot.vectors.exact.reconstruct_n(0, len(index)), axis=1)
        assert lengths == pytest.approx(3 if "metric" in other else 1, abs=2e-3)


def test_lengths_count_for_inner_products_alone(tmp_path: Path) -> None:
    for metric in ("ip", "cosine"):
        Index.build(corpus(0, 30), Hashes(norm=3), tmp_path / metric, metric=metric).close()
    Index.open(tmp_path / "cosine", Hashes()).close()
    Index.open(tmp_path / "ip", Hashes(norm=3.05)).close()
    with pytest.raises(IndexMismatch, match=r"lengths 1\.0\d+ and 3\.0"):
        Index.open(tmp_path / "ip", Hashes())


@pytest.mark.parametrize("noise", [1e-3, 1e-2])
def test_the_same_model_in_another_precision_passes(noise: float) -> None:
    class Rounded(Hashes):
        def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
            rows = super().encode(texts)
            return rows * (1 + noise * np.sign(rows[:, ::-1]))

    check_identity(Rounded(), identify(Hashes()), "ip")


class Shaped(Hashes):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        return np.asarray(self.answer, np.float32)


@pytest.mark.parametrize("answer", [np.ones(16), np.ones((2, 16)), np.ones((1, 15)), np.full((1, 16), np.nan), 1.0, []])
def test_an_embedder_that_cannot_be_fingerprinted(tmp_path: Path, answer: Any) -> None:
    with pytest.raises(RetrievalError, match=r"'hashes' gives vectors of shape"):
        Index.build(corpus(0, 5), Shaped(answer), tmp_path)
    assert not (tmp_path / "1").exists()
    Index.build(corpus(0, 5), Hashes(), tmp_path).close()
    with pytest.raises(RetrievalError, match=r"'hashes' gives vectors of shape"):
        Index.open(tmp_path, Shaped(answer))


def test_an_index_without_an_embedder_reads_removes_and_searches_words(tmp_path: Path) -> None:
    """Only dense search and `add` need it; a name that is nobody's is an error then, not before."""
    Index.build(corpus(0, 30), Hashes(), tmp_path).close()
    with Index.open(tmp_path) as index:
        assert index.search("alpha 3", mode="bm25")
        assert index.remove(passages=["p3"]).removed == 1
        assert index.info()["embedder"] == {"name": "hashes", "revision": "", "normalize": True, "dim": 16}
        for use in (lambda: index.search("alpha"), lambda: index.add([Passage("x", "y")])):
            with pytest.raises(RetrievalError, match="'hashes' could not be loaded"):
                use()
        assert index.info()["generation"] == 2


@pytest.mark.real
def test_a_real_model_and_its_path(tmp_path: Path) -> None:
    """The name may change with the machine; the fingerprint stays."""
    from ckcontrol.errors import ModelUnavailable
    from ckcontrol.models.load import embedder_path

    try:
        path = embedder_path()
    except ModelUnavailable as error:
        pytest.skip(f"demo embedder unavailable: {error}")
    with Index.build(corpus(0, 3), Embedder("demo", device="cpu"), tmp_path) as index:
        assert index.info()["embedder"]["name"] == "demo"
    Index.open(tmp_path, Embedder(path, device="cpu", batch_size=1)).close()
    with Index.open(tmp_path) as index:
        assert index.search("alpha 1 common beta gamma", k=1)[0].passage.id == "p1"
    shorter = Embedder(path, device="cpu")
    shorter._model.max_seq_length = 8
    with pytest.raises(IndexMismatch, match="differently"):
        Index.open(tmp_path, shorter)
