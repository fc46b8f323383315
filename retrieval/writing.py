"""What every write does with the items it is given: check them, cut documents into passages, count, report.

Knows passages, documents and the `Chunker`; knows nothing of where anything is stored. `store.writer` and
`milvus.writer` build on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckcontrol.errors import RetrievalError

from .types import Document, Passage, Skipped
from .where import is_text

if TYPE_CHECKING:
    from .chunk import Chunker

__all__ = ["Change", "ItemWriter", "OnProgress", "OnSkip", "check_metadata", "origin"]

ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # in JSON; after an odd number of backslashes it is plain text
OnSkip = Callable[[Skipped], None]
OnProgress = Callable[[str, int, int], None]  # stage, done, total; total 0: length unknown


@dataclass(frozen=True)
class Change:
    """What a write did.

    Attributes:
        added, replaced, unchanged: Documents (a `Passage` given as such counts as one).
        removed: Passages taken out by `remove`.
        folded: Passages whose text was there already; they share its vector.
        embedded: Texts that were embedded.
        reused: Texts whose embeddings an interrupted write had left.
        skipped: Inputs left out, each reported to `on_skip`.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    removed: int = 0
    folded: int = 0
    embedded: int = 0
    reused: int = 0
    skipped: int = 0

    @property
    def any(self) -> bool:
        """Whether the index differs from before."""
        return bool(self.added or self.replaced or self.removed)


class ItemWriter:
    """The part of a write that comes before anything is stored; `Writer` and `MilvusWriter` say what it is given."""

    def __init__(
        self,
        embedder: Any,
        chunk_size: int | None,
        overlap: int,
        on_skip: OnSkip | None,
        on_progress: OnProgress | None,
    ) -> None:
        self._embedder = embedder
        self._cut_to = (chunk_size, overlap)
        self._on_skip = on_skip
        self._report = on_progress or (lambda stage, done, total: None)
        self._chunker: Chunker | None = None
        self._counts = dict.fromkeys(Change.__dataclass_fields__, 0)

    @property
    def change(self) -> Change:
        """What was done so far."""
        return Change(**self._counts)

    def skip(self, name: str, reason: str, hint: str = "") -> None:
        """Leave out an input.

        Raises:
            RetrievalError: There is no `on_skip`.
        """
        if self._on_skip is None:
            raise RetrievalError(reason, hint)
        self._counts["skipped"] += 1
        self._on_skip(Skipped(name, reason))

    def skip_twin(self, item: Passage | Document) -> None:
        """Leave out an item whose id was given before in this write."""
        kind = _kind(item)
        self.skip(item.id, f"{kind} id {item.id!r} occurs twice.", f"Give every {kind} its own id.")

    def is_stranger(self, item: Passage | Document, holder: str) -> bool:
        """Leave out an item whose id one from elsewhere has: neither may take the other's place unasked.

        Args:
            item: As it was given.
            holder: Where the one that has the id comes from, as `origin` says; "": unknown.
        """
        given = origin(item.source, item.metadata)
        if not holder or not given or holder == given:
            return False
        reason = f"{given!r} has a {_kind(item)} with the id {item.id!r}, which one from {holder!r} has already."
        hint = (
            f"Give both their own ids; or, if it shall replace that one, remove that first (document {item.id!r}). "
            "If it is the same file, name it as before."
        )
        self.skip(item.id, reason if self._on_skip is None else f"{reason} {hint}", hint)
        return True

    def accept(self, item: Passage | Document, twin: Callable[[str], str | None]) -> list[str]:
        """Return what tells an item from a changed one: kind, text, source, metadata as JSON; empty if it is skipped.

        Args:
            item: As it was given.
            twin: The `origin` of what had an id earlier in this write; None: the id is new in it.

        Raises:
            RetrievalError: It is neither a `Passage` nor a `Document`, or it is skipped and there is no `on_skip`.
        """
        if not isinstance(item, (Passage, Document)):
            raise RetrievalError(f"{item!r:.80} is neither a Passage nor a Document.", "Give one of them per text.")
        kind = _kind(item)
        for name in ("id", "text", "source"):
            value = getattr(item, name)
            if not is_text(value) or (name == "id" and not value):
                reason = f"the {name} of {kind} {item.id!r} is not text: {value!r:.80}."
                shown = item.id if is_text(item.id) else ascii(item.id)
                self.skip(shown, reason, "Give one that can be written as UTF-8 and has no NUL in it.")
                return []
        if not item.text.strip():
            self._skip_blank(item)
            return []
        try:
            metadata = check_metadata(item)
        except RetrievalError as error:
            self.skip(item.id, str(error))
            return []
        holder = twin(item.id)
        if holder is None:
            return [kind, item.text, item.source, metadata]
        if not self.is_stranger(item, holder):
            self.skip_twin(item)
        return []

    def passages_of(self, item: Passage | Document) -> list[Passage]:
        """Return the passages an item is cut into; none if it is skipped."""
        if isinstance(item, Passage):
            return [item]
        if self._chunker is None:
            from .chunk import Chunker

            self._chunker = Chunker.for_embedder(self._embedder, *self._cut_to)
        try:
            passages = self._chunker.split(item)
        except RetrievalError as error:
            self.skip(item.id, str(error))
            return []
        if not passages:
            self._skip_blank(item)
        return passages

    def _skip_blank(self, item: Passage | Document) -> None:
        self.skip(item.id, f"{_kind(item)} {item.id!r} has no text.", "Leave blank ones out.")


def origin(source: str, metadata: Mapping[str, Any]) -> str:
    """Return where an item comes from: the file it was read from, or else its source."""
    path = metadata.get("path")
    return path if path and isinstance(path, str) else source


def check_metadata(item: Passage | Document) -> str:
    """Return the metadata as JSON.

    Raises:
        RetrievalError: It is not a mapping of texts to what JSON can hold, or a text in it, however deep, has a NUL: a
            comparison would end there, and take the passages of one name for those of another.
    """
    try:
        data = dict(item.metadata)
        if not all(isinstance(name, str) for name in data):
            raise TypeError("a name is not text")
        content = json.dumps(data, ensure_ascii=False, allow_nan=False)
        content.encode()  # half a surrogate pair is not a character
        if ESCAPED_NUL.search(content):
            raise ValueError("a name or a value, perhaps an inner one, has a NUL in it")
        return content
    except (TypeError, ValueError, RecursionError) as error:
        raise RetrievalError(
            f"the metadata of {_kind(item)} {item.id!r} cannot be kept: {error}.",
            "Use names with texts (without NUL), finite numbers, booleans or None.",
        ) from error


def _kind(item: Passage | Document) -> str:
    return "passage" if isinstance(item, Passage) else "document"
