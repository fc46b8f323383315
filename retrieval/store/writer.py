"""One write: documents in, a new generation out, or nothing.

Knows the order of things: cut, compare with what is stored, embed what is new, number it, index it, publish. Memory
grows only with the vectors; texts are streamed. The parts know nothing of one another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ckcontrol import __version__
from ckcontrol.errors import IndexMismatch, RetrievalError
from ckcontrol.words import VERSION as WORDS

from ..embed import check_identity, identify
from ..overrides import Override
from ..types import Document, Passage
from ..where import Condition
from ..writing import ItemWriter, OnProgress, OnSkip, origin
from . import generations, vectors
from .manifest import Manifest, Settings, digest_of
from .snapshot import OVERRIDES
from .texts import NAME as TEXTS
from .texts import CutDocument, TextWriter
from .unfinished import EmbeddingCache

__all__ = ["Writer"]

PENDING = 2048  # passages gathered before their texts are sorted by length and embedded
STEP = 256  # texts embedded and flushed to the cache at once: what an interruption loses at most
DEAD = 0.25  # share of dead rows above which they are squeezed out
SMALL = 4096  # rows below which an IVF has too little to learn from


class Writer(ItemWriter):
    """Prepares the generation after `base`; `publish` makes it the current one. Use under the write lock.

    Args:
        root: The index's folder.
        base: What to start from; None: nothing.
        settings: What was chosen for the index.
        embedder: Makes the vectors; None if nothing will be added.
        on_skip: Told of inputs that are left out; None raises instead.
        on_progress: Told how far the write is.
        number: Of the generation; None: the one after `base`.
        restart: Drop what an interrupted write of another embedder has left, instead of refusing.

    Raises:
        IndexMismatch: `embedder` did not make `base`, or did not make what an interrupted write has left.
        RetrievalError: The disk is full, or the folder cannot be written.
    """

    def __init__(
        self,
        root: Path,
        base: generations.Generation | None,
        settings: Settings,
        embedder: Any = None,
        on_skip: OnSkip | None = None,
        on_progress: OnProgress | None = None,
        number: int | None = None,
        restart: bool = False,
    ) -> None:
        super().__init__(embedder, settings.chunk_size, settings.overlap, on_skip, on_progress)
        self._root, self._base, self._settings = root, base, settings
        self._cache: EmbeddingCache | None = None
        if base is not None:
            if embedder is not None:
                check_identity(embedder, base.manifest.embedder, settings.metric)
            self._identity = base.manifest.embedder
        elif embedder is not None:
            self._identity = identify(embedder)
        self._words = base.manifest.words if base is not None else WORDS
        self._number = number or (base.manifest.generation + 1 if base is not None else 1)
        with generations.storing(root):
            if embedder is not None:
                path, kept = root / generations.UNFINISHED, (settings.dtype, settings.metric)
                self._cache = EmbeddingCache(path, embedder, self._identity, *kept, restart)
            try:
                self._folder = generations.fresh_folder(root, self._number)
                self._texts = TextWriter(self._folder, base.folder if base is not None else None, self._words)
            except BaseException:
                if self._cache is not None:
                    self._cache.close()
                raise
        self._overrides: list[Override] | None = None  # those of the base stay
        self._exact: Any = None
        self._rows = base.manifest.rows if base is not None else 0
        self._pending: dict[str, CutDocument] = {}
        self._owners: dict[str, str] = {}  # pending passage -> its document

    # --- adding -----------------------------------------------------------------------------------

    def add(self, items: Iterable[Passage | Document]) -> None:
        """Take documents and passages; one that is stored already, and differs, is replaced.

        Raises:
            RetrievalError: An item that is left out, when `on_skip` is None.
        """
        gathered = 0
        for item in items:
            document = self._cut(item)
            if document is None:
                continue
            self._pending[document.id] = document
            gathered += max(len(document.passages), 1)
            if gathered >= PENDING:
                self._flush()
                gathered = 0
        self._flush()

    def _twin(self, id: str) -> str | None:
        """Return the origin of what had the id earlier in this write; None: it is new in it."""
        if id in self._pending:
            return self._pending[id].origin
        stored = self._texts.known(id)
        return self._texts.origin(id) if stored is not None and stored[1] else None

    def _cut(self, item: Passage | Document) -> CutDocument | None:
        """Cut an item, and count it; None if it is skipped. One that is stored just so has no passages."""
        content = self.accept(item, self._twin)
        if not content:
            return None
        stored, source = self._texts.known(item.id), origin(item.source, item.metadata)
        digest = hashlib.sha256(json.dumps(content).encode()).digest()
        if stored is not None and stored[0] == digest:
            self._counts["unchanged"] += 1
            return CutDocument(item.id, digest, [], source)
        if stored is not None and self.is_stranger(item, self._texts.origin(item.id)):
            return None
        passages = self.passages_of(item)
        if not passages:
            return None
        for passage in passages:
            owner = self._owners.get(passage.id) or self._texts.owner(passage.id)
            if owner not in (None, item.id):
                reason = f"passage id {passage.id!r} occurs twice: document {owner!r} has it."
                self.skip(item.id, reason, "Give every passage its own id.")
                return None
        self._owners |= dict.fromkeys((passage.id for passage in passages), item.id)
        self._counts["added" if stored is None else "replaced"] += 1
        return CutDocument(item.id, digest, passages, source)

    def _flush(self) -> None:
        """Embed and store what was gathered."""
        pending, self._pending, self._owners = list(self._pending.values()), {}, {}
        with generations.storing(self._root):
            self._texts.touch(document.id for document in pending if not document.passages)
        changed = [document for document in pending if document.passages]
        texts = self._texts.unknown_texts(changed)
        if texts:
            self._vectors().add(self._embed(texts))
        with generations.storing(self._root):
            self._counts["folded"] += self._texts.add(changed, texts, self._rows)
        self._rows += len(texts)
        counts = self._counts
        self._report("Embedding", counts["added"] + counts["replaced"] + counts["unchanged"], 0)

    def _embed(self, texts: dict[bytes, str]) -> Any:
        if self._cache is None:
            raise RetrievalError("no embedder was given.", "Open the index with one.")
        known = self._cache.take(texts)
        self._counts["reused"] += len(known)
        wanted = sorted((digest for digest in texts if digest not in known), key=lambda digest: len(texts[digest]))
        for start in range(0, len(wanted), STEP):
            part = wanted[start : start + STEP]
            rows = self._embedder.encode([texts[digest] for digest in part])
            names, shape = [texts[digest][:40] for digest in part], (len(part), self._identity["dim"])
            rows = vectors.prepare(rows, self._settings.metric, names, shape, self._settings.dtype)
            with generations.storing(self._root):
                self._cache.put(part, rows)
            self._counts["embedded"] += len(part)
            self._report("Texts", self._counts["embedded"] + self._counts["reused"], 0)
        known |= self._cache.take(wanted)
        return np.stack([known[digest] for digest in texts]).astype(np.float32)

    def _vectors(self) -> Any:
        """Return the exact vectors, those of the last generation loaded when first needed."""
        if self._exact is None and self._base is None:
            self._exact = vectors.new_exact(self._identity["dim"], self._settings.dtype)
        elif self._exact is None and self._base is not None:
            self._exact = vectors.faiss_module().read_index(str(self._base.folder / vectors.EXACT))
        return self._exact

    # --- removing ---------------------------------------------------------------------------------

    def remove(self, documents: Sequence[str], passages: Sequence[str], conditions: tuple[Condition, ...]) -> None:
        """Remove documents, passages, and what meets the conditions.

        Raises:
            RetrievalError: A name that is not in the index.
        """
        with generations.storing(self._root):
            self._counts["removed"] += self._texts.remove(documents, passages, conditions)

    # --- overriding -------------------------------------------------------------------------------

    def override(self, facts: Sequence[Override]) -> None:
        """Make these the overrides of the index, in place of all that it has."""
        self._overrides = list(facts)

    @property
    def changed(self) -> bool:
        """Whether the index will differ from before."""
        return self.change.any or self._overrides is not None

    def _write_overrides(self) -> bool:
        """Write the overrides, or share those of the last generation; False where there are none."""
        if self._overrides is None and self._base is not None and OVERRIDES in self._base.manifest.files:
            _link(self._base.folder / OVERRIDES, self._folder / OVERRIDES)
            return True
        if self._overrides:
            facts = [fact.to_dict() for fact in self._overrides]
            (self._folder / OVERRIDES).write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
        return bool(self._overrides)

    # --- publishing -------------------------------------------------------------------------------

    def abandon(self, done: bool = False) -> None:
        """Leave the index as it was, unless it was published. Embeddings stay for the next write; the rest goes.

        Args:
            done: The write ended, and changed nothing: embeddings that the index has already can go.
        """
        spent = done and self._spent()
        self._texts.close()
        self._settle(spent)
        try:
            found = generations.pointer(self._root)
        except IndexMismatch:  # it was damaged before
            found = None
        if found is None or found[0] != self._number:  # interrupted after the last step, it is published
            shutil.rmtree(self._folder, ignore_errors=True)

    def _spent(self) -> bool:
        """Whether next to nothing in the cache is of use to a later write: at most a tenth is not in the index yet."""
        return self._cache is not None and 10 * self._texts.missing(self._cache.digests()) <= len(self._cache)

    def _settle(self, spent: bool) -> None:
        if self._cache is not None:
            self._cache.close()
            if spent or not len(self._cache):
                self._cache.delete()

    def publish(self) -> None:
        """Write the vectors, then make the generation the current one.

        Raises:
            RetrievalError: The disk is full.
        """
        with generations.storing(self._root):
            spent = self._spent()
            texts, passages, documents = self._texts.counts()
            squeezed = self._rows > texts and self._rows - texts > DEAD * self._rows
            if squeezed:
                self._exact = vectors.squeeze(self._vectors(), self._texts.alive(), self._settings.dtype)
                self._texts.renumber()
                self._rows = texts
            self._texts.close()
            kind, trained = self._write_vectors(squeezed)
            names = [TEXTS, vectors.EXACT, *([vectors.ANN] if kind != "flat" else [])]
            names += [OVERRIDES] if self._write_overrides() else []
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            manifest = Manifest(
                generation=self._number,
                settings=self._settings,
                embedder=self._identity,
                kind=kind,
                trained=trained,
                rows=self._rows,
                texts=texts,
                passages=passages,
                documents=documents,
                created=self._base.manifest.created if self._base is not None else now,
                updated=now,
                files={name: self._file_entry(name) for name in names},
                writer=__version__,
                words=self._words,
            )
            generations.publish(self._root, self._folder, manifest)
            self._settle(spent)

    def _file_entry(self, name: str) -> dict[str, Any]:
        """Return a file's size and digest; those of a file shared with the last generation are known."""
        path = self._folder / name
        if self._base is not None and (self._base.folder / name).exists() and path.samefile(self._base.folder / name):
            return self._base.manifest.files[name]
        return digest_of(path)

    def _write_vectors(self, squeezed: bool) -> tuple[str, int]:
        """Write the FAISS files; return the kind and what it was trained on."""
        faiss = vectors.faiss_module()
        kind = vectors.choose(self._settings.kind, self._rows, self._identity["dim"], self._settings.dtype)
        if kind != "hnsw" and self._rows < SMALL:
            kind = "flat"
        old = self._base.manifest if self._base is not None else None
        if self._exact is None and self._base is not None and old is not None and old.kind == kind:
            for name in (vectors.EXACT, vectors.ANN)[: 1 + (kind != "flat")]:
                _link(self._base.folder / name, self._folder / name)
            return kind, old.trained
        vectors.write(self._vectors(), self._folder / vectors.EXACT)
        if kind == "flat":
            return kind, 0
        self._report(f"Building {kind}", 0, self._rows)
        base = None
        if self._base is not None and old is not None and old.kind == kind and not squeezed:
            base = faiss.read_index(str(self._base.folder / vectors.ANN))
        trained = old.trained if old is not None else 0
        ann, trained = vectors.build_ann(kind, self._vectors(), self._settings.dtype, base, trained)
        vectors.write(ann, self._folder / vectors.ANN)
        self._report(f"Building {kind}", self._rows, self._rows)
        return kind, trained


def _link(source: Path, target: Path) -> None:
    """Share a file between generations; published files never change."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
