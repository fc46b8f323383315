"""The two records of retrieval. Plain values: no vectors, no index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Hit", "Passage"]


@dataclass(frozen=True)
class Passage:
    """A text that can be retrieved.

    Attributes:
        id: Unique in its index.
        text: What is embedded, and what a prompt quotes.
        source: Where it comes from, for people: a title, a path, a URL.
        metadata: Anything else; carried along, never read.
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
        score: Cosine of query and passage, -1 to 1.
        rank: Place in the result, from 1.
    """

    passage: Passage
    score: float
    rank: int
