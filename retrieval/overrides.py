"""Overrides: facts that outrank passages and memory where a question asks for them, and change nothing elsewhere.

What WISE (Wang et al., arXiv 2405.14768) wants of an edit memory (reliable, general, local), without weights. A fact is
in scope when its subject's name stands in the question, whole, the rest of the question is near what is asked of the
subject, and the answer is of the kind that an English "when" or "how many" asks for. Knows facts, questions and an
embedder; what is done with a fact in scope is the caller's.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckcontrol import tables
from ckcontrol.errors import RetrievalError
from ckcontrol.word_spans import mentions, wanted
from ckcontrol.words import UNSPACED, words_of

from .types import Hit, Passage, check_floor
from .where import Condition, is_text, parse_where, passing

if TYPE_CHECKING:
    from .embed import TextEncoder

__all__ = ["NEAR", "Override", "Overrides", "hit_of", "read_overrides"]

NEAR = 0.56  # least cosine of the rest of a question with a prompt's; chosen by benchmarks/overrides.py, demo embedder
LIMIT = 50_000_000  # bytes of a file
TEXT_LIMIT = 4_000  # characters of each text: a statement is a passage, and stands in the prompt whole
REMEMBERED = 4_096  # texts whose vectors are kept
FIELDS = ("id", "subject", "relation", "prompt", "question", "prompts", "answer", "statement", "metadata")
NUMBER = re.compile(r"\W*(when|how (many|much|old|long|far|large|big|tall|high))\b", re.IGNORECASE)  # asks for one
LINK = r"(?:(?:of|and|for|de|del|di|da|von|van)[ \t]+)?"  # inside a name
AHEAD = re.compile(rf"(\w+)[ \t-]+{LINK}(?:the[ \t]+)?$")
BEHIND = re.compile(rf"[ \t-]+{LINK}(\w+)")


@dataclass(frozen=True)
class Override:
    """One fact that outranks what else is known.

    Attributes:
        id: Names it in replies; unique in its store.
        subject: Whom or what it is about, as questions name it; "": only the very words of a prompt ask for it.
        prompts: What asks for it: questions, or beginnings of sentences.
        statement: What is the case, as a sentence: the passage that the answer is steered towards.
        answer: The answer alone; "" where the statement says it all.
        metadata: What `where` filters on, as in a passage; a request with a filter that it does not meet never sees it.
    """

    id: str
    subject: str
    prompts: tuple[str, ...]
    statement: str
    answer: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def said_in(self, text: str) -> bool:
        """Whether a text has the answer, in the normalisation of verdicts; True where there is no answer to look for.

        Example:
            >>> fact = Override("price", "Basic plan", ("What is its price?",), "It costs 12 euros.", "12 euros")
            >>> fact.said_in("It is €12 a month."), fact.said_in("It is 10 euros.")
            (True, False)
        """
        return not wanted(self.answer) or mentions(text, self.answer)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values, which `read_overrides` reads back."""
        data = {**asdict(self), "prompts": list(self.prompts), "metadata": dict(self.metadata)}
        return data if self.metadata else {name: value for name, value in data.items() if name != "metadata"}


def read_overrides(source: str | PathLike[str] | Iterable[Mapping[str, Any] | Override]) -> list[Override]:
    """Read a file (.jsonl, .json, .csv, .tsv, .parquet), or records, of overrides.

    A record has ``answer`` or ``statement``, and ``prompt`` (or ``question``, or a list ``prompts``), or ``subject``
    and ``relation``, which together are a prompt; ``subject`` beside a prompt lets other wordings ask for it; ``id``
    names it, else ``override <number>``. A missing statement is made of the prompt and the answer.

    Raises:
        RetrievalError: Not such a record (its line is named), two of one id, or two that answer the same differently.
    """
    rows: list[tuple[str, Any, Any]]
    if isinstance(source, (str, PathLike)):
        name = fspath(source)
        try:
            with Path(name).open("rb") as file:
                data = file.read(LIMIT + 1)
        except OSError as error:
            raise RetrievalError(f"{name!r} cannot be read: {error.strerror or error}.", "Name a file.") from error
        if len(data) > LIMIT:
            raise RetrievalError(f"{name!r} is larger than {LIMIT // 1_000_000} MB.", "Overrides are few: trim it.")
        try:
            rows = [(f"{name} record {row.number}", row.data, row.error) for row in tables.rows(data, name, LIMIT)]
        except tables.TableError as error:
            raise RetrievalError(f"{name}: {error.reason}", error.hint) from error
    else:
        rows = [(f"override {number}", record, None) for number, record in enumerate(source, 1)]
    found: list[Override] = []
    ids: dict[str, str] = {}
    said: dict[tuple[str, str], tuple[str, str]] = {}
    for number, (place, record, broken) in enumerate(rows, 1):
        if broken is not None:
            raise RetrievalError(f"{place}: {broken.reason}", broken.hint)
        fact = record if isinstance(record, Override) else _fact(place, number, record)
        if fact.id in ids:
            raise RetrievalError(f"{place}: {ids[fact.id]} has the id {fact.id!r} too.", "Give each its own.")
        ids[fact.id] = place
        for prompt in fact.prompts:
            asked = " ".join(words_of(prompt)), json.dumps(dict(fact.metadata), sort_keys=True)
            before, statement = said.setdefault(asked, (place, fact.statement))
            if statement != fact.statement:
                what = f"{place} and {before} say different things of {prompt!r:.80}."
                raise RetrievalError(what, "Keep the one that holds.")
        found.append(fact)
    return found


def _fact(place: str, number: int, record: Any) -> Override:
    if not isinstance(record, Mapping):
        raise RetrievalError(
            f"{place} is {type(record).__name__}, not an object.", 'Like {"prompt": ..., "answer": ...}'
        )
    given = {str(name): value for name, value in record.items() if value not in (None, "", [], ())}
    metadata = given.pop("metadata", {})
    if not isinstance(metadata, Mapping) or not all(
        is_text(name) and (is_text(value) or (isinstance(value, (int, float)) and isfinite(value)))
        for name, value in metadata.items()
    ):
        raise RetrievalError(
            f"{place}: metadata is {metadata!r:.60}, not names and values.", "Like {'tenant': 'a'}: texts and numbers."
        )
    for name, value in given.items():
        if name not in FIELDS:
            raise RetrievalError(f"{place}: the field {name!r:.60} is unknown.", f"Known are {', '.join(FIELDS)}.")
        texts = value if name == "prompts" else [str(value)] if isinstance(value, (int, float)) else [value]
        if not isinstance(texts, (list, tuple)) or not all(is_text(text) and text.strip() for text in texts):
            raise RetrievalError(f"{place}: {name} is {value!r:.60}, not text.", "Give a text, for prompts a list.")
        if max(map(len, texts)) > TEXT_LIMIT:
            raise RetrievalError(f"{place}: {name} has more than {TEXT_LIMIT:,} characters.", "A fact is short.")
        given[name] = [" ".join(text.split()) for text in texts]
    one = {name: texts[0] for name, texts in given.items()}
    subject, answer = one.get("subject", ""), one.get("answer", "")
    prompts = [*given.get("prompt", ()), *given.get("question", ()), *given.get("prompts", ())]
    if subject and "relation" in one:
        prompts.append(f"{subject} {one['relation']}")
    if not prompts:
        raise RetrievalError(f"{place} does not say what asks for it.", "Give prompt, or subject and relation.")
    if not answer and "statement" not in one:
        raise RetrievalError(f"{place} has neither answer nor statement.", "Say what holds.")
    first = prompts[0]
    said = f"{first} {answer}" if first.endswith("?") else f"{first.rstrip(' .:')} {answer.rstrip(' .')}."
    return Override(
        one.get("id", f"override {number}"),
        subject,
        tuple(dict.fromkeys(prompts)),
        one.get("statement", said),
        answer,
        dict(metadata),
    )


def hit_of(fact: Override, score: float) -> Hit:
    """Return an override as what was found, in the place of everything else."""
    return Hit(_passage(fact), score, 1)


def _passage(fact: Override) -> Passage:
    return Passage(fact.id, fact.statement, "override", {**fact.metadata, "override": True})


class Overrides:
    """A store of overrides that questions can be asked of. Searching is safe from many threads.

    A question costs nothing but a look at its words unless a subject stands in it; then it and the prompts of that
    subject are embedded.

    Args:
        facts: The overrides, or what `read_overrides` takes.
        embedder: An `Embedder`, or anything with its `encode`.
        near: The least cosine, between 0 and 1: that of the demo embedder by default, which was measured.

    Raises:
        RetrievalError: As for `read_overrides`.
    """

    def __init__(self, facts: Any, embedder: TextEncoder, *, near: float = NEAR) -> None:
        check_floor(near)
        self.facts: tuple[Override, ...] = tuple(read_overrides(facts))
        self.near = near
        self._embedder = embedder
        self._vectors: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._exact: dict[str, list[Override]] = {}
        self._subjects: dict[str, dict[str, list[Override]]] = {}  # first word -> subject -> its facts
        for fact in self.facts:
            for prompt in fact.prompts:
                self._exact.setdefault(" ".join(words_of(prompt)), []).append(fact)
            if words := words_of(fact.subject):
                self._subjects.setdefault(words[0], {}).setdefault(fact.subject, []).append(fact)

    def __len__(self) -> int:
        """Count the overrides."""
        return len(self.facts)

    def find(
        self, questions: Sequence[str], where: Mapping[str, Any] | None = None
    ) -> list[tuple[Override, float] | None]:
        """Return for each question the override that it asks for, and how near it is; None where there is none.

        A question in the very words of a prompt has nearness 1. Of several facts the nearest counts, of names inside
        names ("Windows" in "Windows 98") the longest.

        Args:
            questions: Texts.
            where: Filters as in `Index.search`: facts that do not meet it are not there. One without the metadata
                that is asked for does not.

        Raises:
            RetrievalError: A bad filter.
        """
        conditions = parse_where(where)
        return [self._find(question, conditions) for question in questions]

    def _find(self, question: str, conditions: tuple[Condition, ...]) -> tuple[Override, float] | None:
        words = words_of(question)
        if not words:
            return None
        for fact in _meeting(self._exact.get(" ".join(words), ()), conditions):
            return fact, 1.0
        named: list[tuple[str, int, int, list[Override]]] = []
        for word in dict.fromkeys(words):
            for subject, every in self._subjects.get(word, {}).items():
                facts = _meeting(every, conditions)
                if not facts:
                    continue
                known = {word for fact in facts for prompt in fact.prompts for word in words_of(prompt)}
                for start, end in _places(subject, question, known):
                    named.append((subject, start, end, facts))
        best: tuple[Override, float] | None = None
        for _, start, end, facts in named:
            if any(s <= start and end <= e and (s, e) != (start, end) for _, s, e, _ in named):
                continue
            rest = f"{question[:start]} {question[end:]}"
            for fact in facts:
                if NUMBER.match(question) and not any(c.isnumeric() for c in fact.answer or fact.statement):
                    continue  # "When was she born?" is as near to "was born in" as "Where was she born?"
                score = self._nearness(rest, fact)
                if score >= self.near and (best is None or score > best[1]):
                    best = fact, score
        return best

    def _nearness(self, rest: str, fact: Override) -> float:
        """Return the cosine of what is left of a question without the name, with the nearest of the fact's prompts."""
        asked = [" ".join(rest.split()), *(_without(fact.subject, prompt) for prompt in fact.prompts)]
        if not words_of(asked[0]):
            return -1.0
        vectors = self._embed([text for text in asked if text])
        return float(max((vectors[text] @ vectors[asked[0]] for text in asked[1:] if text), default=-1.0))

    def _embed(self, texts: list[str]) -> dict[str, Any]:
        with self._lock:
            known = {text: self._vectors[text] for text in texts if text in self._vectors}
        fresh = [text for text in dict.fromkeys(texts) if text not in known]
        if fresh:
            import numpy as np

            rows = np.asarray(self._embedder.encode(fresh, query=True), np.float32)
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            known |= dict(zip(fresh, rows, strict=True))
            with self._lock:
                if len(self._vectors) + len(fresh) > REMEMBERED:
                    self._vectors.clear()
                self._vectors |= {text: known[text] for text in fresh}
        return known


def _meeting(facts: Sequence[Override], conditions: tuple[Condition, ...]) -> list[Override]:
    kept = passing([_passage(fact) for fact in facts], conditions)
    return [fact for fact, meets in zip(facts, kept, strict=True) if meets]


def _places(name: str, question: str, known: Collection[str]) -> list[tuple[int, int]]:
    """Return where a name stands in a question, whole: not in a word, nor in what may be a longer name.

    "Windows" does not stand in "Windows 98", nor "York" in "New York", nor "Italy" in "the Kingdom of Italy": a word
    with a capital or a digit stands beside it, and is none of `known`, those that the subject's prompts have. The first
    word of a question has its capital for another reason.
    """
    before = "" if UNSPACED.match(name[0]) else r"(?<!\w)"
    after = "" if UNSPACED.match(name[-1]) else r"(?!\w)"
    pattern = r"\s+".join(map(re.escape, name.split()))
    found = []
    for match in re.finditer(f"{before}{pattern}{after}", question, re.IGNORECASE):
        ahead = AHEAD.search(question[: match.start()])
        beside = [] if ahead is None or (ahead.start() == 0 and question.endswith("?")) else [ahead[1]]
        behind = BEHIND.match(question, match.end())
        beside += [behind[1]] if behind else []
        if not any((word[0].isupper() or word[0].isdigit()) and word.lower() not in known for word in beside):
            found.append(match.span())
    return found


def _without(name: str, prompt: str) -> str:
    for start, end in reversed(_places(name, prompt, words_of(prompt)) if name else []):
        prompt = f"{prompt[:start]} {prompt[end:]}"
    return " ".join(prompt.split())
