"""Chains of LangChain, LangGraph, LlamaIndex and Haystack as their tutorials build them; the model line is ours."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any, TypedDict
from zlib import crc32

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported
os.environ["HAYSTACK_AUTO_TRACE_ENABLED"] = "False"
os.environ["LANGSMITH_TRACING"] = "false"

import ckcontrol as ck
from ckcontrol.errors import ControlError, ServingError
from ckcontrol.integrations.engine import Engine
from ckcontrol.integrations.passages_in import CONTEXT, part
from ckcontrol.words import words_of

DOCS = ["The Tellin is 88 km long.", "It rises in Orvendale.", "The Brask is 97 km long."]
CONTROL = ck.Control("cad", 0.2)
RLM = (
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer the "
    "question. If you don't know the answer, just say that you don't know.\nQuestion: {question} \nContext: {context} "
    "\nAnswer:"
)


def expected(llama: Any, written: str, **how: Any) -> str:
    """What the library answers to the prompt that a chain wrote."""
    parted = part([{"role": "user", "content": written}], None, CONTEXT)
    assert parted.passages
    return ck.generate(*llama, **parted._asdict(), control=CONTROL, max_new_tokens=6, **how).text


# --- LangChain --------------------------------------------------------------------------------------------------------


@pytest.fixture
def langchain(llama: Any) -> Any:
    pytest.importorskip("langchain_core")
    from ckcontrol.integrations.langchain import ChatCK

    return ChatCK(llama, control=CONTROL, max_new_tokens=6)


def lcel(model: Any) -> Any:
    from langchain_core.documents import Document
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda, RunnablePassthrough

    retriever = RunnableLambda(lambda question: [Document(page_content=text) for text in DOCS[:2]])

    def format_docs(docs: Any) -> str:
        return "\n\n".join(doc.page_content for doc in docs)

    return (
        {"context": retriever | format_docs, "question": RunnablePassthrough()}
        | ChatPromptTemplate.from_messages([("human", RLM)])
        | model
        | StrOutputParser()
    )


def test_an_lcel_chain_answers_streams_and_batches(langchain: Any, llama: Any) -> None:
    chain = lcel(langchain)
    said = {q: expected(llama, RLM.format(question=q, context="\n\n".join(DOCS[:2]))) for q in ("How long?", "Where?")}
    assert chain.invoke("How long?") == said["How long?"]
    assert "".join(chain.stream("How long?")) == said["How long?"]
    assert chain.batch(["How long?", "Where?"]) == list(said.values())

    async def both() -> tuple[str, str]:
        pieces = [piece async for piece in chain.astream("Where?")]
        return await chain.ainvoke("How long?"), "".join(pieces)

    assert asyncio.run(both()) == tuple(said.values())


def test_langchain_tells_what_was_done(langchain: Any) -> None:
    from langchain_core.documents import Document

    docs = [Document(page_content=text) for text in DOCS]
    told = langchain.invoke("How long is the Brask?", passages=docs)
    assert told.response_metadata["ck"]["passages"] == 3 and told.response_metadata["ck"]["method"] == "cad"
    assert told.usage_metadata["output_tokens"] <= 6
    assert langchain.bind(passages=docs).invoke("How long is the Brask?").content == told.content
    *_, last = langchain.stream("How long is the Brask?", passages=docs)
    assert last.response_metadata["ck"] == told.response_metadata["ck"]
    with pytest.raises((ControlError, TypeError)):
        langchain.invoke("How long?", tools=[{}])
    with pytest.raises(ControlError, match="alhpa"):
        type(langchain)(langchain._engine._pair, alhpa=0.3)


def test_a_langgraph_graph(langchain: Any, llama: Any) -> None:
    graphs = pytest.importorskip("langgraph.graph")
    from langchain_core.documents import Document
    from langchain_core.prompts import ChatPromptTemplate

    prompt = ChatPromptTemplate.from_messages([("human", RLM)])

    class State(TypedDict):
        question: str
        context: list[Any]
        answer: str

    def retrieve(state: State) -> dict[str, Any]:
        return {"context": [Document(page_content=text) for text in DOCS[:2]]}

    def generate(state: State) -> dict[str, Any]:
        docs_content = "\n\n".join(doc.page_content for doc in state["context"])
        messages = prompt.invoke({"question": state["question"], "context": docs_content})
        return {"answer": langchain.invoke(messages).content}

    graph = graphs.StateGraph(State).add_sequence([retrieve, generate]).add_edge(graphs.START, "retrieve").compile()
    wanted = expected(llama, RLM.format(question="How long?", context="\n\n".join(DOCS[:2])))
    assert graph.invoke({"question": "How long?"})["answer"] == wanted
    pieces = [message.content for message, _ in graph.stream({"question": "How long?"}, stream_mode="messages")]
    assert "".join(pieces) == wanted


# --- LlamaIndex -------------------------------------------------------------------------------------------------------


def engines(llm: Any, documents: list[Any]) -> Iterator[Any]:
    """The query engines of LlamaIndex's tutorial, over a real index of its own; only `llm` is not the tutorial's."""
    from llama_index.core import VectorStoreIndex
    from llama_index.core.base.embeddings.base import BaseEmbedding

    class Words(BaseEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        def _get_text_embedding(self, text: str) -> list[float]:
            return hashed(text)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

    index = VectorStoreIndex.from_documents(documents, embed_model=Words())
    for streaming in (False, True):
        yield index.as_query_engine(llm=llm, similarity_top_k=2, streaming=streaming)


def hashed(text: str) -> list[float]:
    """A vector of the words of a text: texts that share words are near each other."""
    vector = [0.0] * 256
    for word in words_of(text):
        vector[crc32(word.encode()) % 256] += 1.0
    return vector


@pytest.mark.parametrize("where", ["here", "server"])
def test_a_llama_index_query_engine(llama: Any, request: pytest.FixtureRequest, where: str) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core import Document
    from llama_index.core.prompts.default_prompts import DEFAULT_TEXT_QA_PROMPT_TMPL

    from ckcontrol.integrations.llama_index import CKLLM

    model = llama if where == "here" else request.getfixturevalue("served").url
    llm = CKLLM(model, control=CONTROL, max_new_tokens=6)
    asked = "How long is the Brask?"
    whole, streamed = engines(llm, [Document(text=text) for text in DOCS])
    made = whole.query(asked)
    texts = [node.get_content() for node in made.source_nodes]
    assert len(texts) == 2 and texts[0] == DOCS[2]  # found by the index
    wanted = expected(llama, DEFAULT_TEXT_QA_PROMPT_TMPL.format(context_str="\n\n".join(texts), query_str=asked))
    assert str(made) == (wanted or "Empty Response")
    assert "".join(streamed.query(asked).response_gen) == wanted
    assert str(asyncio.run(whole.aquery(asked))) == str(made)


def test_a_llama_index_model_is_given_passages(llama: Any) -> None:
    pytest.importorskip("llama_index.core")
    from ckcontrol.integrations.llama_index import CKLLM

    llm, plain = CKLLM(llama, control=CONTROL, max_new_tokens=6), "How long is the Brask?"
    whole = llm.complete(plain, passages=DOCS)
    assert whole.raw["ck"]["passages"] == 3
    assert "".join(piece.delta or "" for piece in llm.stream_complete(plain, passages=DOCS)) == whole.text

    async def both() -> tuple[str, str]:
        stream = await llm.astream_complete(plain, passages=DOCS)
        pieces = [piece.delta or "" async for piece in stream]
        return (await llm.acomplete(plain, passages=DOCS)).text, "".join(pieces)

    assert asyncio.run(both()) == (whole.text, whole.text)


# --- Haystack ---------------------------------------------------------------------------------------------------------

HAYSTACK = """
Given the following information, answer the question.

Context:
{% for document in documents %}
    {{ document.content }}
{% endfor %}

Question: {{question}}
Answer:
"""


def test_a_haystack_pipeline(llama: Any) -> None:
    pytest.importorskip("haystack")
    from haystack import Document, Pipeline
    from haystack.components.builders import ChatPromptBuilder
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
    from haystack.dataclasses import ChatMessage
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    from ckcontrol.integrations.haystack import CKChatGenerator

    store = InMemoryDocumentStore()
    store.write_documents([Document(content=text) for text in DOCS])

    def built(pipeline: Any) -> Any:
        pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=2))
        pipeline.add_component(
            "prompt_builder",
            ChatPromptBuilder([ChatMessage.from_user(HAYSTACK)], required_variables=["question", "documents"]),
        )
        pipeline.add_component("llm", CKChatGenerator(llama, control=CONTROL, max_new_tokens=6))
        pipeline.connect("retriever", "prompt_builder.documents")
        pipeline.connect("prompt_builder.prompt", "llm.messages")
        return pipeline

    asked = {"retriever": {"query": "long km"}, "prompt_builder": {"question": "How long?"}}
    pieces: list[str] = []
    told = {**asked, "llm": {"streaming_callback": lambda chunk: pieces.append(chunk.content)}}
    pipeline = built(Pipeline())
    reply = pipeline.run(told, include_outputs_from={"prompt_builder"})
    written = reply["prompt_builder"]["prompt"][0].text
    made = reply["llm"]["replies"][0]
    assert made.text == "".join(pieces) == expected(llama, written)
    assert made.meta["ck"]["passages"] == 2 and made.meta["ck"]["method"] == "cad"
    again = asyncio.run(built(Pipeline()).run_async(asked))["llm"]["replies"][0]
    assert again.text == made.text
    generator = pipeline.get_component("llm")
    with_documents = generator.run([ChatMessage.from_user("How long?")], documents=[Document(content=DOCS[0])])
    assert with_documents["replies"][0].meta["ck"]["passages"] == 1
    assert generator.to_dict()["init_parameters"]["control"] == CONTROL.to_dict()


# --- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(llama: Any) -> Iterator[Any]:
    pytest.importorskip("uvicorn")
    pytest.importorskip("openai")
    from tests.serving.served import serve

    with serve(*llama) as server:
        yield server


def test_a_server_answers_as_the_model_does(llama: Any, served: Any) -> None:
    here, there = (Engine(model, control=CONTROL, max_new_tokens=6) for model in (llama, served.url))
    written = [{"role": "user", "content": RLM.format(question="How long?", context="\n\n".join(DOCS))}]
    reply = here.ask(written)
    assert there.ask(written)[:2] == reply[:2] and there.ask(written).told["cited"] == reply.told["cited"]
    *pieces, last = there.stream(written)
    assert "".join(map(str, pieces)) == last.text == reply.text  # type: ignore[union-attr]
    assert asyncio.run(there.aask(written)).text == reply.text
    assert there.ask(written[:1], passages=["One."]).told["passages"] == 1
    plain = [{"role": "user", "content": "How long?"}]
    assert there.ask(plain).text == here.ask(plain).text
    with pytest.raises(ServingError, match="400"):
        there.ask([{"role": "user", "content": " "}])
    with pytest.raises(ServingError, match="reached"):
        Engine("http://127.0.0.1:9").ask(plain)


def test_a_server_is_asked_for_the_name_of_its_model_once(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from openai.resources.models import Models

    asked: list[Any] = []
    listed = Models.list
    monkeypatch.setattr(Models, "list", lambda client: asked.append(client) or listed(client))
    engine = Engine(served.url, max_new_tokens=2)
    for _ in range(3):
        engine.ask([{"role": "user", "content": "How long?"}])
    assert len(asked) == 1


def test_a_control_without_passages_is_said_once(llama: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(llama, control=CONTROL, max_new_tokens=2)
    for _ in range(2):
        engine.ask([{"role": "user", "content": "How long?"}])
    assert caplog.text.count("No passages were found") == 1


def test_who_leaves_a_stream_ends_it(llama: Any) -> None:
    stream = Engine(llama, control=CONTROL, max_new_tokens=400).stream([{"role": "user", "content": "How long?"}])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert list(stream) == []
