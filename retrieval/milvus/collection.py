"""The Milvus collection behind a `MilvusIndex`: its columns, its indexes, and what an `Index` keeps in its manifest.

Knows pymilvus' schema; knows nothing of embedders or searching.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ckcontrol.errors import IndexMismatch

from ..types import METRICS
from .client import Client

__all__ = ["BYTES", "FORMAT", "KINDS", "MANY", "CollectionSettings", "create", "read_settings"]

BYTES = 65_535  # what Milvus lets a text or a JSON value have
MANY = 16_384  # rows that Milvus gives to one request at most
FORMAT = 1
PROPERTY = "ckcontrol"  # of the collection: what an Index keeps in its manifest
KINDS = {"flat": ("FLAT", {}), "hnsw": ("HNSW", {"M": 32, "efConstruction": 200})}


@dataclass(frozen=True)
class CollectionSettings:
    """What was chosen for a collection, and which embedder made its vectors."""

    format: int
    metric: str
    kind: str
    chunk_size: int | None
    overlap: int
    embedder: dict[str, Any]
    created: str


def create(client: Client, collection: str, settings: CollectionSettings) -> None:
    """Make the collection: what is compared is hexadecimal, what is shown is text."""
    from pymilvus import DataType, MilvusClient

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
    for name in ("document", "made", "digest", "write"):
        schema.add_field(name, DataType.VARCHAR, max_length=64)
    for name in ("part", "parts", "place"):
        schema.add_field(name, DataType.INT64)
    for name in ("id", "source", "text", "metadata"):
        schema.add_field(name, DataType.VARCHAR, max_length=BYTES)
    schema.add_field("facets", DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=settings.embedder["dim"])
    indexes = MilvusClient.prepare_index_params()
    kind, params = KINDS[settings.kind]
    indexes.add_index("vector", index_name="vector", index_type=kind, metric_type="IP", params=params)
    for name in ("document", "made", "digest"):
        indexes.add_index(name, index_name=name, index_type="INVERTED")
    client.call(
        "create_collection",
        collection,
        schema=schema,
        consistency_level="Strong",
        properties={PROPERTY: json.dumps(asdict(settings))},
    )
    try:
        client.call("create_index", collection, indexes, sync=False)  # nothing is in it yet: nothing to wait for
        client.call("load_collection", collection)
    except BaseException:
        client.call("drop_collection", collection)
        raise


def read_settings(client: Client, collection: str) -> CollectionSettings:
    """Return what `create` kept, checked against what the collection is.

    Raises:
        IndexMismatch: `field` is "format", "metric" or "dim".
    """
    described = client.call("describe_collection", collection)
    hint = "Build it again, or open the collection that ckcontrol made."
    try:
        saved = json.loads(described["properties"][PROPERTY])
        found = saved["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise IndexMismatch("format", f"the collection {collection!r} was not made by ckcontrol.", hint) from error
    if found != FORMAT:
        raise IndexMismatch("format", f"the collection {collection!r} has format {found!r}, not {FORMAT}.", hint)
    try:
        settings = CollectionSettings(**saved)
        dim = {field["name"]: field["params"].get("dim") for field in described["fields"]}["vector"]
    except (KeyError, TypeError) as error:
        raise IndexMismatch("format", f"the collection {collection!r} is damaged: {error}.", hint) from error
    if dim != settings.embedder["dim"]:
        raise IndexMismatch("dim", f"the vectors have dim {dim}, not {settings.embedder['dim']}.", hint)
    made = (client.call("describe_index", collection, "vector") or {}).get("metric_type")
    if settings.metric not in METRICS or made != "IP":
        raise IndexMismatch("metric", f"the metric is {settings.metric!r} over {made!r}.", hint)
    return settings
