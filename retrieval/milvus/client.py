"""A connection to Milvus, embedded or on servers, whose every failure is a `RetrievalError` that names the address.

Knows pymilvus and how Milvus Lite keeps a folder; knows nothing of passages or embedders.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from ckcontrol.errors import CKError, IndexLocked, MissingExtra, RetrievalError

__all__ = ["Client"]

LOADING = 600.0  # seconds that loading a collection into the servers' memory may take
LITE = ("LOCK", "collections", "databases")  # what Milvus Lite keeps in its folder
LOGGERS = ("pymilvus.decorators", "pymilvus.client.connection_manager", "milvus_lite.server_manager", "grpc._server")

_open_paths: Counter[str] = Counter()  # embedded databases, each served once per process
_open_lock = Lock()


class Client:
    """One connection.

    Args:
        uri: ``http(s)://host:port``, or a path that ends in ``.db``: Milvus Lite, in this process.
        token: ``user:password`` or an API key; servers only.
        timeout: Seconds that one request may take.
        create: Whether an embedded database may be made.

    Raises:
        MissingExtra: pymilvus or, for a path, milvus-lite is not installed.
        RetrievalError: No such server or database, or something else is there.
        IndexLocked: Another process has the embedded database open.
    """

    def __init__(self, uri: str | Path, token: str | None, timeout: float, *, create: bool) -> None:
        try:
            import pymilvus
        except ImportError as error:
            raise MissingExtra("pymilvus", "milvus") from error
        self.timeout = timeout
        self.path = "" if "://" in str(uri) else str(Path(uri).expanduser().absolute())
        self.uri = self.path or _without_password(str(uri))
        if self.path:
            _check_folder(Path(self.path), create)
        with _listening() as errors:
            try:
                self._client: Any = pymilvus.MilvusClient(self.path or str(uri), token=token or "", timeout=timeout)
            except Exception as error:  # neither ConnectionConfigException nor what a bad URL raises is a public name
                raise _unreachable(self.uri, self.path, [error, *errors]) from error
        if self.path:
            with _open_lock:
                _open_paths[self.path] += 1

    @property
    def embedded(self) -> bool:
        """Whether Milvus runs in this process."""
        return bool(self.path)

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of `MilvusClient`.

        Raises:
            RetrievalError: It failed, or took too long.
        """
        import grpc
        from pymilvus.exceptions import MilvusException

        if self._client is None:
            raise RetrievalError(f"the index at {self.uri} is closed.", "Open it again.")
        timeout = LOADING if method == "load_collection" else self.timeout
        try:
            with _listening():
                return getattr(self._client, method)(*args, timeout=timeout, **options)
        except (MilvusException, grpc.RpcError, ValueError) as error:
            reason = " ".join(str(getattr(error, "message", "") or error).split())[:300]
            raise RetrievalError(f"Milvus at {self.uri} failed to {method.replace('_', ' ')}: {reason}.") from error

    def count(self, collection: str, filter: str) -> int:
        """Return how many rows of a collection a filter leaves.

        Raises:
            RetrievalError: As `call`.
        """
        return int(self.call("query", collection, filter=filter, output_fields=["count(*)"])[0]["count(*)"])

    def close(self) -> None:
        """Disconnect; the last to leave an embedded database stops it."""
        if self._client is None:
            return
        self._client.close()
        self._client = None
        if not self.path:
            return
        with _open_lock:
            _open_paths[self.path] -= 1
            last = not _open_paths[self.path]
        if last:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(self.path)


def _without_password(uri: str) -> str:
    """Return the address for messages."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _check_folder(path: Path, create: bool) -> None:
    """Refuse what Milvus Lite would overwrite or create by mistake."""
    if path.suffix != ".db":
        raise RetrievalError(f"{str(path)!r} is not a Milvus address.", "Give http(s)://host:port or a path in .db.")
    if path.exists() and not path.is_dir():
        raise RetrievalError(f"{str(path)!r} is a file, but Milvus Lite keeps a folder.", "Give another path.")
    inside = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if inside and not inside >= set(LITE[:2]):
        raise RetrievalError(f"{str(path)!r} is not a Milvus database.", "Give another path.")
    if not inside and not create:
        raise RetrievalError(f"there is no Milvus database at {str(path)!r}.", "Build one with MilvusIndex.build.")
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)


def _unreachable(uri: str, path: str, errors: list[BaseException]) -> CKError:
    """Say why there is no connection; Milvus Lite tells only its log."""
    names = [type(error).__name__ for error in errors]
    if "DataDirLockedError" in names:
        return IndexLocked(f"{path!r} is open in another process.", "Close it there; servers take many clients.")
    if any(isinstance(error, ImportError) or "milvus-lite" in str(error) for error in errors):
        return MissingExtra("milvus-lite", "milvus")
    reason = " ".join(str(getattr(errors[-1], "message", "") or errors[-1]).split())[:300].rstrip(".")
    hint = "Is it damaged?" if path else "Check the address, the token and that the server runs."
    return RetrievalError(f"no connection to Milvus at {uri}: {reason}.", hint)


@contextmanager
def _listening() -> Iterator[list[BaseException]]:
    """Keep errors out of the log while they are turned into exceptions; collect what came with them."""
    caught: list[BaseException] = []

    def listen(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            caught.append(record.exc_info[1])
        return record.levelno < logging.ERROR

    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(listen)
    try:
        yield caught
    finally:
        for logger in loggers:
            logger.removeFilter(listen)
