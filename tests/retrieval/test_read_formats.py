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


def take(name: str, data: bytes | str, encoding: str | None = None) -> tuple[list[Document], list[Skipped]]:
    Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())
    skipped: list[Skipped] = []
    return list(read(name, on_skip=skipped.append, encoding=encoding)), skipped


def text_of(name: str, data: bytes | str, encoding: str | None = None) -> str:
    documents, skipped = take(name, data, encoding)
    assert not skipped
    return documents[0].text


def reason_of(name: str, data: bytes | str, encoding: str | None = None) -> str:
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


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [  # what browsers read each label as: https://encoding.spec.whatwg.org/#names-and-labels
        ("gb2312", "gb18030", "朱镕基 €"),
        ("GBK", "gb18030", "㐂"),
        ("x-gbk", "gb18030", "汉字"),
        ("shift_jis", "cp932", "① 髙"),
        ("x-sjis", "cp932", "① 髙"),
        ("euc-kr", "cp949", "똠방각하"),
        ("ks_c_5601-1987", "cp949", "똠"),
        ("windows-949", "cp949", "똠"),
        ("big5", "big5hkscs", "㗎 喺"),
        ("iso-8859-9", "cp1254", "ğ “€”"),
        ("latin5", "cp1254", "ğ “€”"),
        ("us-ascii", "cp1252", "“é”"),
        ("iso-8859-11", "cp874", "ก “”"),
        ("tis-620", "cp874", "ก “”"),
        ("windows-874", "cp874", "ก €"),
        ("iso-8859-8-i", "iso8859-8", "שלום"),
        ("koi8", "koi8-r", "мир"),
        ("x-mac-cyrillic", "mac-cyrillic", "мир"),
        ("macintosh", "mac-roman", "é"),
        ("x-cp1251", "cp1251", "мир"),
        ("x-user-defined", "cp1252", "é"),
        ("unicode-1-1-utf-8", "utf-8", "é"),
        ("iso-8859-15", "iso8859-15", "€"),
        ("euc-jp", "euc_jp", "漢字"),
    ],
)
def test_html_labels_mean_what_browsers_read(label: str, codec: str, text: str) -> None:
    assert text_of("a.html", f"<meta charset={label}><p>{text}".encode(codec)) == text


@pytest.mark.parametrize("label", ["utf-7", "unicode_escape", "cp037", "punycode", "rot13"])
def test_html_in_what_no_browser_reads_is_what_the_browser_shows(label: str) -> None:
    assert text_of("a.html", rf"<meta charset={label}><p>+AGE- \x61") == r"+AGE- \x61"


def test_html_a_given_encoding_outranks_the_tag_and_a_mark_outranks_both() -> None:
    page = "<meta charset=utf-8><p>мир"
    assert text_of("a.html", page.encode("cp1251"), "cp1251") == "мир"
    assert text_of("a.html", "<meta charset=latin-1><p>Zürich".encode(), "utf-8") == "Zürich"
    assert text_of("a.html", page.encode("utf-16-le"), "utf-16-le") == "мир"
    assert text_of("a.html", "<meta charset=utf-8><p>①".encode("cp932"), "shift_jis") == "①"
    assert text_of("a.html", "<meta charset=latin-1><p>Zürich".encode("utf-8-sig"), "cp1252") == "Zürich"
    assert text_of("a.html", "<!-- <meta charset=latin-1> --><meta charset=utf-8><p>Zürich".encode()) == "Zürich"


UNSEEN = [
    '<p style="display:none">HIDDEN</p>',
    '<p STYLE="color:red; DISPLAY : None !important">HIDDEN</p>',
    "<p style='display:/**/none'>HIDDEN</p>",
    r"<p style='d\69splay:none'>HIDDEN</p>",
    "<p style='display:none;display:nonsense'>HIDDEN</p>",
    "<p style='display:none' style='display:block'>HIDDEN</p>",
    "<div hidden/>HIDDEN</div>",
    "<div hidden><p>HIDDEN<b>HIDDEN</b></p></div>",
    "<p hidden=until-found>HIDDEN</p>",
    "<p style='visibility:hidden'>HIDDEN <b>HIDDEN</b></p>",
    "<p style='visibility:collapse'>HIDDEN</p>",
    "<p style='font-size:0'>HIDDEN</p>",
    "<p style='font-size:0px'>HIDDEN <b style='font-size:2em'>HIDDEN</b></p>",
    "<p style='font-size:1px'>HIDDEN</p>",
    "<p style='opacity:0'>HIDDEN</p>",
    "<p style='opacity:.01'>HIDDEN</p>",
    "<p style='opacity:1%'>HIDDEN</p>",
    "<p style='color:transparent'>HIDDEN</p>",
    "<p style='color:rgba(0, 0, 0, 0)'>HIDDEN</p>",
    "<p style='position:absolute;left:-9999px'>HIDDEN</p>",
    "<p style='position:fixed;top:-100em'>HIDDEN</p>",
    "<p style='margin-left:-9999px'>HIDDEN</p>",
    "<p style='text-indent:-9999px'>HIDDEN</p>",
    "<p style='position:absolute;clip:rect(0,0,0,0)'>HIDDEN</p>",
    "<p style='position:absolute;clip:rect(1px 1px 1px 1px)'>HIDDEN</p>",
    "<p style='clip-path:inset(50%)'>HIDDEN</p>",
    "<p style='width:1px;height:1px;overflow:hidden'>HIDDEN</p>",
    "<p style='max-height:0;overflow:hidden'>HIDDEN</p>",
    "<p style='transform:scale(0)'>HIDDEN</p>",
    "<p style='transform:translateX(-9999px)'>HIDDEN</p>",
    "<p style='filter:opacity(0)'>HIDDEN</p>",
    "<p style='content-visibility:hidden'>HIDDEN</p>",
    "<p style='font:0/0 a'>HIDDEN</p>",
    "<p style='position:relative;left:-9999px'>HIDDEN</p>",
    "<p style='position:absolute;inset:-9999px auto auto 0'>HIDDEN</p>",
    "<p style='margin:0 0 0 -9999px'>HIDDEN</p>",
    "<p style='height:0;overflow-y:hidden'>HIDDEN</p>",
    "<p style='-webkit-text-fill-color:transparent'>HIDDEN</p>",
    "<span aria-hidden=true>HIDDEN</span>",
    "<dialog>HIDDEN</dialog>",
    "<div popover>HIDDEN</div>",
    "<input type=hidden value=HIDDEN>",
    "<video>HIDDEN</video><audio>HIDDEN</audio><canvas>HIDDEN</canvas><object>HIDDEN</object>",
    "<datalist><option>HIDDEN</datalist>",
    "<noembed>HIDDEN</noembed><noframes>HIDDEN</noframes>",
    "<template><template></template>HIDDEN</template>",
    "<svg><svg></svg>HIDDEN</svg>",
    "<![CDATA[HIDDEN]]>",
    "<?HIDDEN?><!HIDDEN>",
    "<style>.x, p.y {display:none}</style><b class='z x'>HIDDEN</b><p class=y>HIDDEN</p>",
    "<style>/* { */ #x {visibility: hidden}</style><b id=x>HIDDEN</b>",
    "<style>@media print {.x {color: red}} .x {display:none}</style><b class=x>HIDDEN</b>",
    "<style>.x {display:none !important}</style><b class=x style='display:block'>HIDDEN</b>",
]


@pytest.mark.parametrize("unseen", UNSEEN)
def test_html_that_no_reader_sees_becomes_no_passage(unseen: str) -> None:
    assert text_of("a.html", f"<p>before</p>{unseen}<p>after") == "before\n\nafter"


SEEN = [
    "<details><summary>s</summary>SEEN</details>",
    "<dialog open>SEEN</dialog>",
    "<p hidden style='display:block'>SEEN</p>",
    "<p hidden>x<p>SEEN</p>",  # a browser ends the first p at the second
    "<p hidden>x<b>y<div>SEEN</div></b>",
    "<ul><li hidden>x<li>SEEN</ul>",
    "<table><tr><td hidden>x<td>SEEN</table>",
    "<p style='visibility:hidden'>x<p>SEEN</p>",
    "<div style='visibility:hidden'>x<b style='visibility:visible'>SEEN</b></div>",
    "<div style='font-size:0'>x<b style='font-size:16px'>SEEN</b></div>",
    "<p style='opacity:0.9;left:-10px;position:absolute;height:0'>SEEN</p>",
    "<p style='display:none;display:block'>SEEN</p>",
    "<p style='position:absolute;left:-50%'>SEEN</p>",
    "<p style='font:400 16px/0 a;margin:0 auto'>SEEN</p>",
    "<span aria-hidden=false>SEEN</span>",
    "<svg-note>SEEN</svg-note>",
    "<svg viewBox='0 0 1 1'/>SEEN",
    "<!-- x --!>SEEN",
    "<style>@media print {.x {display:none}}</style><b class=x>SEEN</b>",
    "<style media=print>.x {display:none}</style><b class=x>SEEN</b>",
    "<style>.x {display:none} .x.open {display:block}</style><b class='x open'>SEEN</b>",
    "<style>.x:hover, .y .x {display:none}</style><b class=x>SEEN</b>",
]


@pytest.mark.parametrize("seen", SEEN)
def test_html_that_a_reader_sees_is_kept(seen: str) -> None:
    text = text_of("a.html", f"<p>before</p>{seen}")
    assert text.endswith("SEEN") and "x" not in text


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


@pytest.mark.parametrize(
    "piece",
    [
        "<!--",
        "<a x=",
        "<a '",
        '<a b="',
        "<script>",
        "<![CDATA[",
        "</",
        "<div>",
        "&#",
        "<p hidden>",
        "<template>",
        "</script ",
        "<svg ",
        "<a style='/*'/",
        "<style>{",
        "<style>/*",
    ],
)
def test_hostile_html_takes_no_quadratic_time(piece: str) -> None:
    """A megabyte of the first five takes html.parser hours; if this test hangs, the guard is gone."""
    take("a.html", "<p>text</p>" + piece * (20_000 if piece in ("<div>", "<p hidden>") else 200_000))


@pytest.mark.parametrize("value", ["color:rgb(" + "0," * 200_000, "filter:opacity(" + "0" * 400_000, "a:b;" * 100_000])
def test_a_hostile_style_takes_no_quadratic_time(value: str) -> None:
    assert text_of("a.html", f"<p style='{value}'>x") == "x"


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
    with pytest.raises(MissingExtra, match=r"\[retrieval\]"):
        take(name, b"x")
