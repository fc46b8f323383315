"""Exact nearest passages by cosine, in memory. Knows vectors and FAISS; knows nothing of files or models.

Scores carry six decimals, because the last bits of a vector depend on the texts embedded beside it; passages
that agree to six decimals are a tie, and ties keep the order of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

from ckcontrol.errors import MissingExtra, RetrievalError

from .embed import TextEncoder
from .types import Hit, Passage

__all__ = ["Index"]

DECIMALS = 6


class Index:
    """Passages and their vectors. Made by `Index.build`; not changed afterwards.

    Attributes:
        passages: What can be found, in corpus order; of passages with the same text, the first.
        embedder: What queries are embedded with.
    """

    def __init__(self, passages: Sequence[Passage], embedder: TextEncoder, vectors: Any) -> None:
        self.passages = tuple(passages)
        self.embedder = embedder
        self._flat = vectors

    def __len__(self) -> int:
        return len(self.passages)

    @classmethod
    def build(cls, passages: Iterable[Passage], embedder: TextEncoder, *, progress: bool = False) -> Index:
        """Embed passages and index them.

        Args:
            passages: The corpus. Passages with exactly the same text are folded into the first of them.
            embedder: An `Embedder`, or anything with its `dim` and `encode`.
            progress: Show a progress bar.

        Raises:
            RetrievalError: The corpus is empty, an id occurs twice, or a text is blank.
            MissingExtra: faiss is not installed.
        """
        faiss = _faiss()
        kept: dict[str, Passage] = {}
        ids: set[str] = set()
        for passage in passages:
            if passage.id in ids:
                raise RetrievalError(f"passage id {passage.id!r} occurs twice.", "Give every passage its own id.")
            if not passage.text.strip():
                raise RetrievalError(f"passage {passage.id!r} has no text.", "Leave blank passages out.")
            ids.add(passage.id)
            kept.setdefault(passage.text, passage)
        if not kept:
            raise RetrievalError("the corpus is empty.", "Give at least one passage.")
        flat = faiss.IndexFlatIP(embedder.dim)
        flat.add(embedder.encode(list(kept), progress=progress))
        return cls(list(kept.values()), embedder, flat)

    @overload
    def search(self, queries: str, k: int = 5) -> list[Hit]: ...

    @overload
    def search(self, queries: list[str] | tuple[str, ...], k: int = 5) -> list[list[Hit]]: ...

    def search(self, queries: str | list[str] | tuple[str, ...], k: int = 5) -> list[Hit] | list[list[Hit]]:
        """Return the `k` nearest passages, best first; all of them when the index holds fewer.

        Args:
            queries: One question (a list of hits comes back) or several (a list of lists, in order).
            k: How many passages a question gets.

        Raises:
            RetrievalError: A question is blank, or `k` is not a positive whole number.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise RetrievalError(f"k={k!r} is not a positive whole number.", "Ask for at least one passage.")
        several = [queries] if isinstance(queries, str) else list(queries)
        for number, query in enumerate(several):
            if not isinstance(query, str) or not query.strip():
                raise RetrievalError(f"query {number} is {query!r}, which asks nothing.", "Give it some text.")
        if not several:
            return []
        vectors = self.embedder.encode(several, query=True)
        hits = [self._nearest(vectors[row : row + 1], k) for row in range(len(several))]
        return hits[0] if isinstance(queries, str) else hits

    def _nearest(self, vector: Any, k: int) -> list[Hit]:
        """Search one row ([1, dim]); widen until no tie crosses the end, then order by score and place."""
        count = min(k, len(self))
        width = count
        while True:
            width = min(width + 8, len(self))
            scores, places = self._flat.search(vector, width)
            found = [(round(float(s), DECIMALS), int(p)) for s, p in zip(scores[0], places[0], strict=True)]
            if width == len(self) or found[-1][0] < found[count - 1][0]:
                break
            width *= 2
        found.sort(key=lambda pair: (-pair[0], pair[1]))
        best = found[:count]
        return [Hit(self.passages[place], score, rank) for rank, (score, place) in enumerate(best, 1)]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss-cpu", "retrieval") from error
    return faiss
