"""The index: build, open, add, remove, search. The class that users of retrieval meet first.

Knows when to lock, write and swap; how each is done is in the modules it calls.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckcontrol.errors import EmptyCorpus, IndexMismatch, RetrievalError, did_you_mean

from .overrides import Overrides, read_overrides
from .passage_index import PassageIndex, check_removal
from .store import generations
from .store.manifest import Settings
from .types import METRICS, Document, Hit, Passage, check_choice

if TYPE_CHECKING:
    from .embed import TextEncoder
    from .store.manifest import Manifest
    from .store.snapshot import Snapshot
    from .store.verify import CheckResult
    from .store.writer import Writer
    from .where import Condition
    from .writing import Change, OnProgress, OnSkip

__all__ = ["WORDS_OF_OLD", "Index"]

WORDS_OF_OLD = (
    "of an older version: bm25 and hybrid find no words of Chinese, Japanese, Korean, Thai and the like, nor with "
    "ligatures or across line ends; build the index again (ckcontrol index build --overwrite) to find them"
)
log = logging.getLogger("ckcontrol.retrieval")


class Index(PassageIndex):
    """Passages that can be found by meaning, by words, or both. Made by `Index.build` or `Index.open`.

    Searching is safe from many threads, also while this or another process adds: a search sees one generation, whole.

    Attributes:
        path: The folder.
        change: What the last write through this object did; None before one.
    """

    def __init__(self, path: Path, embedder: TextEncoder | None) -> None:
        from .store.snapshot import Snapshot

        self.path = path
        self.change: Change | None = None
        self._closed = self._told = False
        self._embedder = embedder
        self._overrides: tuple[Any, Overrides] | None = None  # of which snapshot
        self._temporary: weakref.finalize[Any, Any] | None = None  # deletes the folder together with this object
        self._snapshot = Snapshot(path)
        try:
            self._check(self._snapshot.manifest)
        except BaseException:
            self._snapshot.close()
            raise

    # --- making -----------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        items: Iterable[Passage | Document],
        embedder: TextEncoder,
        path: str | Path | None = None,
        *,
        kind: str = "auto",
        metric: str = "cosine",
        dtype: str = "float32",
        chunk_size: int | None = None,
        overlap: int = 32,
        overwrite: bool = False,
        overrides: Any = (),
        text_field: str | None = None,
        encoding: str | None = None,
        on_skip: OnSkip | None = None,
        on_progress: OnProgress | None = None,
    ) -> Index:
        """Embed and index a corpus. Interrupted, the same call goes on from the embeddings that were made.

        Args:
            items: A `Passage` is taken as it is; a `Document` is cut into passages. Equal texts share a vector.
            embedder: An `Embedder`, or anything with its `dim` and `encode`.
            path: The index's folder; None: a temporary one that goes with the object.
            kind: "flat" (exact), "hnsw", "ivf", "ivfpq", or "auto": chosen by size, see `info()["kind"]`.
            metric: "cosine", or "ip": inner products of the embedder's vectors as they come.
            dtype: Of the stored vectors: "float32", or "float16" (half the size; scores differ by about 1e-4).
            chunk_size: Most tokens that a passage cut from a document has; None: 256, or what the window holds.
            overlap: Tokens that neighbouring passages share at most.
            overwrite: Replace an index that is there.
            overrides: Facts that outrank what is found, a file or records; see `read_overrides` and `override`.
            text_field: What `read` was told, where `items` come from it; ``ckcontrol index add`` reads with it again.
            encoding: Likewise.
            on_skip: Told of every item that is left out (blank, or its id occurred before); None: raise instead.
            on_progress: Called with (stage, done, total); total 0: length unknown.

        Raises:
            RetrievalError: There is an index already, a bad option, an item that is left out, or nothing to index.
            IndexLocked: Another process is writing there.
            MissingExtra: A package of the `retrieval` extra is missing.
        """
        from .store.vectors import DTYPES, choose, faiss_module
        from .store.writer import Writer

        faiss_module()
        facts = read_overrides(overrides)
        choose(kind, 0)
        check_choice("metric", metric, METRICS)
        check_choice("dtype", dtype, DTYPES)
        for name, tokens, least in (("chunk_size", chunk_size, 1), ("overlap", overlap, 0)):
            if (tokens is not None or not least) and (type(tokens) is not int or tokens < least):
                raise RetrievalError(f"{name}={tokens!r} is not a number of tokens.", f"Give {least} or more.")
        settings = Settings(metric, dtype, kind, chunk_size, overlap, text_field, encoding)
        root = Path(path if path is not None else tempfile.mkdtemp(prefix="ckcontrol-index-"))
        if root.exists() and not root.is_dir():
            raise RetrievalError(f"{str(root)!r} is a file.", "Give a folder.")
        foreign = generations.foreign(root)
        if foreign:
            raise RetrievalError(f"{str(root)!r} holds {foreign!r}, not an index's file.", "Give an empty folder.")
        try:
            with generations.write_lock(root):
                number = _next_number(root, overwrite)
                writer = Writer(root, None, settings, embedder, on_skip, on_progress, number, overwrite)
                if facts:
                    writer.override(facts)
                change = _finish(writer, lambda writer: writer.add(items), empty=True)
                generations.clean(root)
            index = cls(root, embedder)
        except BaseException:
            if path is None:
                shutil.rmtree(root, ignore_errors=True)
            raise
        if path is None:
            index._temporary = weakref.finalize(index, shutil.rmtree, root, ignore_errors=True)
        index.change = change
        return index

    @classmethod
    def open(cls, path: str | Path, embedder: TextEncoder | None = None) -> Index:
        """Open an index. Every file is compared with its sha256 before it is read.

        Args:
            path: The index's folder.
            embedder: What made it. None: loaded by the name in the manifest when first needed.

        Raises:
            NoIndex: There is none.
            IndexMismatch: A file is damaged or foreign, or `embedder` did not make the index; `field` says what.
        """
        return cls(Path(path), embedder)

    @staticmethod
    def verify(path: str | Path) -> list[CheckResult]:
        """Check an index inside and out; see `verify.verify`."""
        from .store.verify import verify

        return verify(Path(path))

    # --- changing ---------------------------------------------------------------------------------

    def add(
        self,
        items: Iterable[Passage | Document],
        *,
        without: Sequence[str] = (),
        on_skip: OnSkip | None = None,
        on_progress: OnProgress | None = None,
    ) -> Change:
        """Add to the index. What is stored unchanged costs nothing; what changed replaces its old passages.

        The index is the old one until everything is in it, then the new one. Interrupted, it stays the old one, and
        the embeddings made are used by the next write.

        Args:
            items: As for `build`.
            without: Ids of documents that are removed first, in the same write.
            on_skip: As for `build`.
            on_progress: As for `build`.

        Raises:
            RetrievalError, IndexLocked: As for `build`; or a document to remove that is not in the index.
        """

        def work(writer: Writer) -> None:
            if without:
                writer.remove(without, (), ())
            writer.add(items)

        return self._write(work, on_skip, on_progress, adds=True)

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
            IndexLocked: Another process is writing.
        """
        conditions = check_removal(documents, passages, where)
        return self._write(lambda writer: writer.remove(documents, passages, conditions))

    def override(self, facts: Any) -> None:
        """Make these the facts that outrank what is found, in place of all before; an empty list leaves none.

        `Rag`, ``ckcontrol ask`` and both servers then answer from the fact that a question asks for, and every other
        question as before. Later writes keep them.

        Args:
            facts: A file or records, as `read_overrides` takes them.

        Raises:
            RetrievalError: What `read_overrides` refuses; the index is as it was.
            IndexLocked: Another process is writing.
        """
        read = read_overrides(facts)
        self._write(lambda writer: writer.override(read))

    def _write(
        self,
        work: Callable[[Writer], None],
        on_skip: OnSkip | None = None,
        on_progress: OnProgress | None = None,
        adds: bool = False,
    ) -> Change:
        """Do the work on top of what is published now, by whomever, and search the result from now on."""
        from .store.writer import Writer

        with generations.write_lock(self.path):
            with closing(generations.open_current(self.path)) as base:
                if not adds:  # a writer that embeds checks its embedder itself
                    self._check(base.manifest)
                embedder = self.embedder if adds else None
                writer = Writer(self.path, base, base.manifest.settings, embedder, on_skip, on_progress)
                self.change = _finish(writer, work)
            self._swap()
            generations.clean(self.path)
        return self.change

    def refresh(self) -> bool:
        """Check whether another process has written; if so, search what it wrote from now on.

        Raises:
            IndexMismatch: What it wrote is damaged or of another embedder; this object goes on with what it has.
        """
        from .store.snapshot import current

        if current(self.path) in (None, self._snapshot.number):
            return False
        self._swap()
        return True

    def _swap(self) -> None:
        from .store.snapshot import Snapshot

        new = Snapshot(self.path)
        if new.manifest.embedder != self._snapshot.manifest.embedder:
            self._check(new.manifest)
        self._snapshot = new  # the old one closes when its last search ends

    def _check(self, manifest: Manifest) -> None:
        """Refuse an index that the embedder in use did not make."""
        if self._embedder is not None:
            from .embed import check_identity

            check_identity(self._embedder, manifest.embedder, manifest.settings.metric)

    # --- asking -----------------------------------------------------------------------------------

    def _check_mode(self, mode: str) -> None:
        from .store.snapshot import MODES

        if mode not in MODES:
            raise RetrievalError(f"mode={mode!r} is not a way to search.", did_you_mean(str(mode), MODES))

    def _names(self) -> frozenset[str]:
        return self._snapshot.texts.names

    def _find(
        self,
        queries: list[str],
        k: int,
        conditions: tuple[Condition, ...],
        mode: str,
        effort: int | None,
        nearest: float | None = None,
    ) -> list[list[Hit]]:
        if self._closed:
            raise RetrievalError(f"the index at {str(self.path)!r} is closed.", "Open it again.")
        snapshot = self._snapshot
        if mode != "dense" and not snapshot.manifest.words and not self._told:
            self._told = True
            log.warning("The words of the index at %s are %s.", self.path, WORDS_OF_OLD)
        if mode != "bm25" and snapshot.asked is not None and not snapshot.checked:
            self._check_questions(snapshot)
        vectors = None if mode == "bm25" else self.embedder.encode(queries, query=True)
        return snapshot.search(queries, vectors, k, conditions, mode, effort, nearest)

    def _check_questions(self, snapshot: Snapshot) -> None:
        """Leave out the questions of a snapshot that another embedder embedded; say so once."""
        from .embed import AsQueries, check_identity

        snapshot.checked = True
        try:
            if snapshot.questions is not None:
                check_identity(AsQueries(self.embedder), snapshot.questions.manifest.embedder)
        except IndexMismatch:
            snapshot.asked = None
            log.warning(
                "The questions of the index at %s are of another embedder and are not used: "
                "ckcontrol index questions embeds them again.",
                self.path,
            )

    @property
    def overrides(self) -> Overrides | None:
        """The facts that outrank what is found, to be asked whether a question asks for one; None without any."""
        snapshot = self._snapshot
        if not snapshot.overrides:
            return None
        if self._overrides is None or self._overrides[0] is not snapshot:
            self._overrides = snapshot, Overrides(snapshot.overrides, self.embedder)
        return self._overrides[1]

    @property
    def embedder(self) -> TextEncoder:
        """What queries are embedded with; loaded by name when the index was opened without one.

        Raises:
            IndexMismatch: The model of that name is not the one that made the index.
        """
        if self._embedder is None:
            from .embed import Embedder, check_identity

            manifest = self._snapshot.manifest
            saved = manifest.embedder
            embedder = Embedder(saved["name"], revision=saved["revision"] or None, normalize=saved["normalize"])
            check_identity(embedder, saved, manifest.settings.metric)
            self._embedder = embedder
        return self._embedder

    def __len__(self) -> int:
        """Count what can be found: passages with equal texts count once."""
        return self._snapshot.manifest.texts

    def passages(self) -> Iterator[Passage]:
        """Yield all passages in corpus order, those with equal texts each."""
        snapshot = self._snapshot  # held until the last one is out
        yield from snapshot.texts.every()

    def documents(self) -> list[tuple[str, str]]:
        """Return id and file of every document that was read from a file, in corpus order."""
        return self._snapshot.texts.documents()

    def info(self) -> dict[str, Any]:
        """Return what the manifest says, without the fingerprint; JSON-ready."""
        data = asdict(self._snapshot.manifest)
        data["embedder"].pop("fingerprint")
        data["overrides"] = len(self._snapshot.overrides)
        asked = self._snapshot.asked
        data["questions"], data["questioned"] = (0, 0) if asked is None else asked.counts
        data["dead"] = data["rows"] - data["texts"]
        data["bytes"] = sum(entry["bytes"] for entry in data["files"].values())
        return {"path": str(self.path), **data}

    def close(self) -> None:
        """Let go of the files, and delete a temporary index."""
        self._closed = True
        self._snapshot.close()
        if self._temporary is not None:
            self._temporary()


def _finish(writer: Writer, work: Callable[[Writer], None], empty: bool = False) -> Change:
    """Do the work and publish it if it changed anything; on any failure leave the index as it was."""
    try:
        work(writer)
        change = writer.change
        if empty and not change.any:
            raise EmptyCorpus
        if writer.changed:
            writer.publish()
    except BaseException:
        writer.abandon()
        raise
    if not writer.changed:
        writer.abandon(done=True)
    return change


def _next_number(root: Path, overwrite: bool) -> int:
    """Return the number of the generation to build; the old one stays until the new one is published."""
    try:
        found = generations.pointer(root)
    except IndexMismatch:
        if not overwrite:
            raise
        found = None
    if found is not None and not overwrite:
        raise RetrievalError(f"there is an index at {str(root)!r}.", "Add to it, or pass overwrite=True.")
    numbers = [int(folder.name) for folder in root.iterdir() if folder.name.isdigit()] if overwrite else []
    return max(numbers, default=0) + 1
