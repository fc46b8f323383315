"""A text as words with offsets: the one normalisation by which answers are found and compared.

First `fold`: Unicode's compatibility composition (NFKC), without format characters, with ASCII digits and one kind of
apostrophe. Then words, and of each its forms without case and diacritics. Knows characters, not answers or verdicts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

__all__ = ["ARTICLES", "Word", "content", "dated", "find", "fold", "mentions", "readings", "wanted", "words"]

ARTICLES = frozenset({"a", "an", "the"})
# Letters that Unicode does not decompose, although people leave out their marks.
_PLAIN = str.maketrans(
    {"ł": "l", "ø": "o", "đ": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ŋ": "n"}
    | {"Ł": "L", "Ø": "O", "Đ": "D", "Ħ": "H", "Æ": "AE", "Œ": "OE", "Ð": "D", "Þ": "TH", "Ŋ": "N"}
)
# What shows nothing: format characters (soft hyphen, zero-width, direction), joiners, selectors and fillers.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Apostrophes, primes and the spaces that never break keep their meaning, which NFKC would lose.
_KEPT = dict.fromkeys("'’‘‛ʼʻʹ`´′＇ˈ՚׳ꞌ", "'") | dict.fromkeys("\u00a0\u202f\u2007\u2009", "\u00a0")
_KEPT |= {"٫": ".", "٬": ","}
# Scripts in which only the reader knows where a word ends: every character is a word of its own, so that an answer is
# found anywhere. Hangul is among them because particles are joined to the noun.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u309f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
_KATAKANA = re.compile("[\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff]")
# The text is read through its shape, one letter per character: L letter, M mark, 0 digit, C unspaced, K katakana,
# ' apostrophe, s a space that never breaks, S an ordinary one, n any other; . , : for themselves, - for the rest.
_SHAPES = (
    r"(?P<initials>(?<![LM])LM?(?:\.[sSn]?LM?(?=\.)|\.LM?(?![LM0]))+\.?)"  # D.C.  U.S  J. R. R.
    r"|(?P<number>0{1,3}(?:[,s']0{2,3})*[,s']0{3}(?!0)(?:\.0+)?"  # 1,000.5  1 000 (never breaking)
    r"|0{1,3}(?:\.0{3}){2,}(?!\.?0)(?:,0+)?"  # 1.500.000
    r"|0{1,3}(?:S0{3}){GROUPS,}(?!0)(?:[.,]0+)?"  # 1 500 000
    r"|0+(?:[.:]0+)*)"  # 3.14  10:30
    r"|(?P<unspaced>CM*)|(?P<katakana>[KM]*K[KM]*)"
    r"|(?P<word>[LM](?:[LM0]|'(?=[LM0]))*)"
)
_WORDS = {joined: re.compile(_SHAPES.replace("GROUPS", "1" if joined else "2")) for joined in (False, True)}
# What belongs to the number before it: an ordinal or a decade (47th, 1990s, 1990's, 3ème) ...
_ENDING = re.compile(
    r"(?:'?s|st|nd|rd|th|er|e|re|i?[èe]me|n?de|ste|do|ro|to|da|ra|ta|mo|ma)(?![^\W_])|[oa](?!\.?[^\W_])",
    re.IGNORECASE,
)
# ... while a unit is a word of its own, joined or not (10km, 12:30pm, 5GHz); other letters stay (2Pac, 3D, 5G).
_UNIT = re.compile(
    r"(?:[^\W\d_A-Z][^\W\d_]+|[A-Z]{2,}|[kMGTP]?(?:Hz|Wh?|Pa|eV|B|bit)|m?Ah|[mglhkbMWVCFKN])\d?(?![^\W_])|[ap]\.\s?m\b"
)
# Money and percent, before a number or behind it, are the words that people say behind it: $5bn is 5 bn dollars.
_COINS: dict[str, tuple[str, ...]] = {
    "$": ("dollars", "dollar"),
    "€": ("euros", "euro"),
    "£": ("pounds", "pound"),
    "¥": ("yen", "yuan"),
}
_COINS |= {"₹": ("rupees", "rupee"), "₩": ("won",), "₽": ("rubles", "ruble"), "₺": ("lira", "liras")}
_COINS |= {"¢": ("cents", "cent"), "%": ("percent",), "٪": ("percent",)}
_CODES = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "CNY": "¥", "INR": "₹", "KRW": "₩", "RUB": "₽", "TRY": "₺"}
_PLURALS = {form: forms for sign, forms in _COINS.items() if sign != "¥" for form in forms}
_SCALES = frozenset("hundred thousand million billion trillion mn bn tn k m b".split())
_BEFORE = re.compile(r"([$＄﹩€£￡¥￥₹₩￦₽₺])\s?$")
_BEHIND = re.compile(r"\s?([$＄﹩€£￡¥￥₹₩￦₽₺¢￠%％﹪٪])(?!\s?\d)")
_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = {name[:size]: name for name in _MONTHS for size in (3, len(name))} | {"sept": "september"}
_DAY = re.compile(r"0?([1-9]|[12]\d|3[01])(?:st|nd|rd|th)?")
_GROUPS = re.compile(r"\d{1,3}(?:(?:\.\d{3}){2,}|(?: \d{3})+)(?![.\d])")  # in which a comma is a decimal point
_SEPARATORS = re.compile(r"[,\s']")
_POSSESSIVE = re.compile(r"(?<=\w)'s$", re.IGNORECASE)


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


@lru_cache(maxsize=4096)
def fold(text: str) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Return a text as it is compared, and of each of its characters where it begins and ends in `text`.

    A letter and its marks are composed, so that both ways of writing them agree; ligatures, full-width and other
    compatibility forms become what they stand for; every decimal digit becomes ASCII; what shows nothing goes.

    Example:
        >>> fold("ﬁ\u00adn １٢")[0]
        'fin 12'
    """
    if text.isascii() and "`" not in text:
        return text, tuple(range(len(text))), tuple(range(1, len(text) + 1))
    made: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for start, end, cluster in _clusters(text):
        plain = _composed(cluster)
        # "3½" is not 31/2, and "10²" not 102.
        apart = bool(made) and made[-1].isdecimal() and plain[:1].isdecimal() and not cluster[0].isdecimal()
        plain = f" {plain}" if apart else plain
        made += plain
        starts += [start] * len(plain)
        ends += [end] * len(plain)
    return "".join(made), tuple(starts), tuple(ends)


def _clusters(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, characters) of each character with the marks that belong to it, invisible ones left out."""
    start = end = 0
    cluster = ""
    for at, char in enumerate(text):
        if _INVISIBLE.match(char) or unicodedata.category(char) == "Cf":
            continue
        # marks, vowels and finals of decomposed Hangul, half-width voicing
        if cluster and (unicodedata.category(char)[0] == "M" or "\u1160" <= char <= "\u11ff" or char in "\uff9e\uff9f"):
            cluster += char
        else:
            if cluster:
                yield start, end, cluster
            start, cluster = at, char
        end = at + 1
    if cluster:
        yield start, end, cluster


@lru_cache(maxsize=65536)
def _composed(cluster: str) -> str:
    first = cluster[0]
    if first in _KEPT:
        return _KEPT[first]
    if unicodedata.category(first) == "So" and unicodedata.decomposition(first).startswith("<super>"):
        return first  # ™ is no part of a name
    plain = unicodedata.normalize("NFKC", cluster)
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in plain)


@lru_cache(maxsize=65536)
def words(text: str, joined: bool = False) -> tuple[Word, ...]:
    """Return the words of `text` in order, articles included.

    Numbers keep their decimal point and lose their thousands separators ("1,000" is "1000", and neither "1" nor
    "23" is a word of "1.23"); an ordinal or a decade is one word with its ending ("47th", "1990's" is "1990s"), a unit
    is a word of its own ("10km" is "10 km"). Initials are one word however they are written ("J. R. R." is "jrr").
    Hyphens separate. Han, hiragana, Hangul, Thai, Lao, Khmer and Burmese give one word per character, katakana one per
    run.

    Args:
        text: Any.
        joined: One ordinary space before three digits joins them as well: "10 000" is 10000. In a text it may be
            either, see `readings`; two such spaces always join.

    Example:
        >>> [word.forms[0] for word in words("The U.S. won 1,500 of Bogotá's 东京.")]
        ['the', 'us', 'won', '1500', 'of', 'bogotas', '东', '京']
    """
    plain, starts, ends = fold(text)
    shape = "".join(map(_shape, plain))
    found = []
    at = 0
    while match := _WORDS[joined].search(shape, at):
        start, at = match.span()
        kind = match.lastgroup or ""
        forms = [_form(plain[start:at], kind)]
        if kind == "number":
            if re.match(r" s(?![^\W_]|')", plain[at : at + 3]):  # 30 s is 30s
                at += 2
                forms[0] += "s"
            elif ending := _ENDING.match(plain, at):
                forms = [forms[0] + _form(ending[0], "word"), *([] if "'" not in ending[0] else forms)]
                at = ending.end()
            elif shape[at : at + 1] in ("L", "M") and not _UNIT.match(plain, at):
                end = at + len(shape[at:]) - len(shape[at:].lstrip("LM"))
                forms = [forms[0] + _form(plain[at:end], "word")]
                at = end
        elif kind == "word" and _POSSESSIVE.search(plain[start:at]):
            forms.append(_form(_POSSESSIVE.sub("", plain[start:at]), kind))
        if forms[0]:  # a lone diacritic leaves nothing
            found.append(Word(tuple(form.casefold() for form in forms), forms[0], starts[start], ends[at - 1]))
    return tuple(_amounts(text, found))


def _amounts(text: str, found: list[Word]) -> Iterator[Word]:
    """Yield words with percent and money said behind their number, whatever sign or code stood where."""
    at = 0
    while at < len(found):
        word = found[at]
        code = _CODES.get(word.cased) if at + 1 < len(found) and _amount(found[at + 1]) else None
        if code and text[word.end : found[at + 1].start] in ("", " ", "\u00a0"):
            start, at = word.start, at + 1
        elif word.cased == "US" and at + 1 < len(found) and text[word.end : found[at + 1].start].strip() == "$":
            start, at, code = word.start, at + 1, "$"  # US$5
        else:
            start = word.start
        word = found[at]
        at += 1
        if not _amount(word):
            yield word
            continue
        if not code and (before := _BEFORE.search(text, max(0, word.start - 2), word.start)):
            start, code = before.start(), unicodedata.normalize("NFKC", before[1])
        yield Word(word.forms, word.cased, start, word.end)
        if at < len(found) and found[at].forms[0] in _SCALES and text[word.end : found[at].start].strip() == "":
            word = found[at]
            at += 1
            yield word
        if code:
            yield Word(_COINS[code], _COINS[code][0], word.end, word.end)
        elif behind := _BEHIND.match(text, word.end):
            forms = _COINS[unicodedata.normalize("NFKC", behind[1])]
            yield Word(forms, forms[0], behind.start(1), behind.end(1))
        elif [w.forms[0] for w in found[at : at + 2]] == ["per", "cent"]:
            yield Word(_COINS["%"], "percent", found[at].start, found[at + 1].end)
            at += 2
        elif at < len(found) and not text[word.end : found[at].start].strip():
            forms = _PLURALS.get(found[at].forms[0]) or _COINS.get(_CODES.get(found[at].cased, ""), ())
            if forms:
                yield Word(forms, forms[0], found[at].start, found[at].end)
                at += 1


def _amount(word: Word) -> bool:
    return word.forms[0][:1].isdigit() and word.forms[0].replace(".", "").isdigit()


def dated(text: str, said: Sequence[Word]) -> list[Word]:
    """Return the words of `text` with every date in one order: day, month, year.

    ``March 3rd, 1990``, ``the 3rd of March 1990``, ``1990-03-03`` and ``3/25/1990``, where no other reading of the
    numbers is a date, are 3 march 1990; ``Mar. 3`` is 3 march. Each word keeps its place in the text.
    """
    made: list[Word] = []
    at = 0
    while at < len(said):
        found, used = _date(text, said[at : at + 3]) or ([said[at]], 1)
        made += found
        at += used
    return made


def _date(text: str, said: Sequence[Word]) -> tuple[list[Word], int] | None:
    """Return the date that words begin with, day first, and how many of them it is; None if they begin with none."""
    names = [word.forms[0] for word in said]
    gaps = [text[a.end : b.start] for a, b in pairwise(said)]
    if len(said) == 3 and gaps[0] == gaps[1] and gaps[0] in ("-", "/", ".") and all(name.isdigit() for name in names):
        sizes = [len(name) for name in names]
        if sizes[0] == 4:
            year, month, day = said
        elif sizes[2] == 4 and (int(names[0]) > 12 or names[0] == names[1]):
            day, month, year = said
        elif sizes[2] == 4 and int(names[1]) > 12:
            month, day, year = said
        else:
            return None
        if 1 <= int(month.forms[0]) <= 12 and _DAY.fullmatch(day.forms[0]):
            name = _MONTHS[int(month.forms[0]) - 1]
            return [_day(day), replace(month, forms=(name,), cased=name.capitalize()), year], 3
        return None
    if len(said) == 3 and names[1] == "of":
        said, names, gaps = [said[0], said[2]], [names[0], names[2]], [""]
        used = 3
    else:
        said, used = said[:2], 2
    if len(said) < 2 or not re.fullmatch(r"\.?[\s-]?", gaps[0]):
        return None
    day, month = said if names[1] in _MONTH else (said[1], said[0])
    if month.forms[0] not in _MONTH or not _DAY.fullmatch(day.forms[0]):
        return None
    return [_day(day), replace(month, forms=(_MONTH[month.forms[0]],))], used


def _day(word: Word) -> Word:
    number = _DAY.sub(r"\1", word.forms[0])
    return replace(word, forms=(number,), cased=number)


def wanted(answer: str) -> list[Word]:
    """Return the words by which an answer is looked for in the `readings` of a text."""
    return dated(answer, content(answer, joined=True))


def content(text: str, joined: bool = False) -> list[Word]:
    """Return the words of a text without its articles."""
    return [word for word in words(text, joined) if word.forms[0] not in ARTICLES]


def readings(text: str) -> list[list[Word]]:
    """Return the ways to read a text as words, articles left out: "1 500" is 1 and 500, or 1500; dates as `dated`."""
    plain = [content(text), content(text, joined=True)]
    found: list[list[Word]] = []
    for said in (*plain, *(dated(text, said) for said in plain)):
        if said not in found:
            found.append(said)
    return found


def find(said: Sequence[Word], wanted: Sequence[Word]) -> list[int]:
    """Return every index at which the words `wanted`, those of an answer, follow one another in `said`."""
    # "the 1990's" asks for the decade; in a text it may also be what belongs to 1990.
    asked = [set(word.forms[:1] if word.forms[0][:1].isdigit() else word.forms) for word in wanted]
    places = range(len(said) - len(asked) + 1) if asked else ()
    return [at for at in places if all(not forms.isdisjoint(said[at + i].forms) for i, forms in enumerate(asked))]


@lru_cache(maxsize=4096)
def _shape(char: str) -> str:
    """Return the letter that stands for a character in a shape."""
    if char in "'.,:":
        return char
    if char == " ":
        return "S"
    if char == "\u00a0":
        return "s"
    if char.isspace():
        return "n"
    if _KATAKANA.match(char):
        return "K"
    if _UNSPACED.match(char):
        return "C"
    category = unicodedata.category(char)
    return {"L": "L", "M": "M", "N": "0"}.get(category[0], "-")


def _form(piece: str, kind: str) -> str:
    """Return a word without diacritics, and without the marks that its kind may contain; case is kept.

    Marks that make another letter (Japanese voicing, Indic and Thai signs) are not diacritics: パリ is not バリ.
    """
    apart = unicodedata.normalize("NFKD", piece)
    plain = "".join(c for c in apart if not (10 <= (mark := unicodedata.combining(c)) <= 35 or mark >= 200))
    plain = unicodedata.normalize("NFC", plain).translate(_PLAIN)
    if kind == "number":
        grouped = _GROUPS.match(plain)
        whole, rest = (plain[: grouped.end()], plain[grouped.end() :]) if grouped else (plain, "")
        return _SEPARATORS.sub("", whole.replace(".", "") if grouped else whole) + rest.replace(",", ".")
    return plain if kind in ("unspaced", "katakana") else _clean(plain)


def _clean(plain: str) -> str:
    """Drop dots, spaces and apostrophes, but no vowel sign: those are marks, not letters."""
    return "".join(c for c in plain if c.isalnum() or unicodedata.category(c)[0] == "M")


def mentions(text: str, answers: str | Iterable[str]) -> bool:
    """Tell whether `text` contains one of `answers` as whole words, in the normalisation of verdicts.

    An answer that normalises to nothing ("the") is never mentioned.

    Example:
        >>> mentions("It is Oslo.", ["Oslo"]), mentions("The Romans came.", ["Rome", "Roma"])
        (True, False)
    """
    listed = [answers] if isinstance(answers, str) else list(answers)
    return any(find(said, wanted(answer)) for said in readings(text) for answer in listed)
