"""Adapters against the real frameworks: what their retrievers find comes out as hits, in their order.

Each framework is skipped where it is not installed; what goes wrong is tested with small objects of our own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported

from ckcontrol.errors import RetrievalError
from ckcontrol.retrieval import Hit, Passage
from ckcontrol.retrieval.adapt import Retriever, from_retriever

TEXTS = ["The river runs through the city.", "Salt is white.", "Gold is heavy, gold is dear."]
WORDS = ["river", "city", "salt", "white", "gold", "heavy"]


def vector(text: str) -> list[float]:
    """Counts of known words; a little of everything, so that no vector is zero."""
    return [text.lower().count(word) + 0.01 for word in WORDS]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: Any) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield


def ids(hits: list[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


# --- LangChain ---------------------------------------------------------------------------------------------------


@pytest.fixture
def langchain_store() -> Any:
    pytest.importorskip("langchain_core")
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import InMemoryVectorStore

    class Words(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [vector(text) for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return vector(text)

    store = InMemoryVectorStore(Words())
    store.add_texts(TEXTS, [{"source": f"{n}.txt", "page": n} for n in range(3)], ids=["a", "b", "c"])
    return store


def test_langchain_retriever(langchain_store: Any) -> None:
    retriever: Retriever = from_retriever(langchain_store.as_retriever())
    hits = retriever.search("gold, then salt; gold", k=2)
    assert hits == [
        Hit(Passage("c", TEXTS[2], "2.txt", {"source": "2.txt", "page": 2}), 1.0, 1),
        Hit(Passage("b", TEXTS[1], "1.txt", {"source": "1.txt", "page": 1}), 0.5, 2),
    ]
    assert retriever.search(["gold", "river"], k=1) == [retriever.search("gold", k=1), retriever.search("river", k=1)]
    assert retriever.search([]) == []


def test_langchain_store_is_told_k_whatever_its_retriever_was_made_with(langchain_store: Any) -> None:
    assert len(from_retriever(langchain_store.as_retriever(search_kwargs={"k": 1})).search("gold", k=3)) == 3
    assert ids(from_retriever(langchain_store).search("gold", k=1)) == ["c"]


def test_langchain_retriever_of_ones_own_without_ids() -> None:
    """A retriever that takes nothing but the query; its documents have neither ids nor sources."""
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    class Fixed(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Any]:
            return [Document(page_content=text) for text in TEXTS]

    hits = from_retriever(Fixed()).search("anything", k=2)
    assert [hit.passage.text for hit in hits] == TEXTS[:2]
    assert len(set(ids(hits))) == 2
    assert ids(hits) == ids(from_retriever(Fixed()).search("something else", k=2))
    assert hits[0].passage.source == ""


def test_langchain_chain_that_finds_nothing_like_documents() -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.runnables import RunnableLambda

    with pytest.raises(RetrievalError, match="RunnableLambda gave a str, not documents"):
        from_retriever(RunnableLambda(lambda query: query)).search("gold")


# --- LlamaIndex --------------------------------------------------------------------------------------------------


@pytest.fixture
def llama_index() -> Any:
    pytest.importorskip("llama_index.core")
    from llama_index.core import VectorStoreIndex
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.schema import TextNode

    class Words(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return vector(text)

        def _get_query_embedding(self, query: str) -> list[float]:
            return vector(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return vector(query)

    nodes = [TextNode(text=t, id_=i, metadata={"file_name": i + ".md"}) for i, t in zip("abc", TEXTS, strict=True)]
    return VectorStoreIndex(nodes, embed_model=Words())


def test_llama_index_retriever(llama_index: Any) -> None:
    real = llama_index.as_retriever(similarity_top_k=3)
    hits = from_retriever(real).search("gold and salt", k=2)
    expected = real.retrieve("gold and salt")
    assert ids(hits) == [scored.node.node_id for scored in expected[:2]] == ["c", "b"]
    assert [hit.score for hit in hits] == [scored.score for scored in expected[:2]]
    assert hits[0].passage == Passage("c", TEXTS[2], "c.md", {"file_name": "c.md"})


def test_llama_index_that_brings_too_few_says_so(llama_index: Any) -> None:
    """Its default is two; five would silently be two."""
    retriever = from_retriever(llama_index)
    assert len(retriever.search("gold", k=2)) == 2
    with pytest.raises(RetrievalError, match=r"brings 2 passages, but k=5.*similarity_top_k=5"):
        retriever.search("gold")


def test_llama_index_retriever_of_ones_own_without_scores() -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, TextNode

    class Mixed(BaseRetriever):
        def _retrieve(self, query_bundle: Any) -> list[Any]:
            return [NodeWithScore(node=TextNode(text=t), score=s) for t, s in zip(TEXTS, [9.0, None, 7], strict=True)]

    hits = from_retriever(Mixed()).search("anything", k=3)
    assert [hit.score for hit in hits] == [1, 1 / 2, 1 / 3]  # one score is missing: none is used
    assert [hit.score for hit in from_retriever(Mixed()).search("anything", k=1)] == [9.0]


# --- Haystack ----------------------------------------------------------------------------------------------------


@pytest.fixture
def haystack_store() -> Any:
    pytest.importorskip("haystack")
    from haystack import Document
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    store = InMemoryDocumentStore()
    store.write_documents(
        [Document(id=i, content=t, meta={"url": i}, embedding=vector(t)) for i, t in zip("abc", TEXTS, strict=True)]
    )
    return store


def test_haystack_text_retriever(haystack_store: Any) -> None:
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever

    real = InMemoryBM25Retriever(haystack_store, top_k=1)
    hits = from_retriever(real).search("heavy gold or white salt", k=2)
    assert [(hit.passage.id, hit.score) for hit in hits] == [
        (document.id, document.score) for document in real.run("heavy gold or white salt", top_k=2)["documents"]
    ]
    assert hits[0].passage == Passage("b", TEXTS[1], "b", {"url": "b"})


def test_haystack_embedding_retriever_needs_its_text_embedder(haystack_store: Any) -> None:
    from haystack import component
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever

    @component
    class Words:
        warm = False

        def warm_up(self) -> None:
            self.warm = True

        @component.output_types(embedding=list[float])
        def run(self, text: str) -> dict[str, list[float]]:
            assert self.warm
            return {"embedding": vector(text)}

    retriever = InMemoryEmbeddingRetriever(haystack_store)
    assert ids(from_retriever(retriever, text_embedder=Words()).search("river city", k=1)) == ["a"]
    with pytest.raises(RetrievalError, match=r"InMemoryEmbeddingRetriever searches with an embedding.*text_embedder="):
        from_retriever(retriever)
    with pytest.raises(RetrievalError, match=r"str has no run\(text"):
        from_retriever(retriever, text_embedder="Words")
    with pytest.raises(RetrievalError, match="InMemoryBM25Retriever takes texts"):
        from_retriever(InMemoryBM25Retriever(haystack_store), text_embedder=Words())


def test_haystack_pipeline_is_refused() -> None:
    pytest.importorskip("haystack")
    from haystack import Pipeline

    with pytest.raises(RetrievalError, match=r"neither query nor query_embedding.*taken apart"):
        from_retriever(Pipeline())


# --- what goes wrong ---------------------------------------------------------------------------------------------


class Fake:
    """Gives what it was made with, as a LangChain retriever would."""

    def __init__(self, *documents: Any) -> None:
        self.documents = list(documents)

    def invoke(self, query: str) -> list[Any]:
        return self.documents


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (SimpleNamespace(page_content=b"gold", id="a", metadata={}), "has no text, but b'gold'"),
        (SimpleNamespace(page_content="gold", id=["a"], metadata={}), r"has the id \['a'\]"),
        (SimpleNamespace(page_content="gold", id="a", metadata="x"), "has the metadata 'x'"),
        ("gold", "Fake gave a str, which has no page_content"),
    ],
)
def test_documents_that_are_none(document: Any, message: str) -> None:
    with pytest.raises(RetrievalError, match=message):
        from_retriever(Fake(document)).search("gold")


@pytest.mark.parametrize("blank", ["", " \n\t", "\u3000", None])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_blank_document_is_left_out_and_counted(blank: Any, place: int) -> None:
    """One of them in a store must not fail the question; the next document takes its place."""
    documents = [SimpleNamespace(page_content=text, id=text, metadata={}) for text in ("gold", "salt")]
    documents.insert(place, SimpleNamespace(page_content=blank, id="none", metadata={}))
    hits = from_retriever(Fake(*documents)).search("gold", k=2)
    assert ids(hits) == ["gold", "salt"] and [hit.rank for hit in hits] == [1, 2] and hits.blank == 1
    only = from_retriever(Fake(documents[place])).search(["gold", "salt"])
    assert only == [[], []] and [found.blank for found in only] == [1, 1]


def test_a_blank_document_of_each_framework_is_left_out() -> None:
    class Node:
        node_id, metadata = "n", None

        def __init__(self, text: str) -> None:
            self.get_content = lambda: text

    class Llama:
        def retrieve(self, query: str) -> list[Any]:
            return [SimpleNamespace(node=Node(text), score=score) for text, score in ((" ", 3.0), ("gold", 2.0))]

    class Hay:
        def run(self, query: str) -> dict[str, list[Any]]:
            return {
                "documents": [
                    SimpleNamespace(id=str(i), content=c, meta={}, score=1.0) for i, c in enumerate((None, "gold"))
                ]
            }

    for retriever, score in ((Llama(), 2.0), (Hay(), 1.0)):
        hits = from_retriever(retriever).search("gold")
        assert [(hit.passage.text, hit.score) for hit in hits] == [("gold", score)] and hits.blank == 1


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "0.5", [1.0], "high"])
def test_scores_that_are_none(score: Any) -> None:
    class Scored:
        def run(self, query: str) -> dict[str, list[Any]]:
            return {"documents": [SimpleNamespace(id="a", content="gold", meta=None, score=score)]}

    with pytest.raises(RetrievalError, match="document 1 of Scored has the score"):
        from_retriever(Scored()).search("gold")


def test_a_failing_retriever_is_named() -> None:
    class Broken:
        def retrieve(self, query: str) -> list[Any]:
            raise ConnectionError("store is down")

    with pytest.raises(RetrievalError, match="Broken failed: ConnectionError: store is down") as caught:
        from_retriever(Broken()).search("gold")
    assert isinstance(caught.value.__cause__, ConnectionError)


@pytest.mark.parametrize("thing", [object(), "a path", None, 3, Fake])
def test_what_is_no_retriever(thing: Any) -> None:
    with pytest.raises(RetrievalError, match=r"no retriever|is a class"):
        from_retriever(thing)


@pytest.mark.parametrize("option", [{"where": {"year": 3}}, {"mode": "bm25"}, {"reranker": object()}, {"effort": 3}])
def test_what_only_an_index_can_do(option: dict[str, Any]) -> None:
    with pytest.raises(RetrievalError, match=f"Fake does not take {next(iter(option))}=.*build an Index"):
        from_retriever(Fake()).search("gold", **option)
    assert from_retriever(Fake()).search("gold", **dict.fromkeys(option)) == []


@pytest.mark.parametrize(("query", "k"), [("", 1), ("gold", 0), ("gold", True), (["gold", " "], 1), ("gold", 1.0)])
def test_bad_questions(query: Any, k: Any) -> None:
    with pytest.raises(RetrievalError, match=r"asks nothing|positive whole number"):
        from_retriever(Fake()).search(query, k=k)
