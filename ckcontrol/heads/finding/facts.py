"""Facts: what a facts file may say, the sentences and prompts that put a fact into words, and whether a text states it.

Knows files and strings; knows no tokenizer and no model (conflict_prompts.py does).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import tables
from ...errors import HeadsError, did_you_mean
from ...tables import TableError

__all__ = ["FORMATS", "Fact", "contains", "find_words", "read_facts", "text_field"]

FORMATS = ("substitution", "coherent", "qa")
NEEDED = ("relation", "subject", "answer")
MOST_BYTES = 1_000_000_000  # of a facts file, unpacked


@dataclass(frozen=True)
class Fact:
    """One row of a facts file.

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

    @classmethod
    def from_dict(cls, data: Any) -> Fact:
        """Return the fact of one row of a facts file; `ckcontrol heads` and `ckcontrol eval` both read with it.

        Needed are relation, subject, answer, and a cloze or a context_template; other keys are ignored.

        Raises:
            TableError: Not a mapping, a field is missing or not a text, or the template has no place for the answer.
        """
        if not isinstance(data, Mapping):
            raise TableError(f"{type(data).__name__} is not a fact.", "Write one JSON object per line.")
        given = {key: text_field(data, key) for key in (*NEEDED, "cloze", "context_template", "question")}
        for key in NEEDED:
            if not given[key]:
                raise TableError(f"field {key!r} is missing.", "A fact has relation, subject and answer.")
        template = given["context_template"]
        if "{answer}" not in template and (template or not given["cloze"]):
            what = f"context_template={template!r} has no {{answer}}."
            raise TableError(what, "Add it, or leave the template out and give a cloze.")
        aliases = tuple(alias.strip() for alias in tables.texts(data.get("aliases"), "aliases"))
        return cls(**given, aliases=aliases)


def read_facts(path: str | Path, relations: Iterable[str] = ()) -> list[Fact]:
    """Read a facts file: JSON lines, a JSON list, CSV or Parquet, each row as `Fact.from_dict` reads it, with a cloze.

    `relations` keeps only the relations named, in the order of the file.

    Raises:
        HeadsError: Unreadable or in no known format; a row that is no fact; a cloze without its subject; a relation the
            file lacks.
        MissingExtra: It is Parquet and pyarrow is not installed.
    """
    facts = []
    try:
        data = Path(path).read_bytes()
        rows = list(tables.rows(data, str(path), MOST_BYTES))
    except OSError as error:
        raise HeadsError(f"facts file {str(path)!r} cannot be read: {error.strerror}.", "Check the path.") from error
    except TableError as error:
        raise HeadsError(f"facts file {str(path)!r} {error.reason}", error.hint) from error
    for row in rows:
        where = f"{path}, {'line' if data.lstrip()[:1] == b'{' else 'row'} {row.number}"
        if row.error:
            raise HeadsError(f"{where} {row.error.reason}", row.error.hint) from row.error
        try:
            fact = Fact.from_dict(row.data)
        except TableError as error:
            raise HeadsError(f"{where}: {error.reason}", error.hint) from error
        if not fact.cloze:
            raise HeadsError(f"{where}: field 'cloze' is missing.", "It is the text that ends where the answer begins.")
        if find_words(fact.cloze, fact.subject) is None:
            raise HeadsError(f"{where}: the cloze does not name {fact.subject!r}.", "Corrupted prompts need it there.")
        facts.append(fact)
    known = sorted({fact.relation for fact in facts})
    chosen = list(relations) or known
    for name in chosen:
        if name not in known:
            raise HeadsError(f"no relation {name!r} in {path}.", did_you_mean(name, known))
    return [fact for fact in facts if fact.relation in chosen]


def text_field(data: Mapping[str, Any], key: str) -> str:
    """Return a field of a row without the white space around it; empty where it is missing or null.

    Raises:
        TableError: Not a text.
    """
    value = data.get(key)
    if not isinstance(value, (str, type(None))):
        raise TableError(f"field {key!r} is {value!r}, not a text.", "Leave it out or write a text.")
    return (value or "").strip()


def contains(text: str, spellings: Iterable[str]) -> bool:
    """Whether one of the spellings occurs in the text as whole words, in upper or lower case."""
    return any(find_words(text, spelling) for spelling in spellings)


def find_words(text: str, words: str) -> re.Match[str] | None:
    """The first place where a text has these words, as whole words, in upper or lower case."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE)
