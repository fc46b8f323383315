"""Facts: what a facts file may say, the sentences and prompts that put a fact into words, and whether a text states it.

Knows files and strings; knows no tokenizer and no model (conflict_prompts.py does).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import HeadsError, did_you_mean

__all__ = ["FORMATS", "Fact", "contains", "find_words", "read_facts"]

FORMATS = ("substitution", "coherent", "qa")


@dataclass(frozen=True)
class Fact:
    """One line of a facts file.

    Attributes:
        relation: What the fact is about; false answers come from the same relation.
        subject: As written in `cloze`, in either case.
        answer: The true answer.
        cloze: A text that names the subject and ends where the answer would begin.
        aliases: Other spellings of the answer.
        context_template: A sentence with ``{subject}`` and ``{answer}``; by default the cloze and the answer.
        question: Asks for the answer; a fact without one has no qa and no coherent prompt.
    """

    relation: str
    subject: str
    answer: str
    cloze: str
    aliases: tuple[str, ...] = ()
    context_template: str = ""
    question: str = ""

    @property
    def id(self) -> str:
        """``relation/subject``."""
        return f"{self.relation}/{self.subject}"

    @property
    def surface(self) -> str:
        """The subject as the cloze writes it."""
        found = find_words(self.cloze, self.subject)
        return found.group() if found else self.subject

    @property
    def spellings(self) -> tuple[str, ...]:
        """The answer, its aliases, and the answer in lower case."""
        return tuple(dict.fromkeys((self.answer, *self.aliases, self.answer.lower())))

    def states(self, answer: str) -> str:
        """The sentence that says `answer` of this subject."""
        template = self.context_template or f"{self.cloze} {{answer}}."
        return template.replace("{subject}", self.surface).replace("{answer}", answer)

    def prompt(self, form: str, answer: str) -> str:
        """A prompt in one of `FORMATS` whose context says `answer` of this subject."""
        stated = self.states(answer)
        if form == "substitution":
            return f"{stated} {self.cloze}"
        if form == "coherent":
            return (
                f"{stated} Several reference works agree on this point. Visitors who ask about {self.surface} are told "
                f"about {answer}, and {answer} is what the latest editions print.\n"
                f"Question: {self.question}\nAnswer: {self.cloze}"
            )
        if form == "qa":
            return f"{stated}\nQuestion: {self.question}\nAnswer:"
        raise HeadsError(f"no prompt format {form!r}.", did_you_mean(form, FORMATS))


def read_facts(path: str | Path, relations: Iterable[str] = ()) -> list[Fact]:
    """Read a facts file: JSON lines with the fields of `Fact`; those without a default must be present.

    Other keys are ignored. `relations` keeps only the relations named, in the order of the file.

    Raises:
        HeadsError: Unreadable or not JSON; a missing key; a cloze without its subject; a relation the file lacks.
    """
    facts = []
    names = {f.name for f in fields(Fact)}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HeadsError(f"facts file {str(path)!r} cannot be read: {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            data = json.loads(line)
        except ValueError as error:
            raise HeadsError(f"{where} is not JSON: {error}.", "Write one JSON object per line.") from error
        needed = ("relation", "subject", "answer", "cloze")
        if not isinstance(data, dict) or not all(isinstance(data.get(k), str) and data[k].strip() for k in needed):
            raise HeadsError(f"{where} lacks one of {', '.join(needed)}.", "Each must be a text that is not empty.")
        spelled = data.get("aliases", [])
        if not isinstance(spelled, list) or not all(isinstance(s, str) and s.strip() for s in spelled):
            raise HeadsError(f"{where}: aliases={spelled!r} is not a list of texts.", 'For example: ["USA", "U.S."]')
        for key in ("context_template", "question"):
            if not isinstance(data.get(key, ""), str):
                raise HeadsError(f"{where}: {key}={data[key]!r} is not a text.", "Leave it out or write a text.")
        values: dict[str, Any] = {key: value for key, value in data.items() if key in names}
        fact = Fact(**{**values, "aliases": tuple(spelled)})
        if find_words(fact.cloze, fact.subject) is None:
            raise HeadsError(f"{where}: the cloze does not name {fact.subject!r}.", "Corrupted prompts need it there.")
        facts.append(fact)
    known = sorted({fact.relation for fact in facts})
    chosen = list(relations) or known
    for name in chosen:
        if name not in known:
            raise HeadsError(f"no relation {name!r} in {path}.", did_you_mean(name, known))
    return [fact for fact in facts if fact.relation in chosen]


def contains(text: str, spellings: Iterable[str]) -> bool:
    """Whether one of the spellings occurs in the text as whole words, in upper or lower case."""
    return any(find_words(text, spelling) for spelling in spellings)


def find_words(text: str, words: str) -> re.Match[str] | None:
    """The first place where a text has these words, as whole words, in upper or lower case."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE)
