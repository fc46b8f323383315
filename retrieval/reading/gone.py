"""Which documents of an index are no longer in the files that they were read from.

A file that was deleted, moved or renamed, and a record taken out of a table, do not say so: reading only meets what is
there. Knows paths, documents and what one reading met; knows nothing of an index but the documents it tells.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from ..types import Document, Skipped
from .files import find_files, is_under

__all__ = ["Reading", "emptied", "files_gone"]


def files_gone(stored: Iterable[tuple[str, str]], sources: Collection[Path]) -> dict[str, list[str]]:
    """Return the files under `sources` that are no longer there, each with its documents.

    Of a source that is not there itself, and below a folder that cannot be reached, nothing is known to be gone.

    Args:
        stored: Document id and file of everything stored that was read from a file, as `Index.documents` gives them.
        sources: What is to be read: files, folders, patterns.
    """
    under: dict[str, list[str]] = {}
    for document, file in stored:
        if file in under or any(is_under(Path(file), source) for source in sources):
            under.setdefault(file, []).append(document)
    gone = {file: documents for file, documents in under.items() if _is_gone(Path(file))}
    skipped = [Path(item.name) for item in find_files((*sources,)) if isinstance(item, Skipped)] if gone else []
    return {file: ids for file, ids in gone.items() if not any(is_under(Path(file), path) for path in skipped)}


def emptied(stored: Iterable[tuple[str, str]], sources: Collection[Path]) -> dict[Path, int]:
    """Return the folders among `sources` that hold no file any more, each with the number of documents from below it.

    Args:
        stored: As for `files_gone`.
        sources: Likewise.
    """
    files = [Path(file) for _, file in stored]
    below = {source: sum(is_under(file, source) for file in files) for source in sources if os.path.isdir(source)}
    return {
        source: n for source, n in below.items() if n and all(isinstance(i, Skipped) for i in find_files((source,)))
    }


def _is_gone(path: Path) -> bool:
    """Tell a file that is not there from one that cannot be looked at."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False


class Reading:
    """One reading of files, watched: afterwards it tells which stored records it did not meet in them."""

    def __init__(self) -> None:
        self._met: dict[str, set[str]] = {}  # file -> ids of what was read from it

    def watch(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass documents of `read` on."""
        for document in documents:
            self._met.setdefault(document.metadata["path"], set()).add(document.id)
            yield document

    def records_gone(self, stored: Iterable[tuple[str, str]], skipped: Iterable[Skipped]) -> dict[str, list[str]]:
        """Return the files that were read whole and hold some stored records no more, each with these.

        Args:
            stored: As for `files_gone`.
            skipped: What the reading left out: of a file with any of it, nothing is known to be gone.
        """
        marred = [f"{item.name} " for item in skipped]
        whole = {file: ids for file, ids in self._met.items() if not any(n.startswith(f"{file} ") for n in marred)}
        gone: dict[str, list[str]] = {}
        for document, file in stored:
            if file in whole and document not in whole[file]:
                gone.setdefault(file, []).append(document)
        return gone
