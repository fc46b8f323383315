"""A text as words with offsets: what strict matching is done on.

Knows characters, not answers or verdicts. Where `metrics.normalize` gives a string, this gives words with offsets, and
it is stricter about numbers and more lenient about initials, possessives and scripts that are written without spaces.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["ARTICLES", "Word", "words"]

ARTICLES = frozenset({"a", "an", "the"})
APOSTROPHES = "'’‘ʼ`´"
# Letters that Unicode does not decompose, although people leave out their marks.
_PLAIN = str.maketrans(
    {"ł": "l", "ø": "o", "đ": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ŋ": "n"}
    | {"Ł": "L", "Ø": "O", "Đ": "D", "Ħ": "H", "Æ": "AE", "Œ": "OE", "Ð": "D", "Þ": "TH", "Ŋ": "N"}
)
# Scripts in which only the reader knows where a word ends: every character is a word of its own, so that an answer is
# found anywhere. Hangul is among them because particles are joined to the noun.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u309f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
_KATAKANA = re.compile("[\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
# The text is read through its shape, one letter per character: L letter, M mark, 0 digit, C unspaced, K katakana,
# ' apostrophe, s a space that never breaks (1 000), S any other space; . , : stand for themselves, - for the rest.
_SHAPES = re.compile(
    r"(?P<initials>(?<![LM0])LM?(?:\.[sS]?LM?(?=\.)|\.LM?(?![LM0]))+\.?)"  # D.C.  U.S  J. R. R.
    r"|(?P<number>0{1,3}(?:[,s']0{2,3})*[,s']0{3}(?!0)(?:\.0+)?[LM]*|0+(?:[.:]0+)*[LM]*)"  # 1,000.5  3.14  10:30  47th
    r"|(?P<unspaced>CM*)|(?P<katakana>[KM]*K[KM]*)"
    r"|(?P<word>[LM](?:[LM0]|'(?=[LM0]))*)"
)
_SEPARATORS = re.compile(rf"[,\s{APOSTROPHES}]")
_POSSESSIVE = re.compile(rf"(?<=\w)[{APOSTROPHES}]s$", re.IGNORECASE)


@dataclass(frozen=True)
class Word:
    """One word of a text.

    Attributes:
        forms: What it may be compared as, without case and diacritics; a possessive has two ("pariss", "paris").
        cased: The first form with its case kept.
        start: Index of its first character in the text.
        end: Index after its last character.
    """

    forms: tuple[str, ...]
    cased: str
    start: int
    end: int


@lru_cache(maxsize=65536)
def words(text: str) -> tuple[Word, ...]:
    """Return the words of `text` in order, articles included.

    Numbers keep their decimal point and lose their thousands separators ("1,000" is "1000", and neither "1" nor
    "23" is a word of "1.23"); letters after a number belong to it ("47th"). Initials are one word however they are
    written ("J. R. R." is "jrr"). Hyphens separate. Han, hiragana, Hangul, Thai, Lao, Khmer and Burmese give one word
    per character, katakana one per run.

    Example:
        >>> [word.forms[0] for word in words("The U.S. won 1,500 of Bogotá's 东京.")]
        ['the', 'us', 'won', '1500', 'of', 'bogotas', '东', '京']
    """
    shape = "".join(map(_shape, text))
    found = []
    for match in _SHAPES.finditer(shape):
        start, end = match.span()
        piece, kind = text[start:end], match.lastgroup or ""
        forms = [_fold(piece, kind)]
        if kind == "word" and _POSSESSIVE.search(piece):
            forms.append(_fold(_POSSESSIVE.sub("", piece), kind))
        if forms[0]:  # a lone diacritic leaves nothing
            found.append(Word(tuple(form.casefold() for form in forms), forms[0], start, end))
    return tuple(found)


@lru_cache(maxsize=4096)
def _shape(char: str) -> str:
    """Return the letter that stands for a character in a shape."""
    if char in APOSTROPHES:
        return "'"
    if char in ".,:":
        return char
    if char in "\u00a0\u202f\u2009":
        return "s"
    if char.isspace():
        return "S"
    if _KATAKANA.match(char):
        return "K"
    if _UNSPACED.match(char):
        return "C"
    category = unicodedata.category(char)
    return {"L": "L", "M": "M", "N": "0"}.get(category[0], "-")


def _fold(piece: str, kind: str) -> str:
    """Return a word without diacritics, and without the marks that its kind may contain; case is kept."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", piece) if not unicodedata.combining(c)).translate(_PLAIN)
    if kind == "number":
        return _SEPARATORS.sub("", plain)
    return plain if kind in ("unspaced", "katakana") else _clean(plain)


def _clean(plain: str) -> str:
    """Drop dots, spaces and apostrophes, but no vowel sign: those are marks, not letters."""
    return "".join(c for c in plain if c.isalnum() or unicodedata.category(c)[0] == "M")
