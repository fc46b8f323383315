"""What the texts of drafts tell: which say nothing, and where their first sentence ends. Knows no model and no policy.

A draft says nothing that abstains, adds no word to the question, names nothing where the answer it would replace does,
or follows a passage that is beside the point or has been followed already.

Nothing in a sentence like "Eswatini is the currency of Eswatini." surprises the model that wrote it, so no likelihood
tells it from knowledge; its words do. `idle` compares a draft with the question and with the answer that it would
replace, which needs no word list: a draft of words that stand in one of the two says nothing of its own. Nor does one
that has no name and no number against an answer with one ("by a team of printers" against "by Ms Novak"): this is what
memory writes that has never heard of the matter, fluently. A name is a word with a capital inside a sentence. Function
words (`FUNCTION_WORDS`) and phrases of not knowing (`ABSTENTIONS`) are listed by language; where a language is missing
fewer drafts are recognised, and none wrongly. Both are there to be extended: ``ABSTENTIONS["eo"] = ("mi ne scias",)``.
A function word is one in the question's language only ("la" is a note where English is asked), and none where it is
written as a name: with a capital inside a sentence or as the whole answer ("As", the symbol of arsenic).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

from .answer_policy import Evidence

__all__ = [
    "ABSTENTIONS",
    "FUNCTION_WORDS",
    "bears",
    "first_sentence",
    "first_sentence_so_far",
    "follows",
    "function_words",
    "idle",
    "nothing_to_add",
    "read_drafts",
    "sentence_end",
    "silent",
    "written_as_names",
]

# By language: what an answer says that has none. Compared without case, accents, apostrophes and punctuation.
ABSTENTIONS: dict[str, Sequence[str]] = {
    "en": (
        "i don't know,i do not know,i'm not sure,i am not sure,i'm not aware,i am not aware,i cannot answer,"
        "i can't answer,i cannot provide,i can't provide,i'm unable to,i am unable to,i don't have,i do not have,"
        "i'm sorry,i apologize,as an ai,not enough information,no information about,does not specify,"
        "cannot be determined,can't be determined"
    ).split(","),
    "de": "ich weiß nicht,ich weiß es nicht,das weiß ich nicht,kann ich nicht beantworten,ich bin mir nicht sicher,"
    "keine informationen,es tut mir leid".split(","),
    "fr": "je ne sais pas,je ne peux pas répondre,je ne suis pas sûr,aucune information,je suis désolé".split(","),
    "es": "no lo sé,no sé,no puedo responder,no estoy seguro,no tengo información,lo siento".split(","),
    "it": "non lo so,non so,non posso rispondere,non sono sicuro,nessuna informazione,mi dispiace".split(","),
    "pt": "não sei,não posso responder,não tenho certeza,não tenho informações,desculpe".split(","),
    "nl": "ik weet het niet,dat weet ik niet,ik kan niet antwoorden,geen informatie,het spijt me".split(","),
    "pl": "nie wiem,nie mogę odpowiedzieć,nie mam informacji,przykro mi".split(","),
    "ru": "я не знаю,не могу ответить,нет информации,извините".split(","),
    "zh": "我不知道,无法回答,无法确定,没有相关信息,抱歉".split(","),
    "ja": "わかりません,分かりません,知りません,お答えできません".split(","),
    "ko": "모르겠습니다,알 수 없습니다,죄송합니다".split(","),
}
# By language: what carries a sentence and answers nothing. Words that are names elsewhere (may, will) are left out.
FUNCTION_WORDS: dict[str, Sequence[str]] = {
    "en": (
        "a an the is are was were be been being am do does did has have had of in on at to from by for with as and or "
        "that this these those it its he she they there here which who whom whose what when where why how can could "
        "would should also known called named located found answer question through i you we his her their my your"
    ).split(),
    "de": "der die das des dem den ein eine einer eines ist sind war waren hat haben von in im an am zu und es er sie "
    "heißt wird als auf für mit wer was wie wo wann warum welche welcher welches".split(),
    "fr": "le la les l un une des du de d est sont était a ont en dans et il elle c ce qui que au aux pour "
    "quel quelle où quand comment pourquoi".split(),
    "es": "el la los las un una de del es son era está en y que se por para con su al llama quién cuál dónde cuándo "
    "cómo".split(),
    "it": "il lo la i gli le un una di del della è sono era in e che si per con nel nella chiama chi quale dove "
    "quando come".split(),
    "pt": "o a os as um uma de do da é são era está em e que se por para com no na chama quem qual onde quando "
    "como".split(),
    "nl": "de het een is zijn was van in en op aan te dat die wordt heet wie wat waar wanneer hoe welke".split(),
}
# A full stop after two letters or digits ("U.S. state" goes on), then white space; or a line's end.
_END = re.compile(r"(?<=[^\W_]{2})[.!?]+[\"”’)]*\s|[。！？]|\n")
_BEGINS = re.compile(r"[.!?:\n]\s*$")  # what stands between two words of which the second begins a sentence
_QUOTES = tuple('"“„«‹')
_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"['’]s\b", re.IGNORECASE)
# Scripts that put no space between words: each character counts by itself.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")


def read_drafts(
    evidence: Sequence[Evidence],
    names: Sequence[str],
    texts: Sequence[str],
    question: str,
    passages: Sequence[str] = (),
) -> list[Evidence]:
    """Return the evidence of an answer's drafts with what their texts tell: `idle` and `sentence`.

    Args:
        evidence: Of each draft.
        names: As in `idle`, like the rest.
        texts: Likewise.
        question: Likewise.
        passages: Likewise.
    """
    texts = [text.strip() for text in texts]
    told = idle(names, texts, question, passages)
    return [
        replace(
            found,
            idle=nothing and found.whole and evidence[0].whole,  # of what was stopped nothing is certain
            sentence=first_sentence(text, len(found.logp_ctx)),
        )
        for found, nothing, text in zip(evidence, told, texts, strict=True)
    ]


def first_sentence(text: str, tokens: int) -> int:
    """Return how many of an answer's tokens its first sentence takes: its share of the characters, at least one.

    Example:
        >>> first_sentence("It is Lima. Lima lies on the coast.", 10), first_sentence("In the U.S. state.", 8)
        (3, 8)
    """
    found = _END.search(text)
    return tokens if found is None else max(1, round(tokens * found.end() / len(text)))


def first_sentence_so_far(text: str, tokens: int) -> int:
    """Return how many tokens the first sentence takes at least of a draft that ends with it: all, once it has a word.

    Args:
        text: What the draft says so far, in which no sentence with a word has ended.
        tokens: How many it has.

    Example:
        >>> first_sentence_so_far("It is Li", 3), first_sentence_so_far("。It", 2)
        (3, 1)
    """
    return tokens if _WORD.search(text) and not _END.search(text.strip()) else 1


def sentence_end(text: str) -> int | None:
    """Return where the first sentence that has a word ends, white space after it included; None if none has ended.

    Example:
        >>> sentence_end("It is Lima. Li"), sentence_end("It is Lima.")
        (12, None)
    """
    ends = (found.end() for found in _END.finditer(text) if _WORD.search(text[: found.end()]))
    return next(ends, None)


def idle(names: Sequence[str], texts: Sequence[str], question: str, passages: Sequence[str] = ()) -> list[bool]:
    """Return which drafts of an answer say nothing that the first one, the unmodified model's, does not say.

    Args:
        names: Of the drafts, as in `AnswerPolicy.drafts`.
        texts: Of the drafts. The first is what is given otherwise, and never idle.
        question: What was asked.
        passages: What the draft called ``"context"`` has to follow; none where they are not known.

    Returns:
        Per draft, whether it abstains, or has no word beside those of the question, of the first draft and of
        `FUNCTION_WORDS`. Where the first draft has no word of its own either, the question offers the answers ("France
        or Germany?"), and only what abstains is idle. Idle too is a draft whose own words are no names and no numbers,
        where the first one has some; but not the draft called ``"context"``, which has to follow the passages: it is
        idle where none of its own words stands in a passage that bears on the question, where one stands in other
        passages alone, and where the first draft's first sentence says what such a passage says already (all its own
        words stand there). A passage bears on the question that has one of its names (words with a capital, the first
        one apart), or one of its words where it holds no names.

    Example:
        >>> both, question = ["unmodified", "memory"], "What is the capital of Peru?"
        >>> idle(both, ["It is Baku.", "Peru is the capital of Peru."], question)
        [False, True]
        >>> idle(both, ["It is Baku.", "It is Lima."], question)
        [False, False]
        >>> idle(["unmodified", "context"], ["It is Lima.", "It is Baku."], question, ["Chile's capital is Baku."])
        [False, True]
        >>> idle(both, ["They go to Ms Novak.", "They go to a secure place."], "Where do letters go?")
        [False, True]
    """
    function = function_words(question, *passages, *texts)
    asked, (first, *others) = set(_words(question, function)), texts
    plain = asked | function
    said = _said(first, function) - plain
    told = [False]
    for name, text in zip(names[1:], others, strict=True):
        own = _said(text, function) - plain
        nothing = _abstains(text) or (bool(said) and not own - said)
        if name != "context":
            nothing = nothing or (
                _names(first, said - own, function, inside=True) and not _names(text, own - said, function)
            )
        elif passages:
            bearing, other = _bearing(question, passages, function)
            kept = _said(_sentence(first), function) - plain - _said(_sentence(text), function)
            nothing = nothing or not (own - said) & bearing or bool((own - said) & other - bearing)
            nothing = nothing or (bool(kept) and kept <= bearing)
        told.append(nothing)
    return told


def nothing_to_add(question: str, passages: Sequence[str], first: str) -> bool:
    """Whether a draft called ``"context"`` is `idle` whatever it says: what passages that bear hold is said.

    So it is, too, where no passage bears on the question. It is False where no function word tells the language, as
    then the other draft's may.

    Args:
        question: As in `idle`.
        passages: Likewise.
        first: The first draft; empty as long as it is not whole.

    Example:
        >>> question, passages = "What is the capital of Peru?", ["The capital of Peru is Baku."]
        >>> [nothing_to_add(question, passages, first) for first in ("It is Baku.", "It is Lima.")]
        [True, False]
    """
    function = function_words(question, *passages, first)
    known = set(_words(question, function)) | function | _said(first, function)
    return bool(passages and function) and _bearing(question, passages, function)[0] <= known


def _bearing(question: str, passages: Sequence[str], function: frozenset[str]) -> tuple[set[str], set[str]]:
    """Return the words of the passages that bear on the question, and those of all passages."""
    needed = _needed(question, function)
    texts = [set(_words(passage, function)) for passage in passages]
    return set().union(*(words for words in texts if not needed or needed & words)), set().union(*texts)


def _needed(question: str, function: frozenset[str]) -> set[str]:
    """Return of which words a passage that bears on the question has one; empty where every passage does."""
    words = list(_read(question, function))
    names = {word for found, word, _ in words[1:] if found[0].isupper()} - function
    return names or set(_words(question, function)) - function


def bears(question: str, passages: Sequence[str]) -> bool:
    """Whether one of the passages has a name of the question, or one of its words where it holds no names.

    Example:
        >>> bears("Who runs Tellin?", ["Tellin lies on a river."]), bears("Who runs Tellin?", ["Oslo is a city."])
        (True, False)
    """
    function = function_words(question, *passages)
    needed = _needed(question, function)
    return any(not needed or bool(needed & set(_words(passage, function))) for passage in passages)


def follows(text: str, question: str, passages: Sequence[str]) -> bool:
    """Whether most of what a draft's first sentence adds to the question stands in the passages.

    Example:
        >>> follows("It is Ms Novak.", "Who runs Tellin?", ["Novak runs Tellin, Ms Novak."])
        True
        >>> follows("It is Mr Brandt.", "Who runs Tellin?", ["Ms Novak runs Tellin."])
        False
    """
    function = function_words(question, *passages, text)
    own = _said(_sentence(text), function) - set(_words(question, function)) - function
    return 2 * len(own & {word for passage in passages for word in _words(passage, function)}) > len(own)


def silent(text: str, question: str) -> bool:
    """Whether a draft abstains, or has no word beside the question's and `FUNCTION_WORDS`.

    Example:
        >>> silent("Peru is the capital of Peru.", "What is the capital of Peru?")
        True
    """
    function = function_words(question, text)
    return _abstains(text) or not _said(text, function) - set(_words(question, function)) - function


def _names(text: str, words: set[str], function: frozenset[str], inside: bool = False) -> bool:
    """Tell whether one of `words` is a number or begins with a capital; `inside`: not at a sentence's beginning."""
    return any(
        any(char.isdigit() for char in found) or (found[0].isupper() and (within or not inside))
        for found, word, within in _read(text, function, answer=True)
        if word in words
    )


def _sentence(text: str) -> str:
    """Return the first sentence of a text."""
    found = _END.search(text)
    return text if found is None else text[: found.end()]


@cache
def _listed(lists: tuple[tuple[str, ...], ...]) -> list[frozenset[str]]:
    return [frozenset(word.casefold() for word in map(_plain, words)) for words in lists]


def function_words(*texts: str) -> frozenset[str]:
    """Return those of the language of which the first text that has any has most; of all such languages in a tie.

    Example:
        >>> "la" in function_words("What is the sixth note?"), "la" in function_words("", "C'est la capitale.")
        (False, True)
    """
    lists = _listed(tuple(map(tuple, FUNCTION_WORDS.values())))
    for text in texts:
        words = [word.casefold() for word in _WORD.findall(_plain(text))]
        counts = [sum(word in each for word in words) for each in lists]
        if any(counts):
            return frozenset().union(*(each for each, n in zip(lists, counts, strict=True) if n == max(counts)))
    return frozenset()


def written_as_names(text: str, function: frozenset[str]) -> frozenset[str]:
    """Return the words of an answer, as written, that are function words elsewhere and names here.

    Example:
        >>> written_as_names("It is As.", function_words("What is it?")), written_as_names("As", frozenset({"as"}))
        (frozenset({'As'}), frozenset({'As'}))
    """
    read = _read(text, function, answer=True)
    return frozenset(found for found, word, _ in read if found.casefold() in function and word not in function)


def _abstains(text: str) -> bool:
    said = f" {' '.join(_words(text))} "
    phrases = (phrase for each in ABSTENTIONS.values() for phrase in each)
    return any(f" {' '.join(_words(phrase))} " in said for phrase in phrases)


def _plain(text: str) -> str:
    """Return a text without accents, apostrophes, possessive endings and ligatures."""
    decomposed = unicodedata.normalize("NFKD", _POSSESSIVE.sub("", text).replace("ß", "ss"))
    return "".join(char for char in decomposed if not unicodedata.combining(char) and char not in "'’")


def _words(text: str, function: frozenset[str] = frozenset()) -> list[str]:
    """Return the words of a text as they are compared."""
    return [word for _, word, _ in _read(text, function)]


def _said(text: str, function: frozenset[str]) -> set[str]:
    """Return the words of an answer as they are compared."""
    return {word for _, word, _ in _read(text, function, answer=True)}


def _read(text: str, function: frozenset[str], answer: bool = False) -> Iterator[tuple[str, str, bool]]:
    """Yield each word as it stands, as it is compared, and whether it has a capital that no sentence begins with.

    Compared are words without case; but what is written as a name is none of the function words: not "US", and not "As"
    inside a sentence (a quotation begins like one) or where it is all of an answer. Of a script without spaces each
    character is a word.
    """
    text = _plain(text)
    words, end = list(_WORD.finditer(text)), 0
    for found in words:
        word, folded, before, end = found.group(), found.group().casefold(), text[end : found.start()], found.end()
        if _UNSPACED.search(word):
            yield from ((char, char, False) for char in word)
            continue
        inside = word[0].isupper() and found is not words[0] and not _BEGINS.search(before)
        name = (inside and before[-1:] not in _QUOTES) or word.isupper() or (answer and len(words) == 1)
        yield word, word if len(word) > 1 and word[0].isupper() and name and folded in function else folded, inside
