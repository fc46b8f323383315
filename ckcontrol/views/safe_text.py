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
KEPT = "\n\t\u200c\u200d"  # the two joiners shape Indic scripts and emoji
HIDDEN = {"Cc", "Cf", "Cs"}  # control, format (bidi marks, zero width, tags), lone surrogates
BREAKS = {"Zl": "\n", "Zp": "\n"}


def clean(text: str, limit: int | None = DISPLAY_LIMIT) -> str:
    """Return `text` without escape sequences, control characters and invisible format characters.

    Newlines and tabs stay. More than `limit` characters are cut, with a note of how many; None never cuts.
    """
    head = text if limit is None else text[: 4 * limit]  # a 1 MB token costs no more than a short one
    kept = ANSI.sub("", head.replace("\r\n", "\n"))
    if not kept.isprintable():
        kept = "".join(_visible(char) for char in kept)
    if limit is not None and (len(kept) > limit or len(head) < len(text)):
        shown = kept[:limit]
        kept = f"{shown}… (+{len(text) - len(shown):,} characters)"
    return kept


def _visible(char: str) -> str:
    if char in KEPT:
        return char
    category = unicodedata.category(char)
    return "" if category in HIDDEN else BREAKS.get(category, char)


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
    if text.isprintable():
        return text
    return "".join(_json_char(char) for char in text)


def _json_char(char: str) -> str:
    if char == "\n" or unicodedata.category(char) not in HIDDEN | set(BREAKS):
        return char
    code = ord(char)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
