"""Texts in, scored passages out. Knows nothing of language models, controls or prompts.

>>> from ckcontrol.retrieval import Embedder, Index, Passage
>>> index = Index.build([Passage("1", "Paris lies on the Seine.")], Embedder(path))  # doctest: +SKIP
>>> index.search("Which river runs through Paris?", k=1)[0].passage.id               # doctest: +SKIP
'1'
"""

if __name__ != "ckcontrol.retrieval":
    raise ImportError("this directory is installed as ckcontrol.retrieval; import that name")

from .embed import Embedder, TextEncoder
from .index import Index
from .types import Document, Hit, Passage, Skipped

__all__ = ["Document", "Embedder", "Hit", "Index", "Passage", "Skipped", "TextEncoder"]
