"""Files, folders and patterns to documents, one at a time; whatever is left out is reported, with the reason.

Knows which reader takes which suffix. The formats are in `one_text` (one text per file) and `many_texts`, the file
system is in `files`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ckcontrol.errors import RetrievalError
from ckcontrol.tables import TableError

from ..types import Document, Skipped
from .files import FoundFile, as_paths, find_files
from .many_texts import read_csv, read_json, read_jsonl, read_parquet
from .one_text import Source, read_html, read_pdf, read_text
from .triples import read_ntriples, read_turtle

__all__ = ["read"]

STEP = 1_000_000  # bytes between two reports of progress inside a file
READERS: dict[str, Callable[[BinaryIO, Source], Iterator[Document | Skipped]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".markdown": read_text,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".nt": read_ntriples,
    ".ttl": read_turtle,
}


def read(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    on_skip: Callable[[Skipped], None] | None = None,
    encoding: str | None = None,
    text_field: str | None = None,
    on_file: Callable[[str, int, int], None] | None = None,
) -> Iterator[Document]:
    """Yield the documents of files, one at a time and in a stable order.

    Read are .txt, .md, .markdown, .html, .htm, .pdf (one document each) and .json, .jsonl, .ndjson, .csv, .tsv,
    .parquet (one per record; see `many_texts.py` for what its fields become). The id of a file's document is its path
    as given, with forward slashes; a record without an id of its own is ``<path>#<number from 1>``. Ids are not
    compared with each other here. Metadata holds ``path``, for PDF ``pages``, for HTML and records ``title`` where
    there is one.
    Text is kept as it is, Markdown's front matter and CRLF included.

    Args:
        paths: Files, folders and patterns (``docs/**/*.md``), or one of them. Folders are walked in sorted order,
            without hidden files and folders; links are followed, each folder once. A file named twice is read once.
        on_skip: Gets everything that is left out, with the reason: a file, or one record of it. None raises instead.
        encoding: Of text files; a byte order mark outranks it, an HTML meta tag does not. None: what the file itself
            names, else UTF-8.
        text_field: The field of records that holds the text; None takes text, contents, content, page_content or body.
        on_file: Gets a file's name, the bytes read so far, and the size of all files: when a file begins, on the way
            through a large one, and when it ends. Costs one more walk through the folders.

    Raises:
        RetrievalError: At the call: something that is not a path, or an unknown encoding. While reading, without
            `on_skip`: anything that would have been skipped.
        MissingExtra: While reading: the package that reads a format (pypdf, beautifulsoup4, pyarrow) is not installed.
    """
    given = as_paths(paths)
    try:
        "".encode(encoding or "utf-8")
        b"".decode(encoding or "utf-8")
    except (LookupError, TypeError, UnicodeError) as error:
        raise RetrievalError(f"encoding={encoding!r} is unknown.", "For example: utf-8, cp1252, utf-16.") from error
    return _documents(given, encoding, text_field, on_skip, on_file)


def _documents(
    paths: tuple[Path, ...],
    encoding: str | None,
    text_field: str | None,
    on_skip: Callable[[Skipped], None] | None,
    on_file: Callable[[str, int, int], None] | None,
) -> Iterator[Document]:
    total = sum(item.size for item in find_files(paths) if isinstance(item, FoundFile)) if on_file else 0
    done = 0
    for found in find_files(paths):
        source = Source(found.name, encoding, text_field)

        def report(place: int, name: str = found.name, before: int = done) -> None:
            if on_file:
                on_file(name, min(before + place, total), total)

        items: Iterable[Document | Skipped] = [found] if isinstance(found, Skipped) else _file(found, source, report)
        for item in items:
            if isinstance(item, Document):
                yield item
            elif on_skip is None:
                raise RetrievalError(f"{item.name}: {item.reason}", "Pass on_skip= to leave such inputs out.")
            else:
                on_skip(item)
        done += found.size if isinstance(found, FoundFile) else 0


def _file(found: FoundFile, source: Source, report: Callable[[int], None]) -> Iterator[Document | Skipped]:
    """Yield what one file holds; a failure of the whole file ends it with one `Skipped`."""
    reader = READERS.get(found.path.suffix.lower())
    report(0)
    if reader is None:
        suffix = found.path.suffix or "no suffix"
        yield Skipped(found.name, f"not a supported format ({suffix}); supported are {', '.join(READERS)}.")
    else:
        try:
            with found.path.open("rb") as file:
                told = 0
                for item in reader(file, source):
                    if not file.closed and file.tell() >= told + STEP:
                        told = file.tell()
                        report(told)
                    yield item
        except (RetrievalError, TableError) as error:
            yield Skipped(found.name, str(error))
        except OSError as error:
            yield Skipped(found.name, f"cannot be read: {error.strerror or error}.")
    report(found.size)
