"""Documents to passages that an embedder can take whole: by its own tokens, at sentence ends where there are any.

Knows a tokenizer and the splitter library (semantic-text-splitter, which finds the boundaries); knows nothing of
models, files or indexes. The library's time grows with the square of the text, so it is shown one window at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ckcontrol.errors import MissingExtra, RetrievalError

from .embed import name_of
from .types import Document, Passage

__all__ = ["RESERVED", "Chunker"]

RESERVED = ("document", "start", "end")  # metadata a Chunker writes
SHORTEST = 8
USUAL = 256  # tokens of a passage unless told: some embedders read 8,000, but no prompt holds several of those
WINDOW = 16  # characters the library sees at once, for each token of a chunk
WIDEST = 8  # characters a chunk may have for each of its tokens; blanks and endless words count few tokens
GAP = re.compile(r"\s{100,}")
VISIBLE = re.compile(r"\S")


class Chunker:
    """Cuts documents into overlapping passages of at most `size` tokens.

    Chunks end where a heading, paragraph, line, sentence or word ends: the largest of these that fits. Documents
    whose ``path`` ends in .md or .markdown are cut along their Markdown structure.

    Args:
        tokenizer: The embedder's: a fast tokenizer of transformers, or a `tokenizers.Tokenizer`. It is not changed.
        size: Tokens a passage may have, without special tokens: the embedder's window less
            ``tokenizer.num_special_tokens_to_add()``. Besides, a passage has at most 8 characters per token.
        overlap: Tokens that a passage repeats of the one before it, at most.

    Raises:
        RetrievalError: `size` is below 8, `overlap` is not from 0 to `size` - 1, or the tokenizer is a slow one.
        MissingExtra: semantic-text-splitter is not installed.
    """

    def __init__(self, tokenizer: Any, size: int, overlap: int = 32) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < SHORTEST:
            raise RetrievalError(f"size={size!r} is not a chunk size.", f"Give {SHORTEST} tokens or more.")
        if isinstance(overlap, bool) or not isinstance(overlap, int) or not 0 <= overlap < size:
            raise RetrievalError(f"overlap={overlap!r} does not suit size={size}.", f"Give 0 to {size - 1} tokens.")
        try:
            from semantic_text_splitter import MarkdownSplitter, TextSplitter
        except ImportError as error:
            raise MissingExtra("semantic-text-splitter", "retrieval") from error
        self.size = size
        self.overlap = overlap
        core = _core(tokenizer)
        self._text = TextSplitter.from_huggingface_tokenizer(core, size, overlap)
        self._markdown = MarkdownSplitter.from_huggingface_tokenizer(core, size, overlap)

    @classmethod
    def for_embedder(cls, embedder: Any, size: int | None = None, overlap: int = 32) -> Chunker:
        """Return a chunker whose passages an embedder reads whole.

        Args:
            embedder: With ``tokenizer`` and ``window``.
            size: Tokens a passage may have; None: 256, or what the window holds if that is less.
            overlap: Tokens that neighbours share at most; at most half of `size` is used.

        Raises:
            RetrievalError: The embedder has no tokenizer or window, or its window does not hold `size`.
        """
        name = name_of(embedder)
        tokenizer, window = getattr(embedder, "tokenizer", None), getattr(embedder, "window", 0)
        if tokenizer is None or not window:
            raise RetrievalError(
                f"the embedder {name!r} has no tokenizer and window to cut documents by.",
                "Give passages, or an embedder with both.",
            )
        room = window - tokenizer.num_special_tokens_to_add(False)
        size = size or min(room, USUAL)
        if size > room:
            raise RetrievalError(f"chunk_size={size} exceeds the {room} tokens the embedder reads.", "Choose less.")
        return cls(tokenizer, size, min(overlap, size // 2))

    def split(self, document: Document) -> list[Passage]:
        """Return the passages of a document, in order; none where the text is blank.

        Each has the id ``<document id>#<n>`` with n from 0, the document's source, and its metadata with
        ``document``, ``start`` and ``end`` added: ``document.text[start:end] == passage.text``, always. Passages
        neither begin nor end with a blank, and hold every other character of the text.

        Raises:
            RetrievalError: The metadata holds a name that is added here, or the text holds half a surrogate pair.
        """
        taken = [name for name in RESERVED if name in document.metadata]
        if taken:
            raise RetrievalError(
                f"document {document.id!r} has metadata named {taken[0]!r}, which is written by chunking.",
                f"Rename it; reserved are: {', '.join(RESERVED)}.",
            )
        try:
            document.text.encode()
        except UnicodeEncodeError as error:
            raise RetrievalError(
                f"document {document.id!r} holds half a surrogate pair at character {error.start}.",
                "Decode the text again, or replace the character.",
            ) from error
        path = str(document.metadata.get("path", document.id)).lower()
        splitter = self._markdown if path.endswith((".md", ".markdown")) else self._text
        kept: list[tuple[int, int]] = []
        for start, end in self._spans(splitter, document.text):
            if kept and end <= kept[-1][1]:  # an overlap that nothing but blanks follows
                continue
            if kept and start <= kept[-1][0]:
                kept.pop()  # it lies inside this one, now that both have lost their blanks
            kept.append((start, end))
        return [
            Passage(
                id=f"{document.id}#{number}",
                text=document.text[start:end],
                source=document.source,
                metadata={**document.metadata, "document": document.id, "start": start, "end": end},
            )
            for number, (start, end) in enumerate(kept)
        ]

    def _spans(self, splitter: Any, text: str) -> Iterator[tuple[int, int]]:
        """Yield where chunks start and end.

        The last chunk of a window may have been cut short by its end, so the next window begins with that chunk.
        """
        start, window = 0, WINDOW * self.size
        while True:
            first_character = VISIBLE.search(text, start)
            if first_character is None:
                return
            start = first_character.start()
            end = min(start + window, len(text))
            gap = GAP.search(text, start, end)
            if gap:  # nothing is worth carrying over it, and Markdown takes long over blank lines
                end = gap.start()
            spans = [_strip(text, start + at, len(chunk)) for at, chunk in splitter.chunk_indices(text[start:end])]
            spans = [(first, last) for first, last in spans if first < last]
            wide = next((n for n, (first, last) in enumerate(spans) if last - first > WIDEST * self.size), None)
            if wide is not None and end - start > WIDEST * self.size:  # look again, through a window as wide as allowed
                yield from spans[:wide]
                start, window = spans[wide][0], WIDEST * self.size
                continue
            whole = end == len(text) or gap is not None or len(spans) < 2 or spans[-1][0] <= start
            yield from spans if whole else spans[:-1]
            start, window = end if whole else spans[-1][0], WINDOW * self.size


def _strip(text: str, start: int, length: int) -> tuple[int, int]:
    """Return where a chunk starts and ends without the blanks around it."""
    chunk = text[start : start + length]
    start += length - len(chunk.lstrip())
    return start, start + len(chunk.strip())


def _core(tokenizer: Any) -> Any:
    """Return a copy of the `tokenizers` core that neither truncates nor pads."""
    core: Any
    for core in (getattr(tokenizer, "backend_tokenizer", None), getattr(tokenizer, "_tokenizer", None), tokenizer):
        if hasattr(core, "to_str") and hasattr(core, "no_truncation"):
            copy = type(core).from_str(core.to_str())
            copy.no_truncation()
            copy.no_padding()
            return copy
    raise RetrievalError(
        f"{type(tokenizer).__name__} is not a fast tokenizer.", "Use a model whose folder has a tokenizer.json."
    )
