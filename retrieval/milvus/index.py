"""An index that outgrew one machine: the interface of `Index` over a Milvus collection.

One client serves a cluster (by URL) and the embedded Milvus Lite (a path that ends in ``.db``, for trying and tests).
Cutting, filters and the embedder's identity are those of `Index`. What differs, because Milvus has neither transactions
nor locks: a write is seen batch by batch, an interrupted one is finished by adding the same again, and two writers are
not kept apart. Embedded, Milvus listens on a loopback port without a password while an index is open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckcontrol.errors import EmptyCorpus, RetrievalError, did_you_mean

from ..passage_index import PassageIndex, check_removal
from ..types import METRICS, Document, Hit, Passage, check_choice
from ..writing import Change
from .client import Client
from .collection import FORMAT, KINDS, MANY, CollectionSettings, create, read_settings
from .filter import to_filter

if TYPE_CHECKING:
    from ..embed import TextEncoder
    from ..where import Condition
    from ..writing import OnProgress, OnSkip

__all__ = ["MilvusIndex"]

TOGETHER = 100  # questions asked at once
EFFORT = 64  # ef of HNSW unless told
SHOWN = ["id", "source", "text", "metadata", "digest", "place"]


class MilvusIndex(PassageIndex):
    """Passages in a Milvus collection. Made by `MilvusIndex.build` or `MilvusIndex.open`; close it, or use `with`.

    Attributes:
        collection: Its name.
        embedder: What texts are embedded with.
    """

    def __init__(self, client: Client, collection: str, settings: CollectionSettings, embedder: TextEncoder) -> None:
        self.collection = collection
        self.embedder = embedder
        self._client = client
        self._settings = settings

    # --- making --------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        items: Iterable[Passage | Document],
        embedder: TextEncoder,
        uri: str | Path,
        *,
        collection: str = "ckcontrol",
        token: str | None = None,
        kind: str = "auto",
        metric: str = "cosine",
        chunk_size: int | None = None,
        overlap: int = 32,
        timeout: float = 10.0,
        on_skip: OnSkip | None = None,
        on_progress: OnProgress | None = None,
    ) -> MilvusIndex:
        """Make a collection and fill it. Memory does not grow with the corpus.

        Interrupted, it leaves a collection with what had arrived: open it and add the same items to go on.

        Args:
            items: A `Passage` is taken as it is; a `Document` is cut into passages.
            embedder: An `Embedder`, or anything with its `dim` and `encode`.
            uri: ``http(s)://host:port`` of Milvus, or a path that ends in ``.db``: Milvus Lite, in this process.
            collection: Its name: letters, digits and underscores.
            token: ``user:password`` or an API key.
            kind: "flat" (exact), "hnsw", or "auto": flat when embedded, hnsw on servers.
            metric: "cosine", or "ip": inner products of the embedder's vectors as they come.
            chunk_size: Most tokens a passage of a document has; None: 256, or what its window holds.
            overlap: Tokens that neighbouring passages share at most.
            timeout: Seconds one request may take.
            on_skip: Told of every item that is left out (blank, too long for Milvus, its id occurred); None: raise.
            on_progress: Called with (stage, done, total); total 0: length unknown.

        Raises:
            RetrievalError: No connection, the collection exists, a bad option, an item left out, nothing to index.
            IndexLocked: Another process has the embedded database open.
            MissingExtra: A package of the `milvus` extra is missing.
        """
        from ..embed import identify

        check_choice("metric", metric, METRICS)
        check_choice("kind", kind, (*KINDS, "auto"))
        client = Client(uri, token, timeout, create=True)
        try:
            if client.call("has_collection", collection):
                raise RetrievalError(
                    f"there is a collection {collection!r} at {client.uri} already.",
                    "Open it and add to it, or choose another name.",
                )
            kind = kind if kind != "auto" else "flat" if client.embedded else "hnsw"
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            settings = CollectionSettings(FORMAT, metric, kind, chunk_size, overlap, identify(embedder), created)
            create(client, collection, settings)
            index = cls(client, collection, settings, embedder)
            try:
                index.add(items, on_skip=on_skip, on_progress=on_progress)
            finally:
                empty = not len(index)
                if empty:
                    client.call("drop_collection", collection)
            if empty:
                raise EmptyCorpus
        except BaseException:
            client.close()
            raise
        return index

    @classmethod
    def open(
        cls,
        uri: str | Path,
        embedder: TextEncoder,
        *,
        collection: str = "ckcontrol",
        token: str | None = None,
        timeout: float = 10.0,
    ) -> MilvusIndex:
        """Open a collection that `build` made.

        Raises:
            RetrievalError: No connection, or no such collection.
            IndexLocked: Another process has the embedded database open.
            IndexMismatch: The collection is foreign, of another format, or `embedder` did not make its vectors; `field`
                is "format", "metric", "dim" or "fingerprint".
            MissingExtra: A package of the `milvus` extra is missing.
        """
        from ..embed import check_identity

        client = Client(uri, token, timeout, create=False)
        try:
            if not client.call("has_collection", collection):
                names = client.call("list_collections")
                raise RetrievalError(
                    f"there is no collection {collection!r} at {client.uri}.", did_you_mean(collection, names)
                )
            settings = read_settings(client, collection)
            check_identity(embedder, settings.embedder)
            client.call("load_collection", collection)
        except BaseException:
            client.close()
            raise
        return cls(client, collection, settings, embedder)

    # --- changing ------------------------------------------------------------------------------------------------

    def add(
        self,
        items: Iterable[Passage | Document],
        *,
        on_skip: OnSkip | None = None,
        on_progress: OnProgress | None = None,
    ) -> Change:
        """Add to the index. What is stored unchanged costs nothing; what changed replaces its old passages.

        Raises:
            RetrievalError: As for `build`. What was written before stays.
        """
        from .writer import MilvusWriter

        writer = MilvusWriter(self._client, self.collection, self._settings, self.embedder, on_skip, on_progress)
        return writer.add(items)

    def remove(
        self,
        *,
        documents: Sequence[str] = (),
        passages: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> Change:
        """Remove documents and passages by id, and passages by metadata.

        Raises:
            RetrievalError: A name that is not in the index (nothing is removed then), or nothing was named.
        """
        from .writer import key_of

        conditions = check_removal(documents, passages, where)
        filters = []
        for field, kind, names in (("document", "document", documents), ("key", "passage", passages)):
            for name in names:
                filters.append(f'{field} == "{key_of(name)}"')
                if not self._client.count(self.collection, filters[-1]):
                    raise RetrievalError(f"there is no {kind} {name!r}.", "Use the ids that were given.")
        removed = 0
        for chosen in [*filters, *([to_filter(conditions)] if conditions else [])]:
            removed += self._client.count(self.collection, chosen)
            self._client.call("delete", self.collection, filter=chosen)
        return Change(removed=removed)

    # --- asking --------------------------------------------------------------------------------------------------

    def _check_mode(self, mode: str) -> None:
        if mode != "dense":
            raise RetrievalError(f"mode={mode!r} is not for Milvus.", "Use mode='dense', or an Index.")

    def _names(self) -> frozenset[str] | None:
        rows = self._client.call("query", self.collection, filter="", output_fields=["metadata"], limit=MANY)
        if len(rows) >= MANY:
            return None
        each = (json.loads(row["metadata"]) for row in rows)
        return frozenset(name for metadata in each for name, value in metadata.items() if value is not None)

    def _find(
        self,
        queries: list[str],
        k: int,
        conditions: tuple[Condition, ...],
        mode: str,
        effort: int | None,
        nearest: float | None = None,
    ) -> list[list[Hit]]:
        from ..store.vectors import prepare

        vectors = prepare(self.embedder.encode(queries, query=True), self._settings.metric).tolist()
        if k > MANY:
            raise RetrievalError(f"Milvus gives at most {MANY} passages, not {k}.", "Ask for fewer.")
        chosen = to_filter(conditions)
        hits: list[list[Hit]] = []
        for start in range(0, len(vectors), TOGETHER):
            hits += self._nearest(vectors[start : start + TOGETHER], k, chosen, effort or EFFORT)
        return hits

    def _nearest(self, vectors: list[list[float]], k: int, chosen: str, effort: int) -> list[list[Hit]]:
        """Widen until no tie crosses the end and enough texts differ: Milvus does neither."""
        from ..store.vectors import DECIMALS

        width = k
        while True:
            width = min(width + 8, MANY)
            params = {"params": {"ef": max(effort, width)}} if self._settings.kind == "hnsw" else {}
            raw = self._client.call(
                "search",
                self.collection,
                data=vectors,
                limit=width,
                filter=chosen,
                anns_field="vector",
                output_fields=SHOWN,
                search_params={"metric_type": "IP", **params},
            )
            found = []
            settled = True
            for rows in raw:
                scored = [(round(float(row["distance"]), DECIMALS), row["entity"]) for row in rows]
                scored.sort(key=lambda pair: (-pair[0], pair[1]["place"]))
                texts: dict[str, tuple[float, Any]] = {}
                for score, entity in scored:
                    texts.setdefault(entity["digest"], (score, entity))
                best = list(texts.values())[:k]
                settled &= len(rows) < width or (len(best) == k and scored[-1][0] < best[-1][0])
                found.append(best)
            if settled or width == MANY:
                return [
                    [Hit(_passage(entity), score, rank) for rank, (score, entity) in enumerate(best, 1)]
                    for best in found
                ]
            width *= 2

    def __len__(self) -> int:
        """Count the passages; those with equal texts each. Asks Milvus."""
        return self._client.count(self.collection, "")

    def info(self) -> dict[str, Any]:
        """Return what is known of the index, without the fingerprint; JSON-ready."""
        data = asdict(self._settings)
        data["embedder"].pop("fingerprint")
        return {"uri": self._client.uri, "collection": self.collection, **data, "passages": len(self)}

    def close(self) -> None:
        """Disconnect. An embedded database can then be opened by another process."""
        self._client.close()


def _passage(entity: Mapping[str, Any]) -> Passage:
    return Passage(entity["id"], entity["text"], entity["source"], json.loads(entity["metadata"]))
