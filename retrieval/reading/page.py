"""A web page as browsers take it: which codec its label means, and which of its text a reader sees.

Knows HTML and the tree that beautifulsoup4 makes of it; what a style hides is in `styles`.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Any

from .styles import Sheet, gone, veiled

if TYPE_CHECKING:
    from bs4 import Tag

__all__ = ["browser_codec", "cut_unseen", "declared_encoding", "visible_text", "wider"]

# What html.parser takes quadratic time over is cut out before it: comments and elements whose content is not text.
UNSEEN = re.compile(
    r"<(?:!--|(script|style|template|noscript|svg|iframe|noembed|noframes)(?=[\s/>]|\Z))", re.IGNORECASE
)
NESTING = {"template", "svg"}
SELF_CLOSED = re.compile(r"<([a-z][^<>]*)/>", re.IGNORECASE)
MAY_HIDE = re.compile(r"dialog|hidden|style|class|popover|\bid\b", re.IGNORECASE)
DROPPED = set(
    "annotation annotation-xml audio canvas datalist iframe nav noembed noframes noscript object rp script style svg "
    "template title video".split()
)
LINES = {"address", "br", "caption", "dd", "div", "dt", "figcaption", "li", "option", "tr"}
PARAGRAPHS = set(
    "article aside blockquote body details dl fieldset figure footer form h1 h2 h3 h4 h5 h6 header hr main ol p pre "
    "section summary table ul".split()
)
# html.parser nests what browsers end by themselves: element to what ends it.
CELLS = {"td", "th", "tr", "tbody", "thead", "tfoot"}
ENDED_BY = {
    "p": (PARAGRAPHS | {"address", "div", "dialog", "menu", "search", "center", "dir"}) - {"body"},
    "li": {"li"},
    "dt": {"dt", "dd"},
    "dd": {"dt", "dd"},
    "option": {"option", "optgroup"},
    "td": CELLS,
    "th": CELLS,
    "tr": CELLS - {"td", "th"},
}
SCOPES = {"button", "dl", "object", "ol", "select", "table", "ul"}
# Labels as browsers read them (https://encoding.spec.whatwg.org/#names-and-labels), where Python's codec is narrower.
WIDER = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "cp950": "big5hkscs",
}
# Labels that Python does not know.
LABELS = {
    codec: labels.split()
    for codec, labels in {
        "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 x-unicode20utf8",
        "cp1252": "x-cp1252 x-user-defined",
        "cp874": "dos-874 windows-874 iso-8859-11 iso885911",
        "cp932": "x-sjis ms_kanji windows-31j",
        "cp949": "windows-949 ks_c_5601-1989 csksc56011987 cseuckr",
        "gb18030": "x-gbk gb_2312 gb_2312-80 csgb2312",
        "big5hkscs": "cn-big5 x-x-big5",
        "euc_jp": "x-euc-jp cseucpkdfmtjapanese",
        "iso8859-6": "iso-8859-6-e iso-8859-6-i csiso88596e csiso88596i",
        "iso8859-8": "iso-8859-8-e iso-8859-8-i logical visual csiso88598e csiso88598i",
        "koi8-r": "koi koi8",
        "koi8-u": "koi8-ru",
        "mac-roman": "mac x-mac-roman",
        "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
        **{f"cp125{n}": f"x-cp125{n}" for n in (0, 1, 3, 4, 5, 6, 7, 8)},
    }.items()
}
PYTHONS = {label: codec for codec, labels in LABELS.items() for label in labels}
# Codecs a page may name: no browser reads utf-7, escapes or EBCDIC, so a page could say there what no reader sees.
WEB = re.compile(
    r"utf-8|cp(866|874|932|949|125[0-8])|iso8859-([2-8]|1[03-6])|koi8-[ru]|mac-(roman|cyrillic)|gb18030|big5hkscs|euc_jp"
    r"|iso2022_jp"
)


def declared_encoding(data: bytes) -> str | None:
    """Return the encoding that the page's meta tag names, comments left out, else None."""
    from bs4.dammit import EncodingDetector

    head = re.sub(rb"<!--(?:(?!-->).)*(?:-->|\Z)", b"", data[:8192], flags=re.DOTALL)
    declared: str | None = EncodingDetector.find_declared_encoding(head, is_html=True)
    return declared


def browser_codec(label: str | None) -> str | None:
    """Return the codec that browsers read a label as; None where they do not know it.

    A label of UTF-16 or UTF-32 means UTF-8: the tag could be read, so the page is in neither.
    """
    if label is None:
        return None
    label = label.strip().lower()
    try:
        name = codecs.lookup(PYTHONS.get(label, label)).name
    except (LookupError, ValueError):
        return None
    if name.startswith(("utf-16", "utf-32")):
        return "utf-8"
    return wider(name) if WEB.fullmatch(wider(name)) else None


def wider(codec: str) -> str:
    """Return the codec that holds all that pages in this one hold: cp932 for shift_jis, for example."""
    name = codecs.lookup(codec).name
    return WIDER.get(name, codec)


def cut_unseen(html: str) -> tuple[str, str]:
    """Return the page without comments, scripts and the like, and its style sheets.

    What is not closed reaches to the end; a ``/>`` closes no element of HTML that has a style, as in a browser.
    """
    kept, sheets, place = [], [], 0
    while match := UNSEEN.search(html, place):
        kept.append(html[place : match.start()])
        name = (match[1] or "").lower()
        inside, place = _end(html, match, name)
        if name == "style":
            tag, _, css = html[match.end() : inside].partition(">")
            sheets += [] if "media" in tag.lower() else [css]
    text = SELF_CLOSED.sub(
        lambda tag: f"<{tag[1]}>" if MAY_HIDE.search(tag[1]) else tag[0], "".join([*kept, html[place:]])
    )
    last = text.rfind(">") + 1  # a tag that never ends is text
    return text[:last] + text[last:].replace("<", "&lt;"), "\n".join(sheets)


def _end(html: str, start: re.Match[str], name: str) -> tuple[int, int]:
    """Return where the content of a comment or an unseen element ends, and where the page goes on."""
    if not name:
        close = re.compile("--!?>").search(html, start.start() + 2)
        return (close.start(), close.end()) if close else (len(html), len(html))
    if name == "svg":  # the one of them that may close itself
        tag = html.find(">", start.end())
        if tag > 0 and html[tag - 1] == "/":
            return tag, tag + 1
    depth = 1
    for tags in re.compile(rf"<(/?){name}(?=[\s/>])", re.IGNORECASE).finditer(html, start.end()):
        depth += -1 if tags[1] else name in NESTING
        if not depth:
            return tags.start(), (html.find(">", tags.end()) + 1) or len(html)
    return len(html), len(html)


def visible_text(root: Tag, css: str = "") -> str:
    """Return the text below a node that a reader sees: blanks folded, blocks on lines, a blank line between paragraphs.

    `css` are the page's own style sheets; which of their rules count is in `styles`.
    """
    from bs4.element import NavigableString, Tag

    sheet = Sheet(css)
    out: list[str] = []
    gap = 0  # line ends between what is in `out` and what comes next
    outside: dict[int, frozenset[str]] = {}  # nodes that a browser takes out of the element they are nested in
    # A node, whether it is inside <pre>, and by which inherited styles it is not seen; or a gap.
    waiting: list[tuple[Any, bool, frozenset[str]]] = [(root, False, frozenset())]
    while waiting:
        node, pre, veils = waiting.pop()
        veils = outside.pop(id(node), veils)
        if isinstance(node, (int, str)) and not isinstance(node, NavigableString):
            gap = max(gap, node) if isinstance(node, int) else gap
            if node == " " and out and not gap and not out[-1].endswith((" ", "\n")):
                out.append(" ")
        elif isinstance(node, Tag) and node.name not in DROPPED:
            style = sheet.style(node.name, node.attrs) if node.attrs or css or node.name == "dialog" else {}
            now = veiled(style, veils)
            if gone(style):
                waiting += [(later, pre, veils) for later in reversed(_taken_out(node))]
                continue
            if now != veils:
                outside.update((id(later), veils) for later in _taken_out(node))
            lines = 2 if node.name in PARAGRAPHS else 1 if node.name in LINES else 0
            gap = min(gap + 1, 2) if node.name == "br" else gap
            pre = pre or node.name == "pre"
            around: Any = " " if node.name in ("td", "th") else 0 if node.name == "br" else lines
            inner = [(child, pre, now) for child in reversed(node.contents)]
            waiting += [(around, False, veils), *inner, (around, False, veils)]
        elif type(node) is NavigableString and not veils:  # comments and declarations are of other types
            text = str(node) if pre else re.sub(r"\s+", " ", node)
            if not pre and (gap or not out or out[-1].endswith(" ")):
                text = text.lstrip(" ")
            if text:
                if gap and out:
                    out[-1:] = [out[-1].rstrip(" "), "\n" * gap]
                gap = 0
                out.append(text)
    return "".join(out).strip()


def _taken_out(tag: Tag) -> list[Any]:
    """Return what html.parser nests in an element although browsers end the element before it."""
    from bs4 import Tag

    ends = ENDED_BY.get(tag.name)
    waiting = list(reversed(tag.contents)) if ends else []
    while waiting:
        node: Any = waiting.pop()
        if ends and isinstance(node, Tag) and node.name in ends:
            return [node, *reversed(waiting)]
        if isinstance(node, Tag) and node.name not in SCOPES:
            waiting += reversed(node.contents)
    return []
