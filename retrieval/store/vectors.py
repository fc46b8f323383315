"""Vectors in FAISS: the exact ones that every index keeps, and the approximate index a large one searches first.

Row i of both is text number i. The exact vectors (``vectors.faiss``) are the truth: scores always come from them, so
a score does not depend on the kind of index, and a filter that leaves few rows is answered from them alone. Both files
are memory-mapped when read. Knows FAISS and numpy; knows nothing of texts, embedders or where the files lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckcontrol.errors import MissingExtra, RetrievalError, did_you_mean

__all__ = ["KINDS", "Rows", "Vectors", "build_ann", "choose", "new_exact", "prepare"]

EXACT, ANN = "vectors.faiss", "ann.faiss"
DTYPES = ("float32", "float16")
KINDS = ("flat", "hnsw", "ivf", "ivfpq")
DECIMALS = 6  # scores that agree to these are a tie: the last bits depend on what was embedded beside a text
SCAN = 768 << 20  # bytes of vectors that "auto" reads for every search, exactly; about 40 ms on two cores
MEMORY = 32 << 30  # bytes of vectors that "auto" keeps at hand as an IVF; beyond, their 4-bit product quantisation
FEW = 0.1  # share of the rows below which a filter is answered exactly
BLOCK = 65_536


def faiss_module() -> Any:
    """Import faiss.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss-cpu", "retrieval") from error
    return faiss


def choose(kind: str, rows: int, dim: int = 384, dtype: str = "float32") -> str:
    """Return the kind to use for so many rows: `kind` itself unless that is "auto".

    "auto" is exact for as long as a scan is fast, because a language model waits longer than a search and a missed
    passage is a wrong answer. It does not choose "hnsw", which at a million rows takes five times as long to build as
    "ivf", twice its memory, and finds less in the same time (`benchmarks/retrieval.py kinds`).

    Raises:
        RetrievalError: No such kind.
    """
    if kind not in (*KINDS, "auto"):
        raise RetrievalError(f"kind={kind!r} is not a kind of index.", did_you_mean(str(kind), (*KINDS, "auto")))
    if kind != "auto":
        return kind
    size = rows * dim * (2 if dtype == "float16" else 4)
    return "flat" if size <= SCAN else "ivf" if size <= MEMORY else "ivfpq"


def prepare(
    vectors: Any,
    metric: str,
    names: list[str] | None = None,
    shape: tuple[int, int] | None = None,
    dtype: str = "float32",
) -> NDArray[np.float32]:
    """Return float32 rows, of length 1 if the metric is cosine.

    Args:
        vectors: What an embedder returned.
        metric: "cosine" or "ip".
        names: What the rows are of, for the message.
        shape: What it must have.
        dtype: What the rows must fit.

    Raises:
        RetrievalError: Another shape, or a vector that is not finite in `dtype`; the first one is named.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or (shape is not None and rows.shape != shape):
        wanted = "two dimensions" if shape is None else f"the shape {shape}"
        raise RetrievalError(
            f"the embedder's vectors have the shape {rows.shape}, not {wanted}.", "Give one row per text."
        )
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        name = f"of {names[bad[0]]!r} " if names else ""
        raise RetrievalError(f"the embedder's vector {name}is not finite.", "Load the embedder in float32.")
    if metric == "cosine":
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)
    if abs(rows).max(initial=0) > np.finfo(dtype).max:
        raise RetrievalError(f"a vector exceeds what {dtype} holds.", "Build the index with dtype='float32'.")
    return rows


def new_exact(dim: int, dtype: str) -> Any:
    """Return an empty exact index."""
    faiss = faiss_module()
    if dtype == "float16":
        return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexFlatIP(dim)


def write(index: Any, path: Path) -> None:
    """Write a FAISS file. Through Python: FAISS itself reports no error when the last block finds the disk full."""
    with path.open("wb") as file:
        faiss = faiss_module()
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def squeeze(exact: Any, alive: list[int], dtype: str) -> Any:
    """Return an exact index of only the rows in use."""
    kept = new_exact(exact.d, dtype)
    rows = np.asarray(alive, dtype=np.int64)
    for start in range(0, len(rows), BLOCK):
        kept.add(exact.reconstruct_batch(rows[start : start + BLOCK]))
    return kept


def build_ann(kind: str, exact: Any, dtype: str, base: Any = None, trained: int = 0) -> tuple[Any, int]:
    """Return an approximate index over the exact one's rows, and how many rows it was trained on.

    Args:
        kind: "hnsw", "ivf" or "ivfpq".
        exact: Where the vectors come from.
        dtype: Of the vectors that "hnsw" and "ivf" store.
        base: An index of the same kind over the first rows; it is extended, unless it was trained on too few.
        trained: What `base` was trained on.
    """
    rows = exact.ntotal
    if base is not None and (kind == "hnsw" or rows <= 4 * trained):
        index = base
    else:
        index, trained = _new_ann(kind, exact, dtype), 0 if kind == "hnsw" else rows
    for start in range(index.ntotal, rows, BLOCK):
        index.add(exact.reconstruct_n(start, min(BLOCK, rows - start)))
    return index, trained


def _new_ann(kind: str, exact: Any, dtype: str) -> Any:
    faiss = faiss_module()
    dim, rows = exact.d, exact.ntotal
    half = dtype == "float16"
    if kind == "hnsw":
        index = faiss.index_factory(dim, "HNSW32,SQfp16" if half else "HNSW32,Flat", faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 40
        sample = min(rows, 1000)  # fp16 has nothing to learn, but FAISS asks
    else:
        lists = int(np.clip(4 * rows**0.5, 1, max(rows // 39, 1)))
        parts = next(size for size in (dim // 2, dim // 4, dim // 8, dim, 1) if size and dim % size == 0)
        store = f"PQ{parts}x4fs" if kind == "ivfpq" else "SQfp16" if half else "Flat"
        index = faiss.index_factory(dim, f"IVF{lists},{store}", faiss.METRIC_INNER_PRODUCT)
        sample = min(rows, max(40 * lists, 4096))
    if not index.is_trained:
        picked = np.sort(np.random.default_rng(0).choice(rows, sample, replace=False))
        index.train(exact.reconstruct_batch(picked))
    return index


class Rows(NamedTuple):
    """A set of rows: those in use, or those a filter leaves.

    Attributes:
        count: How many.
        mask: One bit per row, as FAISS reads it; None: all rows.
    """

    count: int  # type: ignore[assignment]
    mask: NDArray[np.uint8] | None

    @classmethod
    def of(cls, nums: list[int], total: int) -> Rows:
        """Return the set of `nums` out of `total` rows."""
        if len(nums) == total:
            return cls(total, None)
        flags = np.zeros(total, dtype=bool)
        flags[nums] = True
        return cls(len(nums), np.packbits(flags, bitorder="little"))


class Vectors:
    """The published vectors of one generation, for searching. Safe to use from many threads."""

    def __init__(self, folder: Path, kind: str, metric: str) -> None:
        faiss = faiss_module()
        self.metric = metric
        self.kind = kind
        self.exact: Any = faiss.read_index(str(folder / EXACT), faiss.IO_FLAG_MMAP_IFC)
        self.ann: Any = None if kind == "flat" else faiss.read_index(str(folder / ANN), faiss.IO_FLAG_MMAP_IFC)

    def search(self, queries: Any, k: int, rows: Rows, effort: int | None = None) -> list[list[tuple[int, float]]]:
        """Return for each query its nearest rows as (row, score), best first; ties in row order.

        Args:
            queries: [n, dim], as the embedder gives them.
            k: Hits per query; fewer come back when `rows` has fewer. Where an approximate search finds fewer, all
                queries are answered exactly.
            rows: Where to look.
            effort: ef_search of HNSW, nprobe of an IVF. None: what loses few (docs/retrieval.md).
        """
        queries = prepare(queries, self.metric, shape=(len(queries), self.exact.d))
        count = min(k, rows.count)
        if not count or not len(queries):
            return [[] for _ in queries]
        exact = self.ann is None or rows.count <= max(FEW * self.exact.ntotal, 1000, 2 * k)
        width = count
        while True:  # widen until no tie crosses the end: any order of equals may come back
            width = min(max(width + 8, 20 * count if self.kind == "ivfpq" else 0), rows.count)
            places = self._places(queries, width, rows, exact, effort)
            found = [self._scored(query, row[row >= 0]) for query, row in zip(queries, places, strict=True)]
            if not exact and any(len(hits) < count for hits in found):  # few of its neighbours are in `rows`
                exact = True
                continue
            if not exact or width == rows.count or all(hits[-1][1] < hits[count - 1][1] for hits in found):
                return [hits[:count] for hits in found]
            width *= 2

    def _places(self, queries: Any, width: int, rows: Rows, exact: bool, effort: int | None) -> Any:
        faiss = faiss_module()
        chosen = {} if rows.mask is None else {"sel": faiss.IDSelectorBitmap(rows.mask)}
        if exact:
            params = faiss.SearchParameters(**chosen) if chosen else None
            return self.exact.search(queries, width, params=params)[1]
        share = rows.count / self.exact.ntotal
        effort = effort and min(effort, self.exact.ntotal)
        if self.kind == "hnsw":
            params = faiss.SearchParametersHNSW(efSearch=effort or int(max(256, 2 * width) / share), **chosen)
        else:
            probes = effort or max(16, self.ann.nlist // 8)
            params = faiss.SearchParametersIVF(nprobe=min(int(probes / share), self.ann.nlist), **chosen)
        return self.ann.search(queries, width, params=params)[1]

    def _scored(self, query: Any, places: Any) -> list[tuple[int, float]]:
        scores = self.exact.reconstruct_batch(places).astype(np.float64) @ query.astype(np.float64)
        found = [(int(place), round(float(score), DECIMALS)) for place, score in zip(places, scores, strict=True)]
        return sorted(found, key=lambda hit: (-hit[1], hit[0]))
