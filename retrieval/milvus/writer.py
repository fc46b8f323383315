"""What goes into a Milvus collection, and in which order, so that an interrupted write can be finished.

A document's new passages are written before its old ones are deleted; a document counts as there only when all of its
passages are. So adding the same again finishes what was interrupted, and embeds nothing twice that had arrived.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ckcontrol.errors import RetrievalError

from ..store.vectors import prepare
from ..types import Document, Passage
from ..writing import Change, ItemWriter, OnProgress, OnSkip, check_metadata, origin
from .client import Client
from .collection import BYTES, CollectionSettings
from .filter import facets

if TYPE_CHECKING:
    from ..embed import TextEncoder

__all__ = ["MilvusWriter", "key_of", "listed"]

LIMITED = ("id", "source", "text", "metadata", "facets")
FIRST = ("document", "made", "parts", "write", "source", "metadata")  # of a document's first passage
STEP = 512  # texts embedded, and rows written, at once


class GivenItem(NamedTuple):
    """An item, the key of its id, and the key of all it says: equal to what is stored if it is stored just so."""

    item: Passage | Document
    document: str
    made: str


def key_of(*parts: str) -> str:
    """Return 64 hexadecimal digits that stand for some texts; what Milvus compares contains nothing else."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def listed(field: str, keys: Iterable[str]) -> str:
    """Return a filter for rows whose `field` is one of `keys`, which come from `key_of`."""
    return f"{field} in [" + ", ".join(f'"{key}"' for key in keys) + "]"


class MilvusWriter(ItemWriter):
    """One call of add.

    Args:
        client: The connection.
        collection: Its name.
        settings: What was chosen for it.
        embedder: Makes the vectors.
        on_skip: Told of inputs that are left out; None raises instead.
        on_progress: Told how far the write is.
    """

    def __init__(
        self,
        client: Client,
        collection: str,
        settings: CollectionSettings,
        embedder: TextEncoder,
        on_skip: OnSkip | None,
        on_progress: OnProgress | None,
    ) -> None:
        super().__init__(embedder, settings.chunk_size, settings.overlap, on_skip, on_progress)
        self._client, self._collection, self._metric = client, collection, settings.metric
        self._pending: dict[str, GivenItem] = {}
        self._writes: set[str] = set()  # one name per batch, to know what this call has written
        self._place = time.time_ns()  # rises from passage to passage: the order of the corpus

    def add(self, items: Iterable[Passage | Document]) -> Change:
        """Write what is new or differs.

        Raises:
            RetrievalError: An item that is left out when `on_skip` is None, or Milvus fails. What was written stays.
        """
        gathered = 0
        for item in items:
            if content := self.accept(item, self._twin):
                document = key_of(item.id)
                self._pending[document] = GivenItem(item, document, key_of(document, *content))
                gathered += 1 + len(item.text) // 1000
                if gathered >= STEP:
                    self._flush()
                    gathered = 0
        self._flush()
        return self.change

    def _twin(self, id: str) -> str | None:
        given = self._pending.get(key_of(id))
        return None if given is None else origin(given.item.source, given.item.metadata)

    # --- writing -------------------------------------------------------------------------------------------------

    def _query(self, filter: str, *fields: str) -> list[dict[str, Any]]:
        rows = self._client.call("query", self._collection, filter=filter, output_fields=list(fields), limit=4 * STEP)
        return list(rows)

    def _count(self, filter: str) -> int:
        return self._client.count(self._collection, filter)

    def _flush(self) -> None:
        """Write what was gathered, unless it is there already."""
        pending, self._pending = list(self._pending.values()), {}
        for start in range(0, len(pending), STEP):
            rows: dict[str, list[dict[str, Any]]] = {}
            for given, outcome in self._changed(pending[start : start + STEP]):
                cut = self._rows(given)
                if cut:
                    rows[given.document] = cut
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

    def _changed(self, items: list[GivenItem]) -> list[tuple[GivenItem, str]]:
        """Return those that are not stored as they are, each "added" or "replaced"; count the others."""
        wanted = f"{listed('document', [given.document for given in items])} and part == 0"
        firsts = {row["document"]: row for row in self._query(wanted, *FIRST)}
        same = [given for given in items if firsts.get(given.document, {}).get("made") == given.made]
        parts = {given.made: firsts[given.document]["parts"] for given in same}
        whole = set(parts)
        if same and self._count(listed("made", parts)) != sum(parts.values()):  # an interruption, or passages removed
            whole = {made for made, expected in parts.items() if self._count(listed("made", [made])) == expected}
        changed = []
        for given in items:
            first = firsts.get(given.document)
            stored = "" if first is None else origin(first["source"], json.loads(first["metadata"]))
            if given.made not in parts and self.is_stranger(given.item, stored):
                continue
            if first is not None and first["write"] in self._writes:
                self.skip_twin(given.item)
            elif given.made in whole:
                self._counts["unchanged"] += 1
            else:
                changed.append((given, "added" if first is None else "replaced"))
        return changed

    def _rows(self, given: GivenItem) -> list[dict[str, Any]]:
        """Return a document's rows, all but their vectors; none if it is skipped."""
        passages = self.passages_of(given.item)
        rows: list[dict[str, Any]] = []
        for part, passage in enumerate(passages):
            metadata = check_metadata(passage)
            columns = {"id": passage.id, "source": passage.source, "document": given.item.id}
            row = {
                "key": key_of(passage.id),
                "id": passage.id,
                "document": given.document,
                "made": given.made,
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
                self.skip(given.item.id, reason, "Cut it, or keep less metadata.")
                return []
            rows.append(row)
        return rows

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
