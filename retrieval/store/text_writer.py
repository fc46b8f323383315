"""Changes to the SQLite file of a generation that is not published yet.

Such a file is thrown away when its write fails, so SQLite neither journals nor flushes; publishing does that. Knows
SQL; knows nothing of vectors: it hands out the numbers of new texts and takes their vectors' places for granted.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ckcontrol.errors import RetrievalError

from ..types import Passage
from ..where import Condition, is_text, to_sql
from .texts import NAME, SCHEMA, Row, check_metadata, digest_text

__all__ = ["Entry", "TextWriter"]


class Entry(NamedTuple):
    """A document cut into passages, and the digest of what it was made from."""

    document: str
    digest: bytes
    passages: list[Passage]


class TextWriter:
    """The file of a new generation: a copy of the last one's, or empty."""

    def __init__(self, folder: Path, base: Path | None) -> None:
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
        query = "SELECT 1 FROM texts WHERE digest = ?"
        return sum(self._db.execute(query, (digest,)).fetchone() is None for digest in digests)

    def owner(self, passage: str) -> str | None:
        """Return the document that has a passage of this id; None: nobody."""
        row = self._db.execute("SELECT document FROM passages WHERE id = ?", (passage,)).fetchone()
        return None if row is None else row[0]

    def touch(self, documents: Iterable[str]) -> None:
        """Note that this write has seen the documents."""
        self._db.executemany("UPDATE documents SET session = ? WHERE id = ?", ((self.session, d) for d in documents))

    def unknown_texts(self, entries: Iterable[Entry]) -> dict[bytes, str]:
        """Return the texts that have no number yet, by digest, in order and each once."""
        wanted: dict[bytes, str] = {}
        for entry in entries:
            for passage in entry.passages:
                wanted.setdefault(digest_text(passage.text), passage.text)
        for digest in list(wanted):
            if self._db.execute("SELECT 1 FROM texts WHERE digest = ?", (digest,)).fetchone():
                del wanted[digest]
        return wanted

    def add(self, entries: Sequence[Entry], texts: dict[bytes, str], first: int) -> int:
        """Store documents; those stored before are replaced. Return how many passages were folded into earlier ones.

        Args:
            entries: The documents.
            texts: What `unknown_texts` gave for them; numbered from `first` on, in order.
            first: Vectors there are already.

        Raises:
            RetrievalError: A passage id belongs to another document, or metadata that JSON cannot hold.
        """
        self._db.execute("BEGIN")
        rows = [(first + place, digest, text) for place, (digest, text) in enumerate(texts.items())]
        self._db.executemany("INSERT INTO texts VALUES (?, ?, ?)", rows)
        self._db.executemany("INSERT INTO words(rowid, text) VALUES (?, ?)", ((num, text) for num, _, text in rows))
        orphans: set[int] = set()
        folded = 0
        for entry in entries:
            orphans |= self._drop("document = ?", (entry.document,))
            for passage in entry.passages:
                num = self._one("SELECT num FROM texts WHERE digest = ?", (digest_text(passage.text),))
                folded += bool(self._db.execute("SELECT 1 FROM passages WHERE num = ?", (num,)).fetchone())
                row = (passage.id, entry.document, num, passage.source, check_metadata(passage))
                try:
                    self._db.execute(
                        "INSERT INTO passages(id, document, num, source, metadata) VALUES (?, ?, ?, ?, ?)", row
                    )
                except sqlite3.IntegrityError as error:
                    raise RetrievalError(
                        f"passage id {passage.id!r} occurs twice.", "Give every passage its own id."
                    ) from error
            self._db.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (entry.document, entry.digest, self.session)
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
                raise RetrievalError(f"there is no passage {name!r}.", "Search with --json shows the ids.")
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
        gone: list[Row] = self._db.execute(f"SELECT num, document FROM passages WHERE {sql}", bound).fetchall()
        self._db.execute(f"DELETE FROM passages WHERE {sql}", bound)
        names = {(name,) for _, name in gone}
        self._db.executemany("UPDATE documents SET digest = x'' WHERE id = ?", names)
        return {num for num, _ in gone}

    def _bury(self, nums: set[int]) -> None:
        """Delete those of the texts that no passage has any more; their vectors are dead."""
        for num in nums:
            if self._db.execute("SELECT 1 FROM passages WHERE num = ?", (num,)).fetchone():
                continue
            text = self._db.execute("SELECT text FROM texts WHERE num = ?", (num,)).fetchone()[0]
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
