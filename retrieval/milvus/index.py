"""An index that outgrew one machine: the interface of `Index` over a Milvus collection.

One client serves a cluster (by URL) and the embedded Milvus Lite (a path that ends in ``.db``, for trying and tests).
Cutting, filters and the embedder's identity are those of `Index`. What differs, because Milvus has neither transactions
nor locks: a write is seen batch by batch, an interrupted one is finished by adding the same again, and two writers are
not kept apart. Embedded, Milvus listens on a loopback port without a password while an index is open.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ckcontrol.errors import RetrievalError, did_you_mean

from ..types import Document, Hit, Passage, Skipped, check_count, check_queries
from ..where import parse_where
from .client import Client
from .collection import FORMAT, KINDS, MANY, METRICS, Settings, create, read_settings
from .filter import to_filter

if TYPE_CHECKING:
    from ..chunk import Chunker
    from ..embed import TextEncoder
    from ..rerank import TextScorer
    from ..store.writer import Change

__all__ = ["MilvusIndex"]

TOGETHER = 100  # questions asked at once
EFFORT = 64  # ef of HNSW unless told
DEEPER = 5  # candidates a re-ranker reads, times k
SHOWN = ["id", "source", "text", "metadata", "digest", "place"]


class MilvusIndex:
    """Passages in a Milvus collection. Made by `MilvusIndex.build` or `MilvusIndex.open`; close it, or use `with`.

    Attributes:
        collection: Its name.
        embedder: What texts are embedded with.
    """

    def __init__(self, client: Client, collection: str, settings: Settings, embedder: TextEncoder) -> None:
        self.collection = collection
        self.embedder = embedder
        self._client = client
        self._settings = settings
        self._chunker: Chunker | None = None

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
        on_skip: Callable[[Skipped], None] | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> MilvusIndex:
        """Make a collection and fill it. Memory does not grow with the corpus.

        Interrupted, it leaves a collection with what had arrived: open it and add the same items to go on.

        Args:
            items: `Passage`s are taken as they are; `Document`s are cut into passages.
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
        from ..identity import identify

        for name, value, known in (("metric", metric, METRICS), ("kind", kind, (*KINDS, "auto"))):
            if value not in known:
                raise RetrievalError(f"{name}={value!r} is unknown.", did_you_mean(str(value), known))
        client = Client(uri, token, timeout, create=True)
        try:
            if client.call("has_collection", collection):
                raise RetrievalError(
                    f"there is a collection {collection!r} at {client.uri} already.",
                    "Open it and add to it, or choose another name.",
                )
            kind = kind if kind != "auto" else "flat" if client.embedded else "hnsw"
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            settings = Settings(FORMAT, metric, kind, chunk_size, overlap, identify(embedder), created)
            create(client, collection, settings)
            index = cls(client, collection, settings, embedder)
            try:
                index.add(items, on_skip=on_skip, on_progress=on_progress)
            finally:
                empty = not len(index)
                if empty:
                    client.call("drop_collection", collection)
            if empty:
                raise RetrievalError("the corpus is empty.", "Give at least one passage.")
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
        from ..identity import check_identity

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
        on_skip: Callable[[Skipped], None] | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> Change:
        """Add to the index. What is stored unchanged costs nothing; what changed replaces its old passages.

        Raises:
            RetrievalError: As for `build`. What was written before stays.
        """
        from .writer import MilvusWriter

        writer = MilvusWriter(
            self._client, self.collection, self.embedder, self._settings.metric, self._cutter, on_skip, on_progress
        )
        return writer.add(items)

    def _cutter(self) -> Chunker:
        if self._chunker is None:
            from ..chunk import Chunker

            self._chunker = Chunker.for_embedder(self.embedder, self._settings.chunk_size, self._settings.overlap)
        return self._chunker

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
        from ..store.writer import Change
        from .writer import key_of

        conditions = parse_where(where)
        if isinstance(documents, str) or isinstance(passages, str):
            raise RetrievalError("a single text was given.", "Give a list of ids.")
        if not (documents or passages or conditions):
            raise RetrievalError("nothing to remove was named.", "Give documents=, passages= or where=.")
        filters = []
        for field, kind, names in (("document", "document", documents), ("key", "passage", passages)):
            for name in names:
                filters.append(f'{field} == "{key_of(name)}"')
                if not self._count(filters[-1]):
                    raise RetrievalError(f"there is no {kind} {name!r}.", "Ids are those that were given.")
        removed = 0
        for chosen in [*filters, *([to_filter(conditions)] if conditions else [])]:
            removed += self._count(chosen)
            self._client.call("delete", self.collection, filter=chosen)
        return Change(removed=removed)

    # --- asking --------------------------------------------------------------------------------------------------

    @overload
    def search(
        self,
        queries: str,
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        mode: str = "dense",
        reranker: TextScorer | None = None,
        effort: int | None = None,
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        queries: list[str] | tuple[str, ...],
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        mode: str = "dense",
        reranker: TextScorer | None = None,
        effort: int | None = None,
    ) -> list[list[Hit]]: ...

    def search(
        self,
        queries: str | list[str] | tuple[str, ...],
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        mode: str = "dense",
        reranker: TextScorer | None = None,
        effort: int | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Return the `k` best passages, best first, of those with equal texts the first; all when there are fewer.

        Args:
            queries: One question (a list of hits comes back) or several (a list of lists, in order).
            k: How many passages a question gets.
            where: What their metadata must be, e.g. ``{"year": {"$gte": 2000}, "lang": ["en", "de"]}``.
            mode: "dense"; `Index` has others.
            reranker: Reads the first 5 k candidates with the question and orders them anew.
            effort: ef of HNSW: how far it looks; None: 64, or what `k` needs.

        Raises:
            RetrievalError: A blank question, an option out of range, or Milvus fails.
        """
        from ..store.vectors import prepare

        if mode != "dense":
            raise RetrievalError(f"mode={mode!r} is not for Milvus.", "Use mode='dense', or an Index.")
        check_count("k", k)
        if effort is not None:
            check_count("effort", effort)
        several = check_queries(queries)
        chosen = to_filter(parse_where(where))
        if not several:
            return []
        vectors = prepare(self.embedder.encode(several, query=True), self._settings.metric).tolist()
        wanted = k if reranker is None else k * DEEPER
        if wanted > MANY:
            raise RetrievalError(f"Milvus gives at most {MANY} passages, not {wanted}.", "Ask for fewer.")
        hits: list[list[Hit]] = []
        for start in range(0, len(vectors), TOGETHER):
            hits += self._nearest(vectors[start : start + TOGETHER], wanted, chosen, effort or EFFORT)
        if reranker is not None:
            from ..rerank import rerank

            hits = [rerank(query, found, reranker, k) for query, found in zip(several, hits, strict=True)]
        return hits[0] if isinstance(queries, str) else hits

    def _nearest(self, vectors: list[list[float]], k: int, chosen: str, effort: int) -> list[list[Hit]]:
        """Widen until no tie crosses the end and enough texts differ: Milvus knows neither."""
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

    def _count(self, filter: str) -> int:
        rows = self._client.call("query", self.collection, filter=filter, output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def __len__(self) -> int:
        """Count the passages; those with equal texts each. Asks Milvus."""
        return self._count("")

    def info(self) -> dict[str, Any]:
        """Return what is known of the index, without the fingerprint; JSON-ready."""
        data = asdict(self._settings)
        data["embedder"].pop("fingerprint")
        return {"uri": self._client.uri, "collection": self.collection, **data, "passages": len(self)}

    def close(self) -> None:
        """Disconnect. An embedded database can then be opened by another process."""
        self._client.close()

    def __enter__(self) -> MilvusIndex:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _passage(entity: Mapping[str, Any]) -> Passage:
    return Passage(entity["id"], entity["text"], entity["source"], json.loads(entity["metadata"]))
