"""Finds the passages of a request that holds ``ck.retrieve``, and tells what was found. Knows an index's search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..control import drafts, overriding
from ..decoding.conversation import question_of, read_turns
from ..errors import RetrievalError, ServingError
from ..retrieval.overrides import Overrides, hit_of
from .read_request import Steered

__all__ = ["Retriever", "opened"]


def opened(folder: str, embedder: str | None = None) -> Any:
    """Open an index and load its embedder, from another place than it says where one is named.

    Raises:
        RetrievalError: There is no index, or the embedder is not its own or cannot be loaded.
    """
    from ..retrieval import Embedder, Index

    index = Index.open(folder)
    if embedder:
        scaled = index.info()["embedder"]["normalize"]
        index.close()
        index = Index.open(folder, Embedder(embedder, normalize=scaled))
    index.embedder  # noqa: B018  loads it
    return index


class Retriever:
    """Searches one index.

    Args:
        index: An `Index` or anything with its ``search``; None refuses every request.
    """

    def __init__(self, index: Any) -> None:
        self._index = index

    def told(self) -> dict[str, Any] | None:
        """Return what a client may ask for; None without an index."""
        return None if self._index is None else {"modes": ["dense", "bm25", "hybrid"]}

    def find(self, request: Steered) -> Steered:
        """Return the request with the passages that were found, best first; without any it is closed book.

        Where the question asks for an override of the index that meets the request's filter, its statement alone,
        amplified, whatever else the request says.

        Raises:
            ServingError: There is no index, or it cannot search like that.
        """
        texts = request.texts
        wanted = texts.wanted
        if self._index is None or wanted is None:
            raise ServingError("ck.retrieve: this server has no index.", "Start it with --index, or send ck.passages.")
        question = question_of(read_turns(texts.messages)) if texts.messages is not None else texts.question
        how = {"where": wanted.where, "mode": wanted.mode, "min_score": wanted.min_score}
        given = {name: value for name, value in how.items() if value is not None}
        try:
            found = self._index.search([wanted.query or question], wanted.k, **given)[0]
        except (RetrievalError, ValueError) as error:
            raise ServingError(f"ck.retrieve: {error}") from error
        hits = [hit for hit in found if hit.passage.text.strip()]
        control = request.control if hits else request.control.without_passages()
        store = getattr(self._index, "overrides", None)
        asked_for = store.find([question], wanted.where)[0] if question and isinstance(store, Overrides) else None
        if asked_for is not None:
            hits, control = [hit_of(*asked_for)], overriding()
        passages = tuple(hit.passage.text for hit in hits)
        told = tuple(hit.to_dict() for hit in hits)
        texts = replace(texts, passages=passages, hits=told, override=asked_for[0].id if asked_for else "")
        return replace(request, texts=texts, control=control, drafts=drafts(control))
