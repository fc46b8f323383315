"""What an index says of itself: one JSON file that names every other file with its size and sha256.

Knows fields and digests; knows nothing of FAISS, SQLite or embedders. A manifest is only parsed after it was found to
match its digest in ``CURRENT``, and no other file before it was found to match its digest here.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ckcontrol.errors import IndexMismatch
from ckcontrol.words import VERSION as WORDS

__all__ = ["FORMAT", "VERSION", "Manifest", "Settings", "check_files", "digest_of"]

FORMAT = "ckcontrol-index"
VERSION = 1
NAME = "manifest.json"
EMBEDDER = {"name", "revision", "normalize", "dim", "fingerprint"}  # what `identify` gives


@dataclass(frozen=True)
class Settings:
    """What is chosen when an index is built and kept for all of its life.

    Attributes:
        metric: "cosine" (vectors are normalised here) or "ip" (inner product of vectors as they come).
        dtype: "float32" or "float16", of the stored vectors.
        kind: "flat", "hnsw", "ivf" or "ivfpq", or "auto": chosen by size at every write.
        chunk_size: Tokens a passage may have, special tokens not counted; None: 256, or what the window holds.
        overlap: Tokens that consecutive passages of a document share at most.
        text_field: What `read` was told holds the text of records, for later reads; None: nothing.
        encoding: What `read` was told of text files, likewise.
    """

    metric: str = "cosine"
    dtype: str = "float32"
    kind: str = "auto"
    chunk_size: int | None = None
    overlap: int = 32
    text_field: str | None = None
    encoding: str | None = None


@dataclass(frozen=True)
class Manifest:
    """One generation of an index.

    Attributes:
        generation: Counts the writes, from 1.
        settings: What was chosen when the index was built.
        embedder: Name, revision, dim and fingerprint of what made the vectors (`embed.identify`).
        kind: The kind of FAISS index in use; "flat" has no file besides the vectors.
        trained: How many vectors an IVF was trained on; 0 for the others.
        rows: Vectors in the files, dead ones included.
        texts: Texts that can be found, each with one vector.
        passages: Passages; those with equal texts share a vector.
        documents: Documents the passages come from.
        files: Name to ``{"bytes", "sha256"}``.
        created, updated: UTC, ISO 8601.
        version: Of the format.
        writer: The version of ckcontrol that wrote it.
        words: Version of what search by words looks up (`words.VERSION`); 0, in manifests that do not say: words of
            scripts written with blanks alone. Building again makes it the present one.
    """

    generation: int
    settings: Settings
    embedder: dict[str, Any]
    kind: str
    trained: int
    rows: int
    texts: int
    passages: int
    documents: int
    created: str
    updated: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = VERSION
    writer: str = ""
    words: int = 0

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        data = {"format": FORMAT, **asdict(self)}
        for name in ("text_field", "encoding"):  # older versions read an index that does without them
            if data["settings"][name] is None:
                del data["settings"][name]
        return (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse a file's content.

        Raises:
            IndexMismatch: Another format or version, or a field that is missing or unknown.
        """
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise IndexMismatch("manifest", "the manifest is not JSON.", "Build the index again.") from error
        if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
            raise IndexMismatch("format", f"the manifest does not say format={FORMAT!r}.", "It is another program's.")
        version = raw.get("version")
        if version != VERSION:
            raise IndexMismatch(
                "version",
                f"the index has format version {version!r}, this ckcontrol reads {VERSION}.",
                "Use the ckcontrol that wrote it, or build the index again.",
            )
        words = raw.setdefault("words", 0)
        if type(words) is not int or not 0 <= words <= WORDS:
            raise IndexMismatch("words", f"the index has words of version {words!r}, not 0 to {WORDS}.", "Build again.")
        known = {item.name for item in fields(cls)}
        for name in sorted(known ^ set(raw)):
            raise IndexMismatch(name, f"the manifest's field {name!r} is missing or unknown.", "Build the index again.")
        try:
            settings = Settings(**raw["settings"])
        except TypeError as error:
            raise IndexMismatch("settings", f"the manifest's settings are wrong: {error}.", "Build again.") from error
        if not isinstance(raw["embedder"], dict) or set(raw["embedder"]) != EMBEDDER:
            names = ", ".join(sorted(EMBEDDER))
            raise IndexMismatch("embedder", f"the manifest's embedder does not have: {names}.", "Build again.")
        return cls(**{**raw, "settings": settings})


def digest_of(path: Path) -> dict[str, Any]:
    """Return ``{"bytes", "sha256"}`` of a file, read in pieces."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Compare every file with its entry; in parallel, as hashing a large index is what opening it costs.

    Raises:
        IndexMismatch: A file is missing, has another length, or another content; `field` is its name.
    """
    with ThreadPoolExecutor(max_workers=max(len(files), 1)) as pool:
        for failure in pool.map(lambda item: _check(folder / item[0], item[1]), files.items()):
            if failure is not None:
                raise failure


def _check(path: Path, entry: dict[str, Any]) -> IndexMismatch | None:
    again = "The index is damaged: restore it from a copy or build it again."
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return IndexMismatch(path.name, f"{path.name} has {size} bytes, not {entry['bytes']}.", again)
        if digest_of(path)["sha256"] != entry["sha256"]:
            return IndexMismatch(path.name, f"the content of {path.name} is not what was written.", again)
    except FileNotFoundError:
        return IndexMismatch(path.name, f"{path.name} is missing.", again)
    except OSError as error:
        return IndexMismatch(path.name, f"{path.name} cannot be read: {error}.", again)
    return None
