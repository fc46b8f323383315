"""Which passage supports which sentence of an answer, told from the words alone.

A sentence says what its words add to the question. A passage supports it when it holds enough of that, numbers, names
and long words counting for more, and speaks of what was asked; a sentence that no passage supports rests on memory, and
so does one that asks, as answers do that repeat the question. It costs no forward, so it is read off any answer,
recorded or not, and in any language: words are those of search (words.py). Measured against embeddings in
benchmarks/citations.py, on whose even seeds the shares below were chosen. Knows texts; knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .words import UNSPACED, words_of

__all__ = ["Sentence", "cite"]

ENOUGH = 0.4  # share of what a sentence adds to the question that its passages hold together
ALSO = 0.15  # share that each of them adds to those before
ABOUT = 0.3  # share of question and sentence that each of them holds
LONGEST = 8  # letters from which on a word weighs no more
PREFIX = 4  # letters two forms of a word share at least
SHORT = 24  # letters before a stop that are looked at for an initial or a title
LONGEST_FORM = 40  # letters of a word that has other forms

# A sentence ends at a line end; at a full stop of a script without blanks; and at . ! ? … before a blank, where that
# is neither the stop of an initial or a short title (J. Dr. St.) nor followed by a small letter (e.g. this).
_END = re.compile(r"\n+|[。！？｡।။።؟۔]+[\"'”’」』）)\]]*\s*|[.!?…]+[\"'”’»)\]]*\s+(?![a-z])")
_ASKS = re.compile(r"[?？؟\u037e]+[\"'”’»)\]」』）]*$")  # the last is Greek's
_WORD = re.compile(r"[^\W_]+")
_BEHIND = re.compile(r"(?<=[\w,;] )[^\W_]+")
_SHORT = re.compile(r"(?:^|[\s(])(?:[^\W\d_]|[A-Z][a-z]|Mrs|Rev|Gen|Col|[^\W\d_](?:\.[^\W\d_])+)\.\s*$")


@dataclass(frozen=True)
class Sentence:
    """A sentence of an answer, and what it rests on.

    Attributes:
        text: The sentence.
        start: Where it begins in the answer's text, in characters.
        end: Where it ends, likewise.
        passages: Places of the passages that support it, in those of the answer, counted from 0, the one that holds
            most of it first. Empty: it rests on memory, as far as words tell.
    """

    text: str
    start: int
    end: int
    passages: tuple[int, ...]

    @property
    def memory(self) -> bool:
        """Whether no passage supports it."""
        return not self.passages

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON-ready values."""
        return {"text": self.text, "start": self.start, "end": self.end, "passages": list(self.passages)}


def cite(text: str, passages: Sequence[str], question: str = "") -> tuple[Sentence, ...]:
    """Return the sentences of an answer with the passages that support each.

    Args:
        text: The answer.
        passages: As they stood in the prompt.
        question: What was asked: its words support nothing, for every passage about it holds them.

    Example:
        >>> told = ["The Tellin is 88 km long.", "The Brask is 97 km long."]
        >>> [s.passages for s in cite("It is 97 km long. It rises in Peru.", told, "How long is the Brask?")]
        [(1,), ()]
    """
    asked, held = _Words(question), [_Words(passage) for passage in passages]
    weights, plain = _Weights((question, text, *passages)), _Weights(())
    whole, holds = plain.of(asked.words), [plain.of(asked.words, passage) for passage in held]
    return tuple(
        Sentence(text[start:end], start, end, tuple(_support(text[start:end], asked, held, weights, whole, holds)))
        for start, end in _sentences(text)
    )


class _Words:
    """The words of a text, found in another form too: words that share three quarters of their letters are one."""

    def __init__(self, text: str) -> None:
        self.words = set(words_of(text))
        self._beginnings = {beginning for word in self.words for beginning in _beginnings(word)}

    def __contains__(self, word: str) -> bool:
        return word in self.words or any(beginning in self._beginnings for beginning in _beginnings(word))


def _beginnings(word: str) -> Iterator[str]:
    """Yield the beginnings that another form of a word may have; of numbers and of very long words none."""
    if PREFIX < len(word) <= LONGEST_FORM and not any(map(str.isdecimal, word)):
        yield from (word[:size] for size in range(max(PREFIX, -(-3 * len(word) // 4)), len(word) + 1))


class _Weights:
    """What words weigh; a name is a word that stands with a capital behind another word and nowhere without one."""

    def __init__(self, texts: Sequence[str]) -> None:
        written = {word for text in texts for word in _WORD.findall(text)}
        capital = {word for text in texts for word in _BEHIND.findall(text) if len(word) > 2 and word.istitle()}
        self._names = {part for word in capital if word.lower() not in written for part in words_of(word)}

    def of(self, words: set[str], passage: _Words | None = None) -> int:
        """Return the weight of some words together; with a passage, of those of them that it holds."""
        return sum(self._one(word) for word in words if passage is None or word in passage)

    def _one(self, word: str) -> int:
        if UNSPACED.match(word):
            return 16 * len(word)
        number = any(map(str.isdecimal, word))
        return 2 * LONGEST**2 if number or word in self._names else min(len(word), LONGEST) ** 2


def _support(
    sentence: str,
    asked: _Words,
    passages: Sequence[_Words],
    weights: _Weights,
    asked_whole: int,
    asked_held: Sequence[int],
) -> list[int]:
    """Return the places of the passages that support a sentence together; none where they do not.

    Args:
        sentence: Of the answer.
        asked: The question.
        passages: The passages.
        weights: Of the words of all of them.
        asked_whole: Weight of the question's words.
        asked_held: Of those of them that each passage holds.
    """
    words = set() if _ASKS.search(sentence) else set(words_of(sentence))
    adds = {word for word in words if word not in asked} or words
    whole, rest = weights.of(adds), words - asked.words
    about = [weights.of(rest, passage) + held for passage, held in zip(passages, asked_held, strict=True)]
    least = ABOUT * (asked_whole + weights.of(rest))
    open_to = [place for place, held in enumerate(about) if held >= least]
    chosen: list[int] = []
    missing = adds
    while open_to:
        gain, _, best = max((weights.of(missing, passages[place]), about[place], -place) for place in open_to)
        if gain < max(ALSO * whole, 1):
            break
        chosen.append(-best)
        open_to.remove(-best)
        missing = {word for word in missing if word not in passages[-best]}
    return chosen if whole and weights.of(missing) <= (1 - ENOUGH) * whole else []


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each sentence begins and ends, white space left out."""
    start, seen, said = 0, 0, False
    for end in [*(end.end() for end in _END.finditer(text)), len(text)]:
        piece, seen = text[seen:end], end
        said = said or any(map(str.isalnum, piece))
        if end < len(text) and "\n" not in piece and _SHORT.search(text, max(start - 1, end - SHORT, 0), end):
            continue
        if said:
            whole = text[start:end]
            yield start + len(whole) - len(whole.lstrip()), start + len(whole.rstrip())
            start, said = end, False
