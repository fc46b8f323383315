"""A text as the words that can be looked up, and a question as the words to look up: for search and for citations.

SQLite's FTS5, which searches, cuts texts at blanks and signs, folds case and Latin accents, and stems English. What
comes before that is here, the same for texts and questions: compatibility forms become plain ones (NFKC), characters
that only format go, a word hyphenated at a line end is whole (and its parts), and a run of a script that is written
without blanks, or of Hangul, becomes its pairs of neighbouring characters, so that any part of it is found. Knows text;
knows nothing of SQL.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

__all__ = ["VERSION", "search_terms", "spell", "words_of"]

VERSION = 1  # of what is written to an index; 0: texts as they are, cut by FTS5 alone
BREAK = "\0"  # stands for a hyphen at a line end
HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010\u00ad][ \t]*\r?\n\s*(?=[^\W\d_])")
# not to be seen and not of category Cf; marks on letters that are written with or without; the Arabic stretch
IGNORED = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670]"
)
# Thai, Lao, Myanmar, Khmer and their relatives, kana, Bopomofo, Han, Yi, Hangul
SCRIPTS = (
    "[\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u109a-\u109f\u1780-\u17d3\u17d7"
    "\u17dc\u17dd\u1950-\u19cf\u1a20-\u1a7f\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaadf\u1100-\u11ff\u3005-\u3007\u3041-\u3096"
    "\u3099\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua000-\ua48c\uac00-\ud7a3\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U000323af]"
)
UNSPACED = re.compile(f"{SCRIPTS}+")
WRAP = re.compile(f"(?<={SCRIPTS})[ \t]*\r?\n[ \t]*(?={SCRIPTS})")  # a line end inside a run


def spell(text: str) -> str:
    """Return what FTS5 is given for a text; the text itself where it is ASCII without hyphenation."""
    return UNSPACED.sub(lambda run: f" {' '.join(_pairs(run[0], last=True))} ", _plain(text))


def search_terms(query: str) -> list[str]:
    """Return what FTS5 looks up for a question: quoted words, each once; a character alone finds all that begin so.

    >>> search_terms("退款 in SQLite")
    ['"退款"', '"in"', '"sqlite"']
    """
    return list(dict.fromkeys(f'"{word}"*' if alone else f'"{word}"' for word, alone in _words(query)))


def words_of(text: str) -> list[str]:
    """Return the words of a text, in order: folded, and pairs of neighbours in a script written without blanks.

    >>> words_of("The Tellin: 退款需 88 km")
    ['the', 'tellin', '退款', '款需', '88', 'km']
    """
    return [word for word, _ in _words(text)]


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each word, and whether it is a single character of a script that is written without blanks."""
    text, start = _plain(text).lower(), 0
    for run in [*UNSPACED.finditer(text), None]:
        between = text[start : run.start() if run else None]
        yield from ((word, False) for word in "".join(c if _in_word(c) else " " for c in between).split())
        if run:
            start = run.end()
            pairs = _pairs(run[0], last=False)
            yield from ((pair, False) for pair in pairs) if pairs else [(run[0], True)]


def _plain(text: str) -> str:
    """Return a text without what only formats it, in plain characters; ASCII stays as it is but for hyphenation."""
    if HYPHEN.search(text):
        words = HYPHEN.sub(BREAK, text).split()
        text = " ".join(f"{w.replace(BREAK, '')} {w.replace(BREAK, ' ')}" if BREAK in w else w for w in words)
    if text.isascii():
        return text
    formats = {ord(c): None for c in set(text) if unicodedata.category(c) == "Cf"}
    return WRAP.sub("", IGNORED.sub("", unicodedata.normalize("NFKC", text.translate(formats)).casefold()))


def _pairs(run: str, last: bool) -> list[str]:
    """Return the neighbouring characters of a run, two by two, each with its marks; `last`: also the last one alone."""
    characters: list[str] = []
    for c in run:
        if characters and unicodedata.category(c)[0] == "M":
            characters[-1] += c
        else:
            characters.append(c)
    pairs = [one + other for one, other in pairwise(characters)]
    return [*pairs, characters[-1]] if last else pairs


def _in_word(c: str) -> bool:
    return c == "_" or c.isalnum() or unicodedata.category(c)[0] == "M"
