"""Every kind of FAISS index against exact search: recall, filters, deletes, growth, half precision.

What is read is what is used: memory-mapped files of FAISS, not objects just made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ckcontrol.errors import RetrievalError
from ckcontrol.retrieval import Index, Passage
from ckcontrol.retrieval.store.vectors import (
    ANN,
    DTYPES,
    EXACT,
    KINDS,
    Rows,
    Vectors,
    build_ann,
    choose,
    new_exact,
    prepare,
    squeeze,
    write,
)

ROWS, DIM, K = 5000, 32, 10
RECALL = {"flat": 1.0, "hnsw": 0.97, "ivf": 0.97, "ivfpq": 0.6}  # of the 10 nearest; PQ at 4 bits orders roughly
Float = NDArray[np.float32]


def cloud(rows: int, seed: int = 0) -> Float:
    """Unit vectors in clusters, as embeddings lie."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((50, DIM))
    found = centres[rng.integers(0, 50, rows)] + 0.7 * rng.standard_normal((rows, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


POINTS, QUERIES = cloud(ROWS), cloud(40, seed=1)


def make(folder: Path, kind: str, dtype: str = "float32", points: Float = POINTS) -> Vectors:
    exact = new_exact(DIM, dtype)
    exact.add(points)
    write(exact, folder / EXACT)
    if kind != "flat":
        write(build_ann(kind, exact, dtype)[0], folder / ANN)
    return Vectors(folder, kind, "cosine")


def nearest(points: Float, rows: NDArray[np.int64], k: int = K) -> list[list[int]]:
    scores = (points[rows].astype(np.float64) @ QUERIES.T.astype(np.float64)).round(6).T
    return [rows[np.lexsort((rows, -line))[:k]].tolist() for line in scores]


def recall(found: list[list[tuple[int, float]]], wanted: list[list[int]]) -> float:
    shares = [len({row for row, _ in hits} & set(best)) / len(best) for hits, best in zip(found, wanted, strict=True)]
    return float(np.mean(shares))


@pytest.fixture(scope="module", params=[(kind, dtype) for kind in KINDS for dtype in DTYPES], ids=lambda p: "-".join(p))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Vectors]:
    kind, dtype = request.param
    return kind, dtype, make(tmp_path_factory.mktemp(f"{kind}-{dtype}"), kind, dtype)


@pytest.mark.parametrize("share", [1, 0.9, 0.5, 0.25, 0.12, 0.05, 0.0008])
def test_recall_with_many_and_few_rows_allowed(made: tuple[str, str, Vectors], share: float) -> None:
    """Dead rows and filters are the same to FAISS: a bitmap of rows that may be found."""
    kind, dtype, vectors = made
    allowed = np.flatnonzero(np.random.default_rng(5).random(ROWS) < share)
    found = vectors.search(QUERIES, K, Rows.of(allowed.tolist(), ROWS))
    assert all(len(hits) == min(K, len(allowed)) for hits in found)
    assert all(row in set(allowed) for hits in found for row, _ in hits)
    exactly = kind == "flat" or len(allowed) <= 1000
    least = RECALL["flat" if exactly else kind] - (0.01 if dtype == "float16" else 0)
    assert recall(found, nearest(POINTS, allowed)) >= least
    if exactly and dtype == "float32":
        assert [[row for row, _ in hits] for hits in found] == nearest(POINTS, allowed)


def test_scores_are_exact_whatever_the_kind(made: tuple[str, str, Vectors]) -> None:
    _, dtype, vectors = made
    for query, hits in zip(QUERIES, vectors.search(QUERIES, K, Rows(ROWS, None)), strict=True):
        expected = [float(POINTS[row].astype(np.float64) @ query) for row, _ in hits]
        assert [score for _, score in hits] == pytest.approx(expected, abs=1e-6 if dtype == "float32" else 2e-3)
        assert hits == sorted(hits, key=lambda hit: (-hit[1], hit[0]))


@pytest.mark.parametrize("k", [1, 999, 2501, ROWS - 1, ROWS, 10**30])
def test_any_k_is_answered_in_full(made: tuple[str, str, Vectors], k: int) -> None:
    """An IVF that looks into few lists finds too few; then all is searched."""
    _, _, vectors = made
    half = list(range(0, ROWS, 2))
    for allowed in (Rows(ROWS, None), Rows.of(half, ROWS)):
        for hits in vectors.search(QUERIES[:3], k, allowed):
            assert len({row for row, _ in hits}) == len(hits) == min(k, allowed.count)


@pytest.mark.parametrize("effort", [1, 3, 10**30])
def test_any_effort_is_answered_in_full(made: tuple[str, str, Vectors], effort: int) -> None:
    _, _, vectors = made
    allowed = Rows.of(np.flatnonzero(np.random.default_rng(5).random(ROWS) < 0.25).tolist(), ROWS)
    assert {len(hits) for hits in vectors.search(QUERIES, 50, allowed, effort=effort)} == {50}


def test_no_row_at_all(made: tuple[str, str, Vectors]) -> None:
    _, _, vectors = made
    assert vectors.search(QUERIES, K, Rows.of([], ROWS)) == [[] for _ in QUERIES]
    assert vectors.search(QUERIES[:0], K, Rows(ROWS, None)) == []


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
@pytest.mark.parametrize("growth", [1.2, 6])
def test_growing_is_as_good_as_building(tmp_path: Path, kind: str, growth: float) -> None:
    """An IVF is trained anew when it holds more than four times what it was trained on."""
    import faiss

    first = int(ROWS / growth)
    exact = new_exact(DIM, "float32")
    exact.add(POINTS[:first])
    base, trained = build_ann(kind, exact, "float32")
    assert trained == (0 if kind == "hnsw" else first)
    write(base, tmp_path / ANN)
    exact.add(POINTS[first:])
    grown, again = build_ann(kind, exact, "float32", faiss.read_index(str(tmp_path / ANN)), trained)
    assert grown.ntotal == ROWS
    assert again == (0 if kind == "hnsw" else ROWS if growth > 4 else first)
    write(exact, tmp_path / EXACT)
    write(grown, tmp_path / ANN)
    found = Vectors(tmp_path, kind, "cosine").search(QUERIES, K, Rows(ROWS, None))
    assert recall(found, nearest(POINTS, np.arange(ROWS))) >= RECALL[kind]


@pytest.mark.parametrize("dtype", DTYPES)
def test_squeezing_keeps_vectors_bit_by_bit(dtype: str) -> None:
    exact = new_exact(DIM, dtype)
    exact.add(POINTS)
    alive = list(range(3, ROWS, 7))
    kept = squeeze(exact, alive, dtype)
    assert np.array_equal(kept.reconstruct_n(0, len(alive)), exact.reconstruct_batch(np.array(alive)))
    assert squeeze(exact, [], dtype).ntotal == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copies", [300, ROWS])
def test_equal_vectors_come_in_row_order(tmp_path: Path, kind: str, copies: int) -> None:
    """Ties cross the end of any heap; exact search widens until none does."""
    points = POINTS.copy()
    points[-copies:] = QUERIES[0]
    vectors = make(tmp_path, kind, points=points)
    for rows in (Rows(ROWS, None), Rows.of(list(range(1, ROWS)), ROWS)):
        (hits,) = vectors.search(QUERIES[:1], 7, rows)
        assert {score for _, score in hits} == {1.0}
        if kind == "flat":
            first = max(ROWS - copies, ROWS - rows.count)
            assert [row for row, _ in hits] == list(range(first, first + 7))


# --- through Index: which kind is used, and what removing and adding do to it ------------------------------------


class Cloud:
    """Texts are row numbers of a cloud."""

    dim = DIM

    def encode(self, texts: Any, *, query: bool = False, progress: bool = False) -> Float:
        return np.stack([ALL[int(text)] if text.isdigit() else QUERIES[0] for text in texts])


ALL = cloud(7000, seed=2)


@pytest.mark.parametrize(("kind", "dtype"), list(zip(KINDS, ["float16", "float32"] * 2, strict=True)))
def test_a_life_of_an_index(kind: str, dtype: str) -> None:
    """Built, thinned, squeezed, grown: what is found is what an exact search over what is left finds."""

    def check(alive: range) -> None:
        rows = np.array(alive)
        for number in (11, 4711, 6001):
            scores = ALL[rows] @ ALL[number]
            wanted = {str(row) for row in rows[np.argsort(-scores)[:K]]}
            hits = index.search(str(number), k=K)
            assert len(hits) == K
            assert len(wanted & {hit.passage.id for hit in hits}) >= (4 if kind == "ivfpq" else 9)
            assert all(hit.passage.id == hit.passage.text for hit in hits)
            assert kind == "ivfpq" or hits[0].score == pytest.approx(scores.max(), abs=2e-3)
        assert all(finding.ok for finding in Index.verify(index.path))

    with Index.build((Passage(str(n), str(n)) for n in range(5000)), Cloud(), kind=kind, dtype=dtype) as index:
        assert index.info()["kind"] == kind
        check(range(5000))
        index.remove(passages=[str(n) for n in range(600)])
        assert (index.info()["rows"], index.info()["dead"]) == (5000, 600)
        check(range(600, 5000))
        index.add(Passage(str(n), str(n)) for n in range(5000, 7000))
        assert (index.info()["rows"], index.info()["dead"]) == (7000, 600)
        check(range(600, 7000))
        index.remove(passages=[str(n) for n in range(600, 1800)])
        assert (index.info()["rows"], index.info()["dead"]) == (5200, 0)
        check(range(1800, 7000))
        index.remove(passages=[str(n) for n in range(1900, 7000)])
        assert index.info()["kind"] == ("hnsw" if kind == "hnsw" else "flat")  # too few to train an IVF on
        check(range(1800, 1900))


def test_the_kind_is_chosen_by_size() -> None:
    scanned = 768 << 20  # bytes
    for dtype, size in (("float32", 4), ("float16", 2)):
        most = scanned // (100 * size)
        assert [choose("auto", rows, 100, dtype) for rows in (0, most, most + 1)] == ["flat", "flat", "ivf"]
        assert choose("auto", 100_000_000, 100, dtype) == ("ivfpq" if dtype == "float32" else "ivf")
    assert choose("ivf", 3) == "ivf"
    with pytest.raises(RetrievalError, match="kind='hsnw' is not a kind"):
        choose("hsnw", 3)


def test_prepared_rows() -> None:
    assert np.linalg.norm(prepare([[3, 4], [0, 0]], "cosine"), axis=1).tolist() == [1, 0]
    assert prepare([[3, 4]], "ip").tolist() == [[3, 4]]
    for wrong in ([[1.0, np.nan]], [[np.inf, 1.0]]):
        with pytest.raises(RetrievalError, match="'salt' is not finite"):
            prepare([[1.0, 1.0], *wrong], "cosine", ["gold", "salt"])
    with pytest.raises(RetrievalError, match=r"shape \(2,\)"):
        prepare([1.0, 2.0], "cosine")
