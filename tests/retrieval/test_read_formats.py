"""Text, Markdown, HTML and PDF: real files, whole and broken."""

from __future__ import annotations

import logging
import random
import re
import sys
import zlib
from io import BytesIO
from pathlib import Path

import pypdf
import pytest
from fpdf import FPDF

from ckcontrol.errors import MissingExtra
from ckcontrol.retrieval.reading import one_text as formats
from ckcontrol.retrieval.reading.read import read
from ckcontrol.retrieval.types import Document, Skipped


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def take(name: str, data: bytes | str, encoding: str = "utf-8") -> tuple[list[Document], list[Skipped]]:
    Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())
    skipped: list[Skipped] = []
    return list(read(name, on_skip=skipped.append, encoding=encoding)), skipped


def text_of(name: str, data: bytes | str, encoding: str = "utf-8") -> str:
    documents, skipped = take(name, data, encoding)
    assert not skipped
    return documents[0].text


def reason_of(name: str, data: bytes | str, encoding: str = "utf-8") -> str:
    documents, skipped = take(name, data, encoding)
    assert not documents and [item.name for item in skipped] == [name]
    return skipped[0].reason


# --- text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.markdown"])
def test_text_is_kept_to_the_character(name: str) -> None:
    text = "---\ntitle: x\n---\r\n# Zürich \t\r\n\n漢字 👩‍👩‍👧\n"
    assert text_of(name, text) == text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_believed(encoding: str) -> None:
    assert text_of("a.txt", "Zürich 漢".encode(encoding)) == "Zürich 漢"
    assert text_of("a.txt", b"\xfe\xff" + "Zürich".encode("utf-16-be"), "cp1252") == "Zürich"


def test_other_encodings_have_to_be_named() -> None:
    data = "Zürich".encode("latin-1")
    assert "byte 0xfc at position 1 is not utf-8" in reason_of("a.txt", data)
    assert text_of("a.txt", data, "latin-1") == "Zürich"
    assert "is not utf-16" in reason_of("a.txt", b"\xff\xfea")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "holds no text"),
        (b" \r\n\t", "holds no text"),
        (b"\xef\xbb\xbf", "holds no text"),
        (b"abc\0def", "character 3 is NUL"),
        ("Zürich".encode("utf-16-le"), "0xfc"),
        (b"\x89PNG\r\n\x1a\n\0\0", "byte 0x89 at position 0"),
    ],
)
def test_what_is_no_text(data: bytes, reason: str) -> None:
    assert reason in reason_of("a.txt", data)


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("a.txt", formats.LIMIT), ("a.html", formats.HTML_LIMIT)):
        with open(name, "wb") as file:
            file.truncate(limit + 1)  # a hole: nothing is written
        skipped: list[Skipped] = []
        assert not list(read(name, on_skip=skipped.append))
        assert skipped[0].reason == f"is larger than {limit // 10**6} MB. Split it."


# --- HTML -------------------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html><html><head><title> The
 Bridge </title><style>p { color: red }</style><script>if (a < b) "<p>no</p>"</script>
<body><nav><a href=x>Home</a></nav><!-- <p>a comment</p> -->
<h1>Bridges</h1><p>An <b>old</b>
   bridge&nbsp;&amp; <i>more</i>.<p>Second<br>line<br><br>third
<ul><li>one</li><li>two <a href="#">link</a></li></ul><table><tr><th>a</th><th>b</th></tr><tr><td>1<td>2</table>
<pre>  code
    inside</pre><noscript>none</noscript><template>none</template><div>left <span>and</span> right</div>
end</body></html>"""


def test_html_keeps_blocks_apart_and_words_together() -> None:
    documents, skipped = take("a.html", PAGE)
    assert not skipped
    assert documents[0].text == (
        "Bridges\n\nAn old bridge & more.\n\nSecond\nline\n\nthird\n\none\ntwo link\n\na b\n1 2\n\n"
        "  code\n    inside\n\nleft and right\nend"
    )
    assert documents[0].metadata == {"path": "a.html", "title": "The Bridge"}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"<meta charset=iso-8859-1><p>Z\xfcrich \x80", "Zürich €"),  # browsers read latin-1 as cp1252
        (b"<meta http-equiv=content-type content='text/html; charset=shift_jis'>\x8a\xbf\x8e\x9a", "漢字"),
        ("<meta charset=utf-16><p>Zürich".encode(), "Zürich"),
        ("<meta charset=klingon><p>Zürich".encode(), "Zürich"),
        ("<meta charset=latin-1><p>Zürich".encode("utf-8-sig"), "Zürich"),
        ("<p>Zürich".encode("utf-16"), "Zürich"),
    ],
)
def test_html_names_its_encoding(data: bytes, text: str) -> None:
    assert text_of("a.htm", data) == text


@pytest.mark.parametrize("end", ["</p>", ""])
def test_html_that_was_never_finished(end: str) -> None:
    assert text_of("a.html", f"<html><head><title>t</title><div><p>a &lt; b{end}") == "a < b"
    assert text_of("a.html", f"<p>before{end}<script>after") == "before"
    assert text_of("a.html", f"<p>before{end}<!-- after") == "before"
    assert text_of("a.html", "<p>a<!-->b<!--x-->c") == "abc"
    assert text_of("a.html", "1 < 2 and <b x='never ends") == "1 < 2 and <b x='never ends"


def test_xhtml_and_odd_declarations() -> None:
    assert text_of("a.html", "<?xml version='1.0'?><html xmlns='x'><body><p>y</p></body></html>") == "y"
    assert text_of("a.html", "<![CDATA[x]]><p>y</p>").endswith("y")
    assert "holds no text" in reason_of("a.html", "<html><script>x()</script><nav>Home</nav></html>")
    assert "holds no text" in reason_of("a.html", "")
    assert "is not utf-8" in reason_of("a.html", b"<p>Z\xfcrich")


@pytest.mark.parametrize("piece", ["<!--", "<a x=", "<a '", '<a b="', "<script>", "<![CDATA[", "</", "<div>", "&#"])
def test_hostile_html_takes_no_quadratic_time(piece: str) -> None:
    """A megabyte of the first five takes html.parser hours; if this test hangs, the guard is gone."""
    take("a.html", "<p>text</p>" + piece * (20_000 if piece == "<div>" else 200_000))


# --- PDF --------------------------------------------------------------------------------------------------------


def pdf(*pages: str) -> bytes:
    made = FPDF()
    for text in pages:
        made.add_page()
        made.set_font("helvetica", size=12)
        if text:
            made.multi_cell(0, 8, text)
    return bytes(made.output())


def locked(data: bytes, password: str) -> bytes:
    writer, out = pypdf.PdfWriter(clone_from=BytesIO(data)), BytesIO()
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    writer.write(out)
    return out.getvalue()


def test_pdf_pages_are_joined_by_a_blank_line() -> None:
    documents, skipped = take("a.pdf", pdf("The first page.", "", "The third page."))
    assert not skipped
    assert documents == [
        Document("a.pdf", "The first page.\n\nThe third page.", "a.pdf", {"path": "a.pdf", "pages": 3})
    ]


def test_pdf_without_a_text_layer() -> None:
    assert "has no text layer. Scanned pages need OCR first" in reason_of("a.pdf", pdf("", ""))


def test_pdf_with_a_password() -> None:
    assert reason_of("a.pdf", locked(pdf("secret"), "open")) == "is encrypted. Save a copy that needs no password."
    assert text_of("b.pdf", locked(pdf("for all"), "")) == "for all"


@pytest.mark.parametrize("share", [0, 1, 5, 30, 60, 90, 99])
def test_pdf_cut_short(share: int) -> None:
    data = pdf(*(f"page {n}" for n in range(20)))
    assert "is broken or cut short" in reason_of("a.pdf", data[: len(data) * share // 100])
    assert "is broken or cut short" in reason_of("a.pdf", b"<html>not found</html>")


def test_pdf_with_a_damaged_page_keeps_the_others(caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(pdf("The first page.", "The second page.", "The third page."))
    streams = [match.span(1) for match in re.finditer(rb"stream\n(.*?)\nendstream", data, re.DOTALL)]
    at = next(start for start, end in streams if b"second" in zlib.decompress(data[start:end]))
    data[at + 6 : at + 26] = bytes(20)
    documents, skipped = take("a.pdf", bytes(data))
    assert documents[0].text == "The first page.\n\nThe third page."
    assert skipped[0].name == "a.pdf"
    assert skipped[0].reason.startswith("1 of 3 pages are damaged and left out (page 2: Error -3 while decompressing")
    assert not caplog.records and logging.getLogger("pypdf").propagate


def test_pdf_that_lists_more_pages_than_it_has() -> None:
    documents, skipped = take("a.pdf", pdf("one", "two").replace(b"/Count 2", b"/Count 7"))
    assert documents[0].text == "one\n\ntwo"
    assert skipped[0].reason == "5 of 7 pages are damaged and left out (5 cannot be found)."


@pytest.mark.parametrize("seed", range(40))
def test_pdf_with_random_bytes_never_escapes(seed: int) -> None:
    draw, data = random.Random(seed), bytearray(pdf(*(f"This is page {n}." for n in range(6))))
    for _ in range(draw.choice([1, 5, 40])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    documents, skipped = take("a.pdf", bytes(data))
    assert documents or skipped


@pytest.mark.parametrize(("package", "name"), [("pypdf", "a.pdf"), ("bs4", "a.html"), ("pyarrow", "a.parquet")])
def test_missing_packages_name_the_extra(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"ckcontrol\[retrieval\]"):
        take(name, b"x")
