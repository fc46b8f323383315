"""Passages, their texts and their words, in one SQLite file: read by any number of threads, written by one.

    documents   id, digest of what it was made from, the write that last saw it
    passages    id, document, source, metadata, and num: the text it has
    texts       num, digest, text; passages with equal texts share one; words: what `words.spell` makes of it, where it
                differs (older indexes have no such column)
    words       FTS5 over these words, for BM25

``num`` is also the row of the text's vector. It is given once, in corpus order, and not used again until dead rows are
squeezed out. A file that is not published yet is thrown away when its write fails, so SQLite neither journals nor
flushes it; publishing does that. Knows SQL; knows nothing of vectors or of where the file lies.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import NamedTuple
from urllib.parse import quote

from ckcontrol.errors import RetrievalError
from ckcontrol.words import search_terms, spell

from ..types import Passage
from ..where import Condition, is_text, to_sql
from ..writing import check_metadata, origin

__all__ = ["CutDocument", "TextReader", "TextWriter", "digest_text"]

NAME = "texts.sqlite"
ANSWERED = "answered_by"  # in the metadata of a question: the digest of its text
BUDGET = 30_000  # passages that the words of a question may touch, rarest words first; bounds the time of a search
SCHEMA = """
CREATE TABLE documents(id TEXT PRIMARY KEY, digest BLOB NOT NULL, session INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE texts(num INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, text TEXT NOT NULL, words TEXT);
CREATE VIEW spelled AS SELECT num, coalesce(words, text) AS text FROM texts;
CREATE TABLE passages(seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, document TEXT NOT NULL, num INTEGER NOT NULL,
                      source TEXT NOT NULL, metadata TEXT NOT NULL);
CREATE INDEX passages_by_document ON passages(document);
CREATE INDEX passages_by_num ON passages(num);
CREATE VIRTUAL TABLE words USING fts5(text, content='spelled', content_rowid='num',
                                      tokenize="porter unicode61 remove_diacritics 2 categories 'L* N* Co M*'");
"""


def digest_text(text: str) -> bytes:
    """Return what tells texts apart, 32 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class TextReader:
    """A published file, read by any number of threads at once; each search borrows a connection.

    Args:
        folder: The generation's.
        words: Version of its words, as the manifest says.
    """

    def __init__(self, folder: Path, words: int) -> None:
        self._words = words
        self._idle: list[sqlite3.Connection] = []
        self._lock = Lock()
        self._closed = False
        self._uri = f"file:{quote(str((folder / NAME).resolve()))}?mode=ro&immutable=1"

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

    def digests(self) -> dict[str, int]:
        """Return the number of every text by its digest in hexadecimal."""
        with self.connection() as link:
            return {digest.hex(): num for digest, num in link.execute("SELECT digest, num FROM texts")}

    def marked(self, name: str) -> list[tuple[int, str]]:
        """Return (num, value) of every passage whose metadata have a text of this name."""
        with self.connection() as link:
            rows = link.execute("SELECT num, metadata FROM passages")
            values = [(num, json.loads(metadata).get(name)) for num, metadata in rows]
        return [(num, value) for num, value in values if isinstance(value, str)]

    @cached_property
    def names(self) -> frozenset[str]:
        """The names in the metadata of all passages, which never change: read once."""
        with self.connection() as link:
            rows = link.execute("SELECT DISTINCT m.key FROM passages, json_each(metadata) m WHERE m.type <> 'null'")
            return frozenset(name for (name,) in rows)

    def documents(self) -> list[tuple[str, str]]:
        """Return (id, file) of every document that was read from a file, in corpus order."""
        with self.connection() as link:
            return link.execute(
                "SELECT document, json_extract(metadata, '$.path') AS path FROM passages "
                "WHERE json_type(metadata, '$.path') = 'text' GROUP BY document ORDER BY min(seq)"
            ).fetchall()

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
            asked = search_terms(query) if self._words else _plain_terms(query)
            words = _rarest(link, asked)
            if not words:
                return []
            sql, bound = to_sql(conditions)
            where = f"AND rowid IN (SELECT num FROM passages p WHERE {sql})" if conditions else ""
            rows = link.execute(
                f"SELECT rowid, -rank FROM words WHERE words MATCH ? {where} ORDER BY rank, rowid LIMIT ?",
                [" OR ".join(words), *bound, k],
            )
            return [(num, score) for num, score in rows]


def _plain_terms(query: str) -> list[str]:
    """Return what an index without words of version 1 is asked."""
    return [f'"{word}"' for word in dict.fromkeys(re.findall(r"\w+", query.lower()))]


def _rarest(link: sqlite3.Connection, words: Iterable[str]) -> list[str]:
    """Return those of the quoted words that occur, rarest first, until they touch `BUDGET` passages; at least one."""
    counted = []
    for quoted in words:
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


# --- writing ----------------------------------------------------------------------------------------------------


class CutDocument(NamedTuple):
    """A document cut into passages.

    Attributes:
        id: The document's.
        digest: Of what it was made from.
        passages: None where it is stored just so.
        origin: Where it comes from, as `writing.origin` says.
    """

    id: str
    digest: bytes
    passages: list[Passage]
    origin: str = ""


class TextWriter:
    """The file of a new generation: a copy of the last one's, or empty; `words`: version of its words, for life."""

    def __init__(self, folder: Path, base: Path | None, words: int) -> None:
        self._words = words
        path = folder / NAME
        if base is not None:
            shutil.copyfile(base / NAME, path)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"):
            self._db.execute(f"PRAGMA {pragma}")
        if base is None:
            self._db.executescript(SCHEMA)
        self.session = 1 + (self._one("SELECT max(session) FROM documents") or 0)

    def close(self) -> None:
        """Close the file; it is complete."""
        self._db.close()

    def _one(self, sql: str, bound: Sequence[object] = ()) -> int:
        return self._db.execute(sql, bound).fetchone()[0]  # type: ignore[no-any-return]

    def known(self, document: str) -> tuple[bytes, bool] | None:
        """Return the digest a document was stored with and whether this write has seen it; None: it is new."""
        row = self._db.execute("SELECT digest, session FROM documents WHERE id = ?", (document,)).fetchone()
        return None if row is None else (row[0], row[1] == self.session)

    def missing(self, digests: Iterable[bytes]) -> int:
        """Return how many of the texts are not stored."""
        return sum(not self._has(digest) for digest in digests)

    def _has(self, digest: bytes) -> bool:
        return self._db.execute("SELECT 1 FROM texts WHERE digest = ?", (digest,)).fetchone() is not None

    def owner(self, passage: str) -> str | None:
        """Return the document that has a passage of this id; None: there is none."""
        row = self._db.execute("SELECT document FROM passages WHERE id = ?", (passage,)).fetchone()
        return None if row is None else row[0]

    def origin(self, document: str) -> str:
        """Return where a stored document comes from; "": unknown."""
        row = self._db.execute(
            "SELECT source, metadata FROM passages WHERE document = ? LIMIT 1", (document,)
        ).fetchone()
        return "" if row is None else origin(row[0], json.loads(row[1]))

    def touch(self, documents: Iterable[str]) -> None:
        """Note that this write has seen the documents."""
        self._db.executemany("UPDATE documents SET session = ? WHERE id = ?", ((self.session, d) for d in documents))

    def unknown_texts(self, documents: Iterable[CutDocument]) -> dict[bytes, str]:
        """Return the texts that have no number yet, by digest, in order and each once."""
        wanted: dict[bytes, str] = {}
        for document in documents:
            for passage in document.passages:
                wanted.setdefault(digest_text(passage.text), passage.text)
        return {digest: text for digest, text in wanted.items() if not self._has(digest)}

    def add(self, documents: Sequence[CutDocument], texts: dict[bytes, str], first: int) -> int:
        """Store documents; those stored before are replaced. Return how many passages were folded into earlier ones.

        Args:
            documents: Those that are new or changed.
            texts: What `unknown_texts` gave for them; numbered from `first` on, in order.
            first: Vectors there are already.

        Raises:
            RetrievalError: A passage id belongs to another document, or metadata that JSON cannot hold.
        """
        self._db.execute("BEGIN")
        for num, (digest, text) in enumerate(texts.items(), first):
            words = spell(text) if self._words else text
            self._db.execute("INSERT INTO texts(num, digest, text) VALUES (?, ?, ?)", (num, digest, text))
            self._db.execute("INSERT INTO words(rowid, text) VALUES (?, ?)", (num, words))
            if words != text:
                self._db.execute("UPDATE texts SET words = ? WHERE num = ?", (words, num))
        orphans: set[int] = set()
        folded = 0
        for document in documents:
            orphans |= self._drop("document = ?", (document.id,))
            for passage in document.passages:
                num = self._one("SELECT num FROM texts WHERE digest = ?", (digest_text(passage.text),))
                folded += bool(self._db.execute("SELECT 1 FROM passages WHERE num = ?", (num,)).fetchone())
                row = (passage.id, document.id, num, passage.source, check_metadata(passage))
                try:
                    self._db.execute(
                        "INSERT INTO passages(id, document, num, source, metadata) VALUES (?, ?, ?, ?, ?)", row
                    )
                except sqlite3.IntegrityError as error:
                    raise RetrievalError(
                        f"passage id {passage.id!r} occurs twice.", "Give every passage its own id."
                    ) from error
            self._db.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (document.id, document.digest, self.session)
            )
        self._bury(orphans)
        self._db.execute("COMMIT")
        return folded

    def remove(self, documents: Sequence[str], passages: Sequence[str], conditions: tuple[Condition, ...]) -> int:
        """Remove whole documents, single passages, and what meets the conditions. Return how many passages went.

        Raises:
            RetrievalError: A name that is not in the index.
        """
        self._db.execute("BEGIN")
        before = self._one("SELECT count(*) FROM passages")
        orphans: set[int] = set()
        for name in dict.fromkeys(documents):
            if not is_text(name) or self.known(name) is None:
                raise RetrievalError(f"there is no document {name!r}.", "Names are paths as they were given, or ids.")
            orphans |= self._drop("document = ?", (name,))
        for name in dict.fromkeys(passages):
            gone = self._drop("id = ?", (name,)) if is_text(name) else set()
            if not gone:
                raise RetrievalError(f"there is no passage {name!r}.", "Searching with --json shows the ids.")
            orphans |= gone
        if conditions:
            sql, bound = to_sql(conditions, "passages")
            orphans |= self._drop(sql, bound)
        self._bury(orphans)
        self._db.execute("DELETE FROM documents WHERE id NOT IN (SELECT document FROM passages)")
        self._db.execute("COMMIT")
        return before - self._one("SELECT count(*) FROM passages")

    def _drop(self, sql: str, bound: Sequence[object]) -> set[int]:
        """Delete passages; return the texts they had. What remains of their documents counts as changed."""
        gone: list[tuple[int, str]] = self._db.execute(
            f"SELECT num, document FROM passages WHERE {sql}", bound
        ).fetchall()
        self._db.execute(f"DELETE FROM passages WHERE {sql}", bound)
        names = {(name,) for _, name in gone}
        self._db.executemany("UPDATE documents SET digest = x'' WHERE id = ?", names)
        return {num for num, _ in gone}

    def _bury(self, nums: set[int]) -> None:
        """Delete those of the texts that no passage has any more; their vectors are dead."""
        for num in nums:
            if self._db.execute("SELECT 1 FROM passages WHERE num = ?", (num,)).fetchone():
                continue
            table = "spelled" if self._words else "texts"
            text = self._db.execute(f"SELECT text FROM {table} WHERE num = ?", (num,)).fetchone()[0]
            self._db.execute("INSERT INTO words(words, rowid, text) VALUES ('delete', ?, ?)", (num, text))
            self._db.execute("DELETE FROM texts WHERE num = ?", (num,))

    def counts(self) -> tuple[int, int, int]:
        """Return how many texts, passages and documents there are."""
        return tuple(self._one(f"SELECT count(*) FROM {table}") for table in ("texts", "passages", "documents"))  # type: ignore[return-value]

    def alive(self) -> list[int]:
        """Return the numbers in use, ascending."""
        return [row[0] for row in self._db.execute("SELECT num FROM texts ORDER BY num")]

    def renumber(self) -> None:
        """Number the texts 0, 1, 2, ... in order, as `alive` lists them."""
        self._db.execute("BEGIN")
        self._db.execute("CREATE TEMP TABLE place(old INTEGER PRIMARY KEY, new INTEGER NOT NULL)")
        self._db.executemany("INSERT INTO place VALUES (?, ?)", ((num, new) for new, num in enumerate(self.alive())))
        self._db.execute("UPDATE passages SET num = (SELECT new FROM place WHERE old = num)")
        for old, new in self._db.execute("SELECT old, new FROM place WHERE old <> new ORDER BY old").fetchall():
            self._db.execute("UPDATE texts SET num = ? WHERE num = ?", (new, old))
        self._db.execute("DROP TABLE place")
        self._db.execute("INSERT INTO words(words) VALUES ('rebuild')")
        self._db.execute("COMMIT")
        self._db.execute("VACUUM")
