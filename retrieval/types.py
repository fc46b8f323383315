"""The records of retrieval, and what every kind of index checks of a search before anything is embedded.

Plain values: no vectors, no files, no index.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckcontrol.errors import RetrievalError, did_you_mean

__all__ = [
    "METRICS",
    "Document",
    "Hit",
    "Passage",
    "Skipped",
    "check_choice",
    "check_count",
    "check_floor",
    "check_queries",
]

METRICS = ("cosine", "ip")  # ip: inner products of vectors as they come


@dataclass(frozen=True)
class Document:
    """A text as it was found, of any length; a `Chunker` cuts it into passages.

    Attributes:
        id: Unique in its index: a path, or what a record calls itself. Adding it again replaces it; from another file
            (metadata's ``path``, or else `source`) it is refused.
        text: The whole text.
        source: Where it comes from, for people: a title, a path, a URL.
        metadata: Names to numbers, texts, booleans or None; `where` filters on them. Every passage inherits them.
    """

    id: str
    text: str
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Passage:
    """A text that can be retrieved.

    Attributes:
        id: Unique in its index.
        text: What is embedded, and what a prompt quotes.
        source: Where it comes from, for people: a title, a path, a URL.
        metadata: Anything else; carried along, filtered on by `where`. A passage cut from a document holds
            ``document`` (its id) and ``start`` and ``end``, character offsets into the document's text.
    """

    id: str
    text: str
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Hit:
    """A passage found by a query.

    Attributes:
        passage: What was found.
        score: What it was ranked by: cosine or inner product, BM25, fused reciprocal ranks, or a re-ranker's score.
        rank: Place in the result, from 1.
    """

    passage: Passage
    score: float
    rank: int

    def to_dict(self) -> dict[str, Any]:
        """Return rank, score, id, source, text and metadata in one mapping, as the command line prints them."""
        passage = self.passage
        return {
            "rank": self.rank,
            "score": self.score,
            "id": passage.id,
            "source": passage.source,
            "text": passage.text,
            "metadata": dict(passage.metadata),
        }


@dataclass(frozen=True)
class Skipped:
    """An input that was left out, and why. Nothing is left out without one of these.

    Attributes:
        name: The file, with the record where a file has several: ``notes.jsonl line 7``.
        reason: One sentence.
    """

    name: str
    reason: str


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse what is not one of the known values.

    Raises:
        RetrievalError: Naming `name`, the value and what is known.
    """
    if value not in known:
        raise RetrievalError(f"{name}={value!r} is unknown.", did_you_mean(str(value), known))


def check_count(name: str, value: Any) -> None:
    """Refuse what is not a positive whole number.

    Raises:
        RetrievalError: Naming `name` and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RetrievalError(f"{name}={value!r} is not a positive whole number.", "Give 1 or more.")


def check_floor(value: Any) -> None:
    """Refuse a least score that is not a finite number.

    Raises:
        RetrievalError: Naming the value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RetrievalError(f"min_score={value!r} is not a finite number.", "Like 0.3, of the scores that come back.")


def check_queries(queries: str | Sequence[str]) -> list[str]:
    """Return one question or several as a list.

    Raises:
        RetrievalError: A question is blank, no text, or holds half a character; its place is named.
    """
    several = [queries] if isinstance(queries, str) else list(queries)
    for number, query in enumerate(several):
        if not isinstance(query, str) or not query.strip():
            raise RetrievalError(f"query {number} is {query!r}, which asks nothing.", "Give it some text.")
        try:
            query.encode()
        except UnicodeEncodeError as error:
            hint = "Decode its bytes with errors='replace'."
            raise RetrievalError(f"query {number} is {query!a:.80}, which holds half a character.", hint) from error
    return several
