"""Passages, their texts and their words, in one SQLite file.

    documents   id, digest of what it was made from, the write that last saw it
    passages    id, document, source, metadata, and num: the text it has
    texts       num, digest, text; passages with equal texts share one
    words       FTS5 over the texts, for BM25

``num`` is also the row of the text's vector. It is given once, in corpus order, and not used again until dead rows are
squeezed out. Knows SQL; knows nothing of vectors or of where the file lies.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ckcontrol.errors import RetrievalError

from ..types import Document, Passage
from ..where import Condition, to_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TextReader", "digest_text"]

NAME = "texts.sqlite"
BUDGET = 30_000  # passages that the words of a question may touch, rarest words first; bounds the time of a search
SCHEMA = """
CREATE TABLE documents(id TEXT PRIMARY KEY, digest BLOB NOT NULL, session INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE texts(num INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, text TEXT NOT NULL);
CREATE TABLE passages(seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, document TEXT NOT NULL, num INTEGER NOT NULL,
                      source TEXT NOT NULL, metadata TEXT NOT NULL);
CREATE INDEX passages_by_document ON passages(document);
CREATE INDEX passages_by_num ON passages(num);
CREATE VIRTUAL TABLE words USING fts5(text, content='texts', content_rowid='num',
                                      tokenize='porter unicode61 remove_diacritics 2');
"""
Row = tuple[Any, ...]


def digest_text(text: str) -> bytes:
    """Return what tells texts apart, 32 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class TextReader:
    """A published file, read by any number of threads at once; each search borrows a connection."""

    def __init__(self, folder: Path) -> None:
        self._uri = f"file:{quote(str((folder / NAME).resolve()))}?mode=ro&immutable=1"
        self._idle: list[sqlite3.Connection] = []
        self._lock = Lock()
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a read-only connection."""
        with self._lock:
            link = self._idle.pop() if self._idle else None
        link = link or sqlite3.connect(self._uri, uri=True, check_same_thread=False)
        try:
            yield link
        finally:
            with self._lock:
                if not self._closed:
                    self._idle.append(link)
                    link = None
            if link is not None:
                link.close()

    def close(self) -> None:
        """Close what is not lent; the rest closes when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    __del__ = close

    def nums(self, conditions: tuple[Condition, ...] = ()) -> list[int]:
        """Return the texts that can be found under the conditions, ascending."""
        sql, bound = to_sql(conditions)
        query = (
            f"SELECT DISTINCT num FROM passages p WHERE {sql} ORDER BY num" if conditions else "SELECT num FROM texts"
        )
        with self.connection() as link:
            return sorted(row[0] for row in link.execute(query, bound))

    def fetch(self, nums: Sequence[int], conditions: tuple[Condition, ...] = ()) -> dict[int, Passage]:
        """Return for each text the first of its passages that meets the conditions."""
        sql, bound = to_sql(conditions)
        found: dict[int, Passage] = {}
        with self.connection() as link:
            for start in range(0, len(nums), 500):
                part = nums[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = link.execute(
                    "SELECT p.num, p.id, t.text, p.source, p.metadata FROM passages p JOIN texts t ON t.num = p.num "
                    f"WHERE p.num IN ({marks}) AND {sql} ORDER BY p.seq",
                    [*part, *bound],
                )
                for num, name, text, source, metadata in rows:
                    if num not in found:
                        found[num] = Passage(name, text, source, json.loads(metadata))
        return found

    def every(self) -> Iterator[Passage]:
        """Yield all passages in corpus order."""
        with self.connection() as link:
            rows = link.execute(
                "SELECT p.id, t.text, p.source, p.metadata FROM passages p JOIN texts t ON t.num = p.num ORDER BY p.seq"
            )
            for name, text, source, metadata in rows:
                yield Passage(name, text, source, json.loads(metadata))

    def bm25(self, query: str, k: int, conditions: tuple[Condition, ...] = ()) -> list[tuple[int, float]]:
        """Return (num, BM25 score) of the best `k` texts that share a word with the query, best first.

        Words are taken from the rarest on until they touch `BUDGET` passages: the common ones carry next to no weight
        but most of the work.
        """
        with self.connection() as link:
            words = _rarest(link, dict.fromkeys(re.findall(r"\w+", query.lower())))
            if not words:
                return []
            sql, bound = to_sql(conditions)
            where = f"AND rowid IN (SELECT num FROM passages p WHERE {sql})" if conditions else ""
            rows = link.execute(
                f"SELECT rowid, -rank FROM words WHERE words MATCH ? {where} ORDER BY rank, rowid LIMIT ?",
                [" OR ".join(words), *bound, k],
            )
            return [(num, score) for num, score in rows]


def _rarest(link: sqlite3.Connection, words: Iterable[str]) -> list[str]:
    """Return the words that occur, quoted, from the rarest on, until they touch `BUDGET` passages; at least one."""
    counted = []
    for word in words:
        quoted = f'"{word}"'
        query = f"SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT {BUDGET + 1})"
        counted.append((link.execute(query, (quoted,)).fetchone()[0], quoted))
    kept: list[str] = []
    total = 0
    for count, quoted in sorted(item for item in counted if item[0]):
        total += count
        if kept and total > BUDGET:
            break
        kept.append(quoted)
    return kept


def check_metadata(passage: Passage | Document) -> str:
    """Return the metadata as JSON.

    Raises:
        RetrievalError: It is not a mapping of texts to what JSON can hold.
    """
    try:
        data = dict(passage.metadata)
        if not all(isinstance(name, str) for name in data):
            raise TypeError("a name is no text")
        content = json.dumps(data, ensure_ascii=False, allow_nan=False)
        content.encode()  # half a surrogate pair is no character
        return content
    except (TypeError, ValueError, RecursionError) as error:
        raise RetrievalError(
            f"the metadata of passage {passage.id!r} cannot be kept: {error}.",
            "Use names with texts, finite numbers, booleans or None.",
        ) from error
