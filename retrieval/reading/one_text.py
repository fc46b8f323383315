"""Files of one text to documents: plain text, Markdown, HTML and PDF. Knows bytes and formats; opens nothing.

A reader takes an open file and yields documents and `Skipped`; a `RetrievalError` or `TableError` means that the whole
file is of no use.
"""

from __future__ import annotations

import codecs
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ckcontrol.errors import MissingExtra, RetrievalError
from ckcontrol.tables import decode, marked_encoding

from ..types import Document, Skipped

if TYPE_CHECKING:
    from bs4 import Tag

__all__ = ["Source", "fit", "read_html", "read_pdf", "read_text"]

LIMIT = 100_000_000  # bytes of a text file
HTML_LIMIT = 20_000_000  # bytes; a parsed page takes some thirty times its size
# What html.parser takes quadratic time over is cut out before it: comments and elements whose content is not text.
UNSEEN = re.compile(r"<(?:!--|(script|style|template|noscript|svg|iframe)\b)", re.IGNORECASE)
DROPPED = {"script", "style", "template", "noscript", "svg", "iframe", "nav", "title"}
LINES = {"address", "br", "caption", "dd", "div", "dt", "figcaption", "li", "option", "tr"}
PARAGRAPHS = set(
    "article aside blockquote body details dl fieldset figure footer form h1 h2 h3 h4 h5 h6 header hr main ol p pre "
    "section summary table ul".split()
)


class Source(NamedTuple):
    """What a reader is told about its file.

    Attributes:
        name: Its path as given, with forward slashes.
        encoding: What to read it as where it says nothing itself.
        text_field: The field of a record that holds the text; None looks for the usual ones.
    """

    name: str
    encoding: str = "utf-8"
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
    """Yield the text of a page, one block per line, without scripts, styles and navigation; its title in the metadata.

    A byte order mark decides the encoding, then the page's meta tag, then `source.encoding`.

    Raises:
        RetrievalError: Too large, or beyond the parser.
        TableError: Not in its encoding.
        MissingExtra: beautifulsoup4 is not installed.
    """
    try:
        import bs4
        from bs4.dammit import EncodingDetector
    except ImportError as error:
        raise MissingExtra("beautifulsoup4", "retrieval") from error
    data = _bytes(file, HTML_LIMIT)
    declared = EncodingDetector.find_declared_encoding(data, is_html=True) or source.encoding
    html = _unseen_cut(_decode(data, _web_encoding(declared, source.encoding)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bs4.XMLParsedAsHTMLWarning)
            warnings.simplefilter("ignore", bs4.MarkupResemblesLocatorWarning)
            soup = bs4.BeautifulSoup(html, "html.parser")
        title = " ".join(soup.title.get_text().split()) if soup.title else ""
        text = _page_text(soup)
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


def _decode(data: bytes, encoding: str) -> str:
    return decode(data, marked_encoding(data) or encoding)


def _why(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120].rstrip(".: ")


# --- HTML -------------------------------------------------------------------------------------------------------


def _web_encoding(declared: str, fallback: str) -> str:
    """Return what browsers read a declared encoding as; `fallback` where Python does not know it."""
    try:
        name = codecs.lookup(declared).name
        "".encode(name)
    except LookupError:
        return fallback
    if name.startswith(("utf-16", "utf-32")):  # a tag that can be read at all is in no such encoding
        return "utf-8"
    return "cp1252" if name in ("iso8859-1", "ascii") else name


def _unseen_cut(html: str) -> str:
    """Return the page without comments, scripts and the like; what is not closed reaches to the end."""
    kept, place = [], 0
    while match := UNSEEN.search(html, place):
        kept.append(html[place : match.start()])
        close = re.compile(rf"</{match[1]}\s*>", re.IGNORECASE) if match[1] else re.compile("-->")
        end = close.search(html, match.end() if match[1] else match.start() + 2)
        place = end.end() if end else len(html)
    text = "".join([*kept, html[place:]])
    last = text.rfind(">") + 1  # a tag that never ends is text
    return text[:last] + text[last:].replace("<", "&lt;")


def _page_text(root: Tag) -> str:
    """Return the text below a node: blanks folded, blocks on lines of their own, a blank line between paragraphs."""
    from bs4.element import CData, NavigableString, Tag

    out: list[str] = []
    gap = 0  # line ends between what is in `out` and what comes next
    waiting: list[tuple[Any, bool]] = [(root, False)]  # a node and whether it is inside <pre>; or a gap
    while waiting:
        node, pre = waiting.pop()
        if isinstance(node, int):
            gap = max(gap, node)
        elif isinstance(node, Tag) and node.name not in DROPPED:
            lines = 2 if node.name in PARAGRAPHS else 1 if node.name in LINES else 0
            gap = min(gap + 1, 2) if node.name == "br" else gap
            pre = pre or node.name == "pre"
            around = " " if node.name in ("td", "th") else 0 if node.name == "br" else lines
            waiting += [(around, False), *((child, pre) for child in reversed(node.contents)), (around, False)]
        elif type(node) in (str, NavigableString, CData):  # comments and declarations are of other types
            text = str(node) if pre else re.sub(r"\s+", " ", node)
            if not pre and (gap or not out or out[-1].endswith(" ")):
                text = text.lstrip(" ")
            if text:
                if gap and out:
                    out[-1:] = [out[-1].rstrip(" "), "\n" * gap]
                gap = 0
                out.append(text)
    return "".join(out).strip()


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
