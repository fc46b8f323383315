"""What goes into a Milvus collection, and in which order, so that whatever interrupts a write can be made good.

A document's new passages are written before its old ones are deleted; a document counts as there only when all of its
passages are. So adding the same again finishes what was interrupted, and embeds nothing twice that had arrived.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ckcontrol.errors import RetrievalError

from ..store.texts import check_metadata
from ..store.vectors import prepare
from ..store.writer import Change
from ..types import Document, Passage, Skipped
from .client import Client
from .collection import BYTES
from .filter import facets

if TYPE_CHECKING:
    from ..chunk import Chunker
    from ..embed import TextEncoder

__all__ = ["MilvusWriter", "key_of", "listed"]

LIMITED = ("id", "source", "text", "metadata", "facets")
STEP = 512  # texts embedded, and rows written, at once


class Entry(NamedTuple):
    """A document as it was given; `made` tells whether it is stored just so."""

    item: Passage | Document
    document: str
    made: str
    metadata: str


def key_of(*parts: str) -> str:
    """Return 64 hexadecimal digits that stand for some texts; what Milvus compares contains nothing else."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def listed(field: str, keys: Iterable[str]) -> str:
    """Return a filter for rows whose `field` is one of `keys`, which come from `key_of`."""
    return f"{field} in [" + ", ".join(f'"{key}"' for key in keys) + "]"


class MilvusWriter:
    """One call of add.

    Args:
        client: The connection.
        collection: Its name.
        embedder: Makes the vectors.
        metric: "cosine" or "ip".
        chunker: Gives what cuts documents into passages; asked when the first document comes.
        on_skip: Told of inputs that are left out; None raises instead.
        on_progress: Told how far things are.
    """

    def __init__(
        self,
        client: Client,
        collection: str,
        embedder: TextEncoder,
        metric: str,
        chunker: Callable[[], Chunker],
        on_skip: Callable[[Skipped], None] | None,
        on_progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self._client, self._collection, self._embedder, self._metric = client, collection, embedder, metric
        self._chunker, self._on_skip = chunker, on_skip
        self._report = on_progress or (lambda stage, done, total: None)
        self._pending: dict[str, Entry] = {}
        self._writes: set[str] = set()  # one name a batch, to know what this call has written
        self._place = time.time_ns()  # rises from passage to passage: the order of the corpus
        self._counts = dict.fromkeys(Change.__dataclass_fields__, 0)

    def add(self, items: Iterable[Passage | Document]) -> Change:
        """Write what is new or differs.

        Raises:
            RetrievalError: An item that is left out when `on_skip` is None, or Milvus fails. What was written stays.
        """
        gathered = 0
        for item in items:
            entry = self._entry(item)
            if entry is not None:
                self._pending[entry.document] = entry
                gathered += 1 + len(item.text) // 1000
                if gathered >= STEP:
                    self._flush()
                    gathered = 0
        self._flush()
        return self.change

    @property
    def change(self) -> Change:
        """What was done so far."""
        return Change(**self._counts)

    def _skip(self, name: str, reason: str, hint: str) -> None:
        if self._on_skip is None:
            raise RetrievalError(reason, hint)
        self._counts["skipped"] += 1
        self._on_skip(Skipped(name, reason))

    def _entry(self, item: Passage | Document) -> Entry | None:
        if not isinstance(item, (Passage, Document)):
            raise RetrievalError(f"{item!r:.80} is no Passage and no Document.", "Give one of them per text.")
        kind = "passage" if isinstance(item, Passage) else "document"
        if not isinstance(item.id, str) or not item.id or not isinstance(item.text, str):
            self._skip(str(item.id), f"{kind} id {item.id!r} or its text is no text.", "Both must be texts.")
        elif not item.text.strip():
            self._skip(item.id, f"{kind} {item.id!r} has no text.", "Leave blank ones out.")
        elif key_of(item.id) in self._pending:
            self._skip_twin(item)
        else:
            try:
                metadata = check_metadata(Passage(item.id, item.text, item.source, item.metadata))
                "".join((item.id, item.text, item.source, metadata)).encode()
            except RetrievalError as error:
                self._skip(item.id, str(error), "")
                return None
            except UnicodeEncodeError as error:
                self._skip(item.id, f"{kind} {item.id!r} is no Unicode text: {error.reason}.", "Decode it again.")
                return None
            document = key_of(item.id)
            return Entry(item, document, key_of(document, kind, item.text, item.source, metadata), metadata)
        return None

    def _skip_twin(self, item: Passage | Document) -> None:
        kind = "passage" if isinstance(item, Passage) else "document"
        self._skip(item.id, f"{kind} id {item.id!r} occurs twice.", f"Give every {kind} its own id.")

    # --- writing -------------------------------------------------------------------------------------------------

    def _query(self, filter: str, *fields: str) -> list[dict[str, Any]]:
        rows = self._client.call("query", self._collection, filter=filter, output_fields=list(fields), limit=4 * STEP)
        return list(rows)

    def _count(self, filter: str) -> int:
        rows = self._client.call("query", self._collection, filter=filter, output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def _flush(self) -> None:
        """Write what was gathered, unless it is there already."""
        pending, self._pending = list(self._pending.values()), {}
        for start in range(0, len(pending), STEP):
            rows: dict[str, list[dict[str, Any]]] = {}
            for entry, outcome in self._changed(pending[start : start + STEP]):
                cut = self._rows(entry)
                if cut:
                    rows[entry.document] = cut
                    self._counts[outcome] += 1
            if rows:
                self._replace(rows)
            done = sum(self._counts[name] for name in ("added", "replaced", "unchanged"))
            self._report("Embedding", done, 0)

    def _replace(self, documents: dict[str, list[dict[str, Any]]]) -> None:
        """Write the documents' rows, then delete their old ones."""
        write = secrets.token_hex(16)
        self._writes.add(write)
        rows = [row for group in documents.values() for row in group]
        twins = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
        if twins:
            raise RetrievalError(f"passage id {twins[0]!r} occurs twice.", "Give every passage its own id.")
        for step in range(0, len(rows), STEP):
            self._upsert(rows[step : step + STEP], write, documents.keys())
        old = f'{listed("document", documents)} and write != "{write}"'
        self._client.call("delete", self._collection, filter=old)

    def _changed(self, entries: list[Entry]) -> list[tuple[Entry, str]]:
        """Return those that are not stored as they are, each "added" or "replaced"; count the others."""
        wanted = f"{listed('document', [entry.document for entry in entries])} and part == 0"
        heads = {row["document"]: row for row in self._query(wanted, "document", "made", "parts", "write")}
        same = [e for e in entries if e.document in heads and heads[e.document]["made"] == e.made]
        parts = {e.made: heads[e.document]["parts"] for e in same}
        whole = set(parts)
        if same and self._count(listed("made", parts)) != sum(parts.values()):  # an interruption, or passages removed
            whole = {made for made, expected in parts.items() if self._count(listed("made", [made])) == expected}
        changed = []
        for entry in entries:
            head = heads.get(entry.document)
            if head is not None and head["write"] in self._writes:
                self._skip_twin(entry.item)
            elif entry.made in whole:
                self._counts["unchanged"] += 1
            else:
                changed.append((entry, "added" if head is None else "replaced"))
        return changed

    def _rows(self, entry: Entry) -> list[dict[str, Any]]:
        """Return a document's rows, all but their vectors; none if it is skipped."""
        passages = [entry.item] if isinstance(entry.item, Passage) else self._cut(entry.item)
        rows: list[dict[str, Any]] = []
        for part, passage in enumerate(passages):
            metadata = check_metadata(passage)
            columns = {"id": passage.id, "source": passage.source, "document": entry.item.id}
            row = {
                "key": key_of(passage.id),
                "id": passage.id,
                "document": entry.document,
                "made": entry.made,
                "part": part,
                "parts": len(passages),
                "digest": key_of(passage.text),
                "source": passage.source,
                "text": passage.text,
                "metadata": metadata,
                "facets": facets({**json.loads(metadata), **columns}),
            }
            long = [name for name in LIMITED if len(_bytes(row[name])) > BYTES]
            if long:
                reason = f"passage {passage.id!r} has a {long[0]} of more than {BYTES} bytes."
                self._skip(entry.item.id, reason, "Cut it, or keep less metadata.")
                return []
            rows.append(row)
        return rows

    def _cut(self, document: Document) -> list[Passage]:
        chunker = self._chunker()
        try:
            return chunker.split(document)
        except RetrievalError as error:
            self._skip(document.id, str(error), "")
            return []

    def _upsert(self, rows: list[dict[str, Any]], write: str, documents: Collection[str]) -> None:
        """Embed the texts that are not there yet, each once, and write the rows."""
        for owner in self._query(listed("key", [row["key"] for row in rows]), "id", "document"):
            if owner["document"] not in documents:
                raise RetrievalError(f"passage id {owner['id']!r} occurs twice.", "Give every passage its own id.")
        texts = {row["digest"]: row["text"] for row in rows}
        vectors: dict[str, Any] = {}
        elsewhere = set()
        for known in self._query(listed("digest", texts), "digest", "document", "vector"):  # not all, if there are many
            vectors[known["digest"]] = known["vector"]
            if known["document"] not in documents:
                elsewhere.add(known["digest"])
        missing = [digest for digest in texts if digest not in vectors]
        if missing:
            encoded = self._embedder.encode([texts[digest] for digest in missing])
            prepared = prepare(encoded, self._metric, [texts[digest][:40] for digest in missing])
            vectors |= dict(zip(missing, prepared.tolist(), strict=True))
        self._counts["embedded"] += len(missing)
        for row in rows:
            self._counts["folded"] += row["digest"] in elsewhere
            elsewhere.add(row["digest"])
            row |= {"vector": vectors[row["digest"]], "write": write, "place": self._place}
            self._place += 1
        self._client.call("upsert", self._collection, rows)
        self._report("Texts", self._counts["embedded"], 0)


def _bytes(value: Any) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode()
