"""Embeddings of a write that is not published yet, so that an interruption costs minutes, not the work.

    header     one JSON line: format, and the embedder and dtype of the vectors
    records    sha256 of the text, the vector, crc32 of both; all of one length, appended and flushed batch by batch

Keyed by text, so whatever is done next (the same build again, another one over some of the same files) takes from it
what it can use. A half-written last record is cut off. Knows digests and vectors; knows nothing of indexes.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckcontrol.errors import IndexMismatch

from ..embed import check_identity

__all__ = ["EmbeddingCache"]

FORMAT = "ckcontrol-embeddings-1"
DIGEST, CHECK = 32, 4


class EmbeddingCache:
    """The file, open for appending.

    Args:
        path: Created if absent.
        identity: Of the embedder, as `identify` gives it.
        embedder: Checked against the file's.
        dtype: "float32" or "float16". A file of another dtype or metric is started anew.
        metric: "cosine" or "ip": whether the vectors were normalised.
        restart: Start a file of another embedder anew, too.

    Raises:
        IndexMismatch: The file is of another embedder.
    """

    def __init__(
        self,
        path: Path,
        embedder: Any,
        identity: dict[str, Any],
        dtype: str,
        metric: str = "cosine",
        restart: bool = False,
    ) -> None:
        self._path = path
        self._dtype = np.dtype(dtype)
        self._dim = int(identity["dim"])
        self._record = DIGEST + self._dim * self._dtype.itemsize + CHECK
        self._rows: dict[bytes, int] = {}
        kept = {"format": FORMAT, "dtype": dtype, "metric": metric}
        header = json.dumps({**kept, **identity}, sort_keys=True).encode() + b"\n"
        try:
            old = self._read_header(embedder, kept)
        except IndexMismatch:
            if not restart:
                raise
            old = None
        if old is None:
            path.write_bytes(header)
            old = len(header)
        self._start = old
        self._count = self._load()
        self._file = path.open("r+b")
        self._file.truncate(self._start + self._count * self._record)
        self._file.seek(0, os.SEEK_END)

    def __len__(self) -> int:
        return len(self._rows)

    def _read_header(self, embedder: Any, kept: dict[str, str]) -> int | None:
        """Return where the records start; None if there is no usable file."""
        try:
            with self._path.open("rb") as file:
                line = file.readline(1 << 20)
            saved = json.loads(line)
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(saved, dict) or not line.endswith(b"\n") or any(saved.get(k) != v for k, v in kept.items()):
            return None
        try:
            check_identity(embedder, saved, kept["metric"])
        except (KeyError, TypeError):
            return None
        except IndexMismatch as error:
            raise IndexMismatch(
                error.field,
                f"an interrupted build with the embedder {saved['name']!r} left its vectors here; this is another one.",
                f"Go on with that one, or start over (overwrite=True) and lose {self._path.stat().st_size:,} bytes "
                "of embeddings.",
            ) from error
        return len(line)

    def _load(self) -> int:
        """Read the digests; return how many records are whole."""
        with self._path.open("rb") as file:
            file.seek(self._start)
            count = 0
            while len(record := file.read(self._record)) == self._record:
                if zlib.crc32(record[:-CHECK]) != int.from_bytes(record[-CHECK:], "little"):
                    break
                self._rows[record[:DIGEST]] = count
                count += 1
        return count

    def digests(self) -> Iterable[bytes]:
        """Return the digests of the texts that are here."""
        return self._rows.keys()

    def take(self, digests: Iterable[bytes]) -> dict[bytes, NDArray[Any]]:
        """Return the vectors of those texts that are here."""
        found = {}
        with self._path.open("rb") as file:
            for digest in digests:
                if (row := self._rows.get(digest)) is not None:
                    file.seek(self._start + row * self._record + DIGEST)
                    found[digest] = np.frombuffer(file.read(self._dim * self._dtype.itemsize), self._dtype)
        return found

    def put(self, digests: list[bytes], vectors: NDArray[Any]) -> None:
        """Append vectors and flush them to the disk."""
        for digest, vector in zip(digests, vectors.astype(self._dtype), strict=True):
            record = digest + vector.tobytes()
            self._file.write(record + zlib.crc32(record).to_bytes(CHECK, "little"))
            self._rows[digest] = self._count
            self._count += 1
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Leave the file for the next write."""
        with contextlib.suppress(OSError):  # what a full disk did not take is cut off by the next write
            self._file.close()

    def delete(self) -> None:
        """Delete the file: nothing in it is needed any more."""
        self.close()
        self._path.unlink(missing_ok=True)
