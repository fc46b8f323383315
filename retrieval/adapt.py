"""Retrievers of LangChain, LlamaIndex and Haystack behind the search of an `Index`.

Knows the one documented method of each (`invoke`, `retrieve`, `run`) and what their documents are made of; imports
none of them, and knows nothing of vectors, filters or language models.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, overload

from ckcontrol.errors import RetrievalError

from .types import Hit, Passage, check_count, check_queries

__all__ = ["AdaptedRetriever", "Retriever", "from_retriever"]

SOURCES = (
    "source",
    "file_path",
    "file_name",
    "url",
    "title",
)  # what frameworks' loaders call it, the most telling first
TEXTS = "Leave text_embedder out; it is for Haystack's embedding retrievers."
UNSUPPORTED = "Set it on the retriever itself, or build an Index, which has all of them."


class Retriever(Protocol):
    """What can be asked for passages: an `Index`, a `MilvusIndex`, or anything that `from_retriever` returned."""

    @overload
    def search(self, queries: str, k: int = 5) -> list[Hit]: ...

    @overload
    def search(self, queries: list[str] | tuple[str, ...], k: int = 5) -> list[list[Hit]]: ...

    def search(self, queries: str | list[str] | tuple[str, ...], k: int = 5) -> list[Hit] | list[list[Hit]]:
        """Return the best passages of one question, or of each of several."""


class Hits(list[Hit]):
    """What a framework found for one question.

    Attributes:
        blank: How many documents were left out because they hold no text.
    """

    blank: int = 0


class FoundDocument(NamedTuple):
    """A document as its framework gave it, before it is checked."""

    id: Any
    text: Any
    metadata: Any
    score: Any


def from_retriever(retriever: Any, *, text_embedder: Any = None) -> AdaptedRetriever:
    """Give a retriever of another framework the search of an `Index`.

    Taken are, by their documented method:

    - LangChain: a ``BaseRetriever`` (``invoke``), or a ``VectorStore`` (its ``as_retriever()`` is used);
    - LlamaIndex: a ``BaseRetriever`` (``retrieve``), or an index (its ``as_retriever()`` is used);
    - Haystack: a retriever component with ``run(query=...)``, or one with ``run(query_embedding=...)`` together with
      the `text_embedder` that belongs to it. A ``Pipeline`` is refused: its inputs and outputs can have any names.

    Args:
        retriever: The object. Its class is named in every error.
        text_embedder: For a Haystack retriever of embeddings: the component whose ``run(text=...)`` embeds a query.

    Raises:
        RetrievalError: The object is none of these, or needs a `text_embedder` that was not given.

    >>> from_retriever(store.as_retriever()).search("Which river runs through Paris?", k=3)  # doctest: +SKIP
    """
    name = type(retriever).__name__
    if isinstance(retriever, type):
        raise RetrievalError(f"{retriever.__name__} is a class.", "Give an object made from it.")
    methods = [method for method in ("invoke", "retrieve", "run") if callable(getattr(retriever, method, None))]
    if not methods and callable(getattr(retriever, "as_retriever", None)):
        return from_retriever(retriever.as_retriever(), text_embedder=text_embedder)
    if text_embedder is not None and methods != ["run"]:
        raise RetrievalError(f"{name} takes texts.", TEXTS)
    if "invoke" in methods:
        return AdaptedRetriever(name, lambda query, k: _langchain(retriever, query, k))
    if "retrieve" in methods:
        return AdaptedRetriever(name, lambda query, k: _llama_index(retriever, query, k))
    if "run" in methods:
        return AdaptedRetriever(name, _haystack(retriever, text_embedder))
    raise RetrievalError(
        f"{name} is no retriever: it has none of invoke, retrieve, run and as_retriever.",
        "Give a LangChain, LlamaIndex or Haystack retriever, or build an Index.",
    )


class AdaptedRetriever:
    """A retriever of another framework with the search of an `Index`. Made by `from_retriever`.

    The framework decides what is found and in which order; both are kept. A LangChain vector store and a Haystack
    component are told `k`. Other retrievers return as many as they were set up to return, and at most `k` are kept.

    Attributes:
        name: The class of what was adapted.
    """

    def __init__(self, name: str, fetch: Callable[[str, int], list[FoundDocument]]) -> None:
        self.name = name
        self._fetch = fetch

    @overload
    def search(
        self,
        queries: str,
        k: int = 5,
        *,
        where: None = None,
        mode: None = None,
        reranker: None = None,
        effort: None = None,
        min_score: None = None,
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        queries: list[str] | tuple[str, ...],
        k: int = 5,
        *,
        where: None = None,
        mode: None = None,
        reranker: None = None,
        effort: None = None,
        min_score: None = None,
    ) -> list[list[Hit]]: ...

    def search(
        self,
        queries: str | list[str] | tuple[str, ...],
        k: int = 5,
        *,
        where: object = None,
        mode: object = None,
        reranker: object = None,
        effort: object = None,
        min_score: object = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Return at most `k` passages, in the framework's order.

        Scores are the framework's. Where it gives none (LangChain never does) or not for every document, the whole
        result carries reciprocal ranks instead: 1, 1/2, 1/3. A document without an id is named by a digest of its
        text, the same in every search. One without text (blank, or none at all) is left out, the next takes its place,
        and the list of hits says how many in its attribute ``blank``. Its source is the metadata's "source",
        "file_path", "file_name", "url" or "title", the first that is there.

        Args:
            queries: One question (a list of hits comes back) or several (a list of lists, in order).
            k: How many passages a question gets.
            where: Refused unless None, as are the options below: frameworks set these their own way.
            mode: See `where`.
            reranker: See `where`; `ckcontrol.retrieval.rerank` re-ranks any hits.
            effort: See `where`.
            min_score: See `where`; many frameworks give no scores.

        Raises:
            RetrievalError: A question is blank, `k` is not a positive whole number, an option is not supported, the
                retriever failed, or a document's text is not text.
        """
        told = {"where": where, "mode": mode, "reranker": reranker, "effort": effort, "min_score": min_score}
        for option, value in told.items():
            if value is not None:
                raise RetrievalError(f"{self.name} does not take {option}={value!r}.", UNSUPPORTED)
        check_count("k", k)
        several = check_queries(queries)
        hits: list[list[Hit]] = [self._search(query, k) for query in several]
        return hits[0] if isinstance(queries, str) else hits

    def _search(self, query: str, k: int) -> Hits:
        try:
            every = self._fetch(query, k)
        except RetrievalError:
            raise
        except Exception as error:  # whatever the framework, its store or its network raises
            raise RetrievalError(
                f"{self.name} failed: {type(error).__name__}: {error}", "Try it on its own."
            ) from error
        found = [document for document in every if not _is_blank(document)]
        blank, found = len(every) - len(found), found[:k]
        given = [self._score(document.score, rank) for rank, document in enumerate(found, 1)]
        scores = [score for score in given if score is not None]
        if len(scores) < len(found):
            scores = [1 / rank for rank in range(1, len(found) + 1)]
        hits = Hits(
            Hit(self._passage(document, rank), score, rank)
            for rank, (document, score) in enumerate(zip(found, scores, strict=True), 1)
        )
        hits.blank = blank
        return hits

    def _score(self, score: Any, rank: int) -> float | None:
        if score is None:
            return None
        try:
            number = float(score)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(score, (str, bytes)) or not math.isfinite(number):
            raise RetrievalError(
                f"document {rank} of {self.name} has the score {score!r}.", "Scores are finite numbers."
            )
        return number

    def _passage(self, document: FoundDocument, rank: int) -> Passage:
        where = f"document {rank} of {self.name}"
        if not isinstance(document.text, str):
            raise RetrievalError(f"{where} has no text, but {document.text!r:.80}.", "Give a retriever of texts.")
        metadata = {} if document.metadata is None else document.metadata
        if not isinstance(metadata, Mapping):
            raise RetrievalError(f"{where} has the metadata {metadata!r}.", "Metadata is a mapping.")
        if document.id is None or document.id == "":
            name = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        elif isinstance(document.id, (str, int)):
            name = str(document.id)
        else:
            raise RetrievalError(f"{where} has the id {document.id!r}.", "Ids are texts.")
        named = [metadata[key] for key in SOURCES if isinstance(metadata.get(key), str) and metadata[key]]
        return Passage(name, document.text, named[0] if named else "", dict(metadata))


def _is_blank(document: FoundDocument) -> bool:
    return document.text is None or (isinstance(document.text, str) and not document.text.strip())


# --- one function per framework ---------------------------------------------------------------------------------


def _langchain(retriever: Any, query: str, k: int) -> list[FoundDocument]:
    """Only a vector store's retriever has `search_kwargs`; only it is told `k`."""
    told = {"k": k} if isinstance(getattr(retriever, "search_kwargs", None), dict) else {}
    documents = _documents(retriever, retriever.invoke(query, **told), "page_content")
    return [
        FoundDocument(getattr(d, "id", None), d.page_content, getattr(d, "metadata", None), None) for d in documents
    ]


def _llama_index(retriever: Any, query: str, k: int) -> list[FoundDocument]:
    limit = getattr(retriever, "similarity_top_k", None)
    if isinstance(limit, int) and limit < k:
        raise RetrievalError(
            f"{type(retriever).__name__} brings {limit} passages, but k={k} were asked for.",
            f"Make it with similarity_top_k={k}.",
        )
    found = []
    for scored in _documents(retriever, retriever.retrieve(query), "node"):
        node = scored.node
        if not callable(getattr(node, "get_content", None)):
            raise RetrievalError(f"{type(retriever).__name__} gave a {type(node).__name__} that has no text.", "")
        content = node.get_content()
        found.append(
            FoundDocument(
                getattr(node, "node_id", None), content, getattr(node, "metadata", None), getattr(scored, "score", None)
            )
        )
    return found


def _haystack(retriever: Any, text_embedder: Any) -> Callable[[str, int], list[FoundDocument]]:
    """Look at what `run` takes once, and return what asks it."""
    name = type(retriever).__name__
    takes = inspect.signature(retriever.run).parameters
    embeds = "query_embedding" in takes and "query" not in takes
    if "query" not in takes and not embeds:
        raise RetrievalError(
            f"{name}.run takes {', '.join(takes) or 'nothing'}, but neither query nor query_embedding.",
            "Give a Haystack retriever component; a Pipeline has to be taken apart into embedder and retriever.",
        )
    if embeds and text_embedder is None:
        raise RetrievalError(
            f"{name} searches with an embedding, not with a text.",
            "Pass the text embedder that belongs to it: from_retriever(retriever, text_embedder=...).",
        )
    if not embeds and text_embedder is not None:
        raise RetrievalError(f"{name} takes texts.", TEXTS)
    if embeds and not callable(getattr(text_embedder, "run", None)):
        raise RetrievalError(
            f"{type(text_embedder).__name__} has no run(text=...).", "Give a Haystack text embedder component."
        )
    for component in (retriever, text_embedder):
        if callable(getattr(component, "warm_up", None)):
            component.warm_up()

    def fetch(query: str, k: int) -> list[FoundDocument]:
        asked: dict[str, Any] = {"top_k": k} if "top_k" in takes else {}
        if embeds:
            embedded = text_embedder.run(text=query)
            if not isinstance(embedded, Mapping) or "embedding" not in embedded:
                raise RetrievalError(f"{type(text_embedder).__name__} gave no 'embedding'.", "Give a text embedder.")
            asked["query_embedding"] = embedded["embedding"]
        else:
            asked["query"] = query
        result = retriever.run(**asked)
        if not isinstance(result, Mapping) or "documents" not in result:
            raise RetrievalError(f"{name}.run gave no 'documents'.", "Give a retriever component.")
        documents = _documents(retriever, result["documents"], "content")
        return [
            FoundDocument(getattr(d, "id", None), d.content, getattr(d, "meta", None), getattr(d, "score", None))
            for d in documents
        ]

    return fetch


def _documents(retriever: Any, documents: Any, holds: str) -> Sequence[Any]:
    """Return the documents when they are a list of what has the attribute `holds`."""
    name = type(retriever).__name__
    if not isinstance(documents, (list, tuple)):
        raise RetrievalError(f"{name} gave a {type(documents).__name__}, not documents.", "Give a retriever.")
    for document in documents:
        if not hasattr(document, holds):
            raise RetrievalError(f"{name} gave a {type(document).__name__}, which has no {holds}.", "Give a retriever.")
    return documents
