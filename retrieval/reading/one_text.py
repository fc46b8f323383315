"""Files of one text to documents: plain text, Markdown, HTML and PDF. Knows bytes and formats; opens nothing.

A reader takes an open file and yields documents and `Skipped`; a `RetrievalError` or `TableError` means that the whole
file is of no use.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from ckcontrol.errors import MissingExtra, RetrievalError
from ckcontrol.tables import decode, marked_encoding

from ..types import Document, Skipped
from .page import browser_codec, cut_unseen, declared_encoding, visible_text, wider

__all__ = ["Source", "fit", "read_html", "read_pdf", "read_text"]

LIMIT = 100_000_000  # bytes of a text file
HTML_LIMIT = 20_000_000  # bytes; a parsed page takes some thirty times its size


class Source(NamedTuple):
    """What a reader is told about its file.

    Attributes:
        name: Its path as given, with forward slashes.
        encoding: What to read it as whatever it says, but for a byte order mark; None: what it says, else UTF-8.
        text_field: The field of a record that holds the text; None looks for the usual ones.
    """

    name: str
    encoding: str | None = None
    text_field: str | None = None


def fit(document: Document) -> Document:
    """Return the document as it is.

    Raises:
        RetrievalError: It has no text, or a text anywhere in it that neither a database nor a tokenizer can take.
    """
    if not document.text.strip():
        raise RetrievalError("holds no text.", "Leave it out.")
    for text in (document.text, document.id, document.source, *document.metadata, *document.metadata.values()):
        if isinstance(text, str) and "\0" in text:
            raise RetrievalError(f"character {text.index(chr(0))} is NUL, so this is not text.", "Leave it out.")
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                what = f"character {error.start} of {text[:40]!a} is half a surrogate pair."
                raise RetrievalError(what, "Write the text again.") from error
    return document


def read_text(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield a text file as it is, Markdown included.

    Raises:
        RetrievalError: Too large, or binary.
        TableError: Not in its encoding.
    """
    text = _decode(_bytes(file, LIMIT), source.encoding)
    yield fit(Document(source.name, text, source.name, {"path": source.name}))


def read_html(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the text of a page that a reader sees, one block per line, without navigation; its title in the metadata.

    A byte order mark decides the encoding, then `source.encoding`, then the page's meta tag, read as browsers read it.

    Raises:
        RetrievalError: Too large, or beyond the parser.
        TableError: Not in its encoding.
        MissingExtra: beautifulsoup4 is not installed.
    """
    try:
        import bs4
    except ImportError as error:
        raise MissingExtra("beautifulsoup4", "retrieval") from error
    data = _bytes(file, HTML_LIMIT)
    codec = wider(source.encoding) if source.encoding else browser_codec(declared_encoding(data))
    html, css = cut_unseen(_decode(data, codec))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bs4.XMLParsedAsHTMLWarning)
            warnings.simplefilter("ignore", bs4.MarkupResemblesLocatorWarning)
            soup = bs4.BeautifulSoup(html, "html.parser", on_duplicate_attribute="ignore")
        title = " ".join(soup.title.get_text().split()) if soup.title else ""
        text = visible_text(soup, css)
    except Exception as error:  # a parser over any bytes there are; bs4 documents no closed list of errors
        raise RetrievalError(f"cannot be parsed as HTML ({type(error).__name__}).", "Repair it.") from error
    metadata = {"path": source.name} | ({"title": title} if title else {})
    yield fit(Document(source.name, text, source.name, metadata))


def read_pdf(file: BinaryIO, source: Source) -> Iterator[Document | Skipped]:
    """Yield the text layer of a PDF, with a blank line between pages, and `Skipped` once for pages that are damaged.

    Characters that no text can hold (NUL, halves of surrogate pairs) become U+FFFD: some fonts produce them.

    Raises:
        RetrievalError: Broken, encrypted, or without a text layer.
        MissingExtra: pypdf is not installed.
    """
    try:
        import pypdf
        from pypdf.errors import DependencyError
    except ImportError as error:
        raise MissingExtra("pypdf", "retrieval") from error
    pages: list[str] = []
    damage: list[str] = []
    with _pypdf_notes() as notes:
        try:
            reader = pypdf.PdfReader(file)
            locked = reader.is_encrypted and not reader.decrypt("")
            root: Any = None if locked else reader.root_object
            found, listed = (0, 0) if locked else (len(reader.pages), root["/Pages"].get("/Count"))
        except DependencyError as error:
            hint = "Install the package cryptography, or save a copy that needs no password."
            raise RetrievalError("is encrypted with AES.", hint) from error
        except Exception as error:  # pypdf raises nearly anything over broken files
            raise RetrievalError(f"is broken or cut short ({_why(error)}).", "Open and save it again.") from error
        if locked:
            raise RetrievalError("is encrypted.", "Save a copy that needs no password.")
        for number in range(found):
            notes.clear()
            try:
                text = reader.pages[number].extract_text()
            except Exception as error:
                damage.append(f"page {number + 1}: {_why(error)}")
                continue
            if notes:
                damage.append(f"page {number + 1}: {notes[0]}")
            else:
                pages.append(text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    count = max(found, listed) if isinstance(listed, int) and listed < 1_000_000 else found
    if count > found:
        damage.append(f"{count - found} cannot be found")
    if damage:
        reason = f"{len(damage) - (count > found) + count - found} of {count} pages are damaged and left out"
        yield Skipped(source.name, f"{reason} ({damage[0]}).")
    text = "\n\n".join(page.strip() for page in pages if page.strip())
    if text:
        yield fit(Document(source.name, text, source.name, {"path": source.name, "pages": count}))
    elif not damage:
        raise RetrievalError("has no text layer.", "Scanned pages need OCR first, for example with ocrmypdf.")


def _bytes(file: BinaryIO, limit: int) -> bytes:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise RetrievalError(f"is larger than {limit // 1_000_000} MB.", "Split it.")
    return data


def _decode(data: bytes, encoding: str | None) -> str:
    return decode(data, marked_encoding(data) or encoding or "utf-8")


def _why(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120].rstrip(".: ")


# --- PDF --------------------------------------------------------------------------------------------------------


@contextmanager
def _pypdf_notes() -> Iterator[list[str]]:
    """Keep pypdf's log to ourselves; the list gathers which streams were found damaged."""
    notes: list[str] = []

    class Gather(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "pypdf.filters" and "decompress" in record.getMessage():
                notes.append(" ".join(record.getMessage().split())[:120])

    logger, gather = logging.getLogger("pypdf"), Gather(logging.WARNING)
    before = logger.propagate
    logger.addHandler(gather)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield notes
    finally:
        logger.removeHandler(gather)
        logger.propagate = before
