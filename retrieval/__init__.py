"""Texts in, scored passages out. Knows nothing of language models, controls or prompts.

    index = Index.build(read(["docs/"]), Embedder("demo"), "idx/")     cut, embed and index a folder
    index = Index.open("idx/")                                          every file checked before it is read
    index.search("Which river runs through Paris?", k=4, mode="hybrid", where={"lang": "en"})
    index.add(read(["docs/"])); index.remove(documents=["docs/old.md"])

`write_questions` keeps questions that each text answers beside it, so that a question finds a text by a question.
`from_retriever` gives a LangChain, LlamaIndex or Haystack retriever the same `search`; `MilvusIndex` is the same index
over an engine that several machines share. Nothing heavy is imported before it is used.
"""

if __name__ != "ckcontrol.retrieval":
    raise ImportError("this directory is installed as ckcontrol.retrieval; import that name")

from .adapt import Retriever, from_retriever
from .chunk import Chunker
from .embed import Embedder, TextEncoder
from .index import Index
from .milvus.index import MilvusIndex
from .overrides import Override, Overrides, read_overrides
from .questions import QuestionChange, write_questions
from .reading.read import read
from .rerank import Reranker, TextScorer
from .types import Document, Hit, Passage, Skipped

__all__ = [
    "Chunker",
    "Document",
    "Embedder",
    "Hit",
    "Index",
    "MilvusIndex",
    "Override",
    "Overrides",
    "Passage",
    "QuestionChange",
    "Reranker",
    "Retriever",
    "Skipped",
    "TextEncoder",
    "TextScorer",
    "from_retriever",
    "read",
    "read_overrides",
    "write_questions",
]
