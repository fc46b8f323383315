"""What `Index` and `MilvusIndex` have in common: how they are asked, and what they refuse before anything is done.

Knows queries, filters, re-rankers and hits; knows nothing of how passages are stored or found.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ckcontrol.errors import RetrievalError, did_you_mean

from .types import Hit, check_count, check_floor, check_queries
from .where import COLUMNS, Condition, parse_where

if TYPE_CHECKING:
    from .rerank import TextScorer

__all__ = ["PassageIndex", "check_removal"]

RERANK_DEPTH = 5  # candidates a re-ranker reads, times k
Self = TypeVar("Self", bound="PassageIndex")

NAMED = 40  # names of metadata that a sentence lists


class PassageIndex(ABC):
    """Passages that can be searched, and closed."""

    @overload
    def search(
        self,
        queries: str,
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        mode: str = "dense",
        reranker: TextScorer | None = None,
        effort: int | None = None,
        min_score: float | None = None,
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        queries: list[str] | tuple[str, ...],
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        mode: str = "dense",
        reranker: TextScorer | None = None,
        effort: int | None = None,
        min_score: float | None = None,
    ) -> list[list[Hit]]: ...

    def search(
        self,
        queries: str | list[str] | tuple[str, ...],
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        mode: str = "dense",
        reranker: TextScorer | None = None,
        effort: int | None = None,
        min_score: float | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Return the `k` best passages, best first; all of them when there are fewer. Equal texts are found once.

        Args:
            queries: One question (a list of hits comes back) or several (a list of lists, in order).
            k: How many passages a question gets.
            where: What their metadata must be, e.g. ``{"year": {"$gte": 2000}, "lang": ["en", "de"]}``.
            mode: "dense": by meaning; "bm25": by words; "hybrid": both, fused by reciprocal rank. A `MilvusIndex` has
                only "dense".
            reranker: Reads the first 5 k candidates with the question and orders them anew.
            min_score: Passages below it are left out, so fewer than `k` may come back, or none. Of what they are ranked
                by: cosine, BM25, the re-ranker's score; of "hybrid", whose own scores say only which place a passage
                has, the cosine. What is far is a matter of the embedder and the corpus, so there is no default.
            effort: How far an approximate index looks (ef_search of HNSW, nprobe of an IVF); None: a good default.

        Raises:
            RetrievalError: A blank question, an option out of range, a floor that is no finite number, or a closed
                index; for a `MilvusIndex` also whatever Milvus reports.
        """
        check_count("k", k)
        if effort is not None:
            check_count("effort", effort)
        if min_score is not None:
            check_floor(min_score)
        self._check_mode(mode)
        conditions = parse_where(where)
        several = check_queries(queries)
        if not several:
            return []
        fused = mode == "hybrid" and reranker is None
        depth = k if reranker is None else k * RERANK_DEPTH
        hits = self._find(several, depth, conditions, mode, effort, min_score if fused else None)
        if reranker is not None:
            from .rerank import rerank

            hits = [rerank(query, found, reranker, k) for query, found in zip(several, hits, strict=True)]
        if min_score is not None and not fused:
            hits = [[hit for hit in found if hit.score >= min_score] for found in hits]
        return hits[0] if isinstance(queries, str) else hits

    def unmet(self, where: Mapping[str, Any] | None) -> str:
        """Return a sentence where a filter asks for what no passage has, to be told of an empty result; "" otherwise.

        Reads the metadata of the whole index, once per generation of a local one. Up to `NAMED` names are listed.

        Raises:
            RetrievalError: A bad filter.
        """
        asked = {name for name, _, _ in parse_where(where)}.difference(COLUMNS)
        there = self._names() if asked else frozenset()
        if there is None or not (lacking := sorted(asked - there)):
            return ""
        names = {*COLUMNS, *there}
        known = did_you_mean(lacking[0], names) if len(names) <= NAMED else ""
        return f"No passage has {' or '.join(f'{name!r:.60}' for name in lacking[:3])} to filter by. {known}".rstrip()

    @abstractmethod
    def _names(self) -> frozenset[str] | None:
        """Return the names in the metadata of all passages; None where there are too many passages to tell."""

    @abstractmethod
    def _check_mode(self, mode: str) -> None:
        """Refuse a way to search that this index does not have."""

    @abstractmethod
    def _find(
        self,
        queries: list[str],
        k: int,
        conditions: tuple[Condition, ...],
        mode: str,
        effort: int | None,
        nearest: float | None = None,
    ) -> list[list[Hit]]:
        """Return the best `k` passages of each query; everything was checked before. `nearest`: see "hybrid" above."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is open."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_removal(
    documents: Sequence[str], passages: Sequence[str], where: Mapping[str, Any] | None
) -> tuple[Condition, ...]:
    """Return the conditions of what is to be removed.

    Raises:
        RetrievalError: Nothing was named, a text was given instead of a list, or a bad filter.
    """
    conditions = parse_where(where)
    if isinstance(documents, str) or isinstance(passages, str):
        raise RetrievalError("a single text was given.", "Give a list of ids.")
    if not (documents or passages or conditions):
        raise RetrievalError("nothing to remove was named.", "Give documents=, passages= or where=.")
    return conditions
