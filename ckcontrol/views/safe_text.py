"""Makes text written by a model, a passage or a file safe to show: in a terminal, in HTML and in JSON.

Knows strings only. Changes what is displayed, never what is recorded. Terminal text loses escape sequences,
control characters and invisible marks that reorder or hide text; HTML text is escaped besides.
"""

from __future__ import annotations

import html
import re
import unicodedata

__all__ = ["DISPLAY_LIMIT", "clean", "escape", "escape_json", "short"]

DISPLAY_LIMIT = 400

# Escape sequences as a whole (CSI, OSC/DCS/APC strings, two-byte escapes), so that no "[31m" is left behind.
ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
HIDDEN = {"Cc", "Cf", "Cs"}  # control, format (bidi marks, zero width, tags), lone surrogates
BREAKS = {"Zl": "\n", "Zp": "\n"}
# Unicode's Default_Ignorable_Code_Point beside the format characters: letters and marks that are drawn as nothing
# (Hangul fillers, grapheme joiner, Khmer inherent vowels, variation selectors, reserved ranges); and noncharacters.
_IGNORABLE = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\ufdd0-\ufdef\ufffe\uffff"
)
_BLANK = "\u2800"  # the empty braille cell: drawn as a space
_JOINERS, _STYLES = "\u200c\u200d", "\ufe0e\ufe0f"  # shape Indic scripts and emoji; text or emoji style
MARKS = 5  # combining marks in a row; no orthography stacks more, and hundreds climb over the lines above
_ODD = re.compile(rf"[{_IGNORABLE}{_BLANK}]")


def clean(text: str, limit: int | None = DISPLAY_LIMIT) -> str:
    """Return `text` without escape sequences, control characters and characters that are drawn as nothing.

    Newlines and tabs stay; joiners and emoji styles stay where they shape something; of a run of combining marks the
    first `MARKS` stay. More than `limit` characters are cut, with a note of how many; None never cuts.
    """
    head = text if limit is None else text[: 4 * limit]  # a 1 MB token costs no more than a short one
    kept = ANSI.sub("", head.replace("\r\n", "\n"))
    if not kept.isascii() or not kept.isprintable():
        kept = _visible(kept)
    if limit is not None and (len(kept) > limit or len(head) < len(text)):
        shown = kept[:limit]
        kept = f"{shown}… (+{len(text) - len(shown):,} characters)"
    return kept


def _visible(text: str) -> str:
    kept: list[str] = []
    marks = 0
    for char in text:
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if char in "\n\t":
            kept.append(char)
        elif char in _JOINERS + _STYLES:
            if kept and _takes(char, kept[-1]):
                kept.append(char)
        elif char == _BLANK:
            kept.append(" ")
        elif category not in HIDDEN and marks <= MARKS and not _ODD.match(char):
            kept.append(BREAKS.get(category, char))
    return "".join(kept)


def _takes(joiner: str, before: str) -> bool:
    """Whether a joiner or a style selector means something after a character; after any other it only hides."""
    kind = unicodedata.category(before)
    if joiner in _STYLES:
        return kind in ("So", "Sm", "Po", "Nd", "Ps", "Pd")
    return not before.isascii() and (kind[0] in "LM" or kind in ("So", "Sk") or before in _STYLES)


def short(words: str, limit: int) -> str:
    """Return `words` on one line of at most `limit` characters."""
    line = " ".join(clean(words, 4 * limit).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def escape(text: str, limit: int | None = DISPLAY_LIMIT) -> str:
    """Return `text` cleaned and escaped for HTML text and for quoted attributes."""
    return html.escape(clean(text, limit), quote=True)


def escape_json(text: str) -> str:
    r"""Return JSON with every hidden character written as ``\uXXXX``: the same value, safe in a terminal.

    Newlines between values stay; inside strings JSON has escaped them already.
    """
    if text.isprintable() and not _ODD.search(text):
        return text
    return "".join(_json_char(char) for char in text)


def _json_char(char: str) -> str:
    if char == "\n" or (unicodedata.category(char) not in HIDDEN | set(BREAKS) and not _ODD.match(char)):
        return char
    code = ord(char)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
