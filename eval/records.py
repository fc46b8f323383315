"""One item of a benchmark, what was rejected, and when a conflict is clean enough to be scored.

Knows strings only; knows no file, no data set and no model (items/readers.py, tasks/ and running/ do).
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckcontrol import tables
from ckcontrol.errors import EvalError, did_you_mean

from .metrics import mentions, normalize

__all__ = ["STATES", "Record", "Rejected", "by_row", "squad", "texts", "unclean"]

STATES = ("conflict", "agree", "helpful", "irrelevant", "noisy", "closed", "plain")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Rejected:
    """A row that did not become a record.

    Attributes:
        id: The record's id, or file and row where there is none.
        reason: A few words, the same for all rows with the same fault, since rejections are counted by it.
        detail: What is wrong with this row.
    """

    id: str
    reason: str
    detail: str = ""

    @property
    def told(self) -> str:
        """A line for whoever wrote the file: which row, counted from 1, or else the record's id; and what is wrong.

        Example:
            >>> Rejected("q.jsonl:12", "malformed", "it is not JSON").told, Rejected("7", "id given twice").told
            ('q.jsonl, row 13: it is not JSON', '7: id given twice')
        """
        if self._row is not None:
            file, number = self._row
            return f"{file}, row {number + 1}: {self.detail or self.reason}"
        return f"{self.id}: {self.reason}{self.detail and f' ({self.detail})'}"

    @property
    def _row(self) -> tuple[str, int] | None:
        file, _, number = self.id.rpartition(":")
        return (file, int(number)) if self.reason == "malformed" and number.isdecimal() else None


def by_row(*rejected: Sequence[Rejected]) -> list[Rejected]:
    """Return what several readings of the same files rejected, malformed rows first and in the order of the files."""
    each = (one for some in rejected for one in some)
    return sorted(each, key=lambda one: (one._row is None, one._row or ("", 0)))


@dataclass(frozen=True)
class Record:
    """A question, what the passages say and what is true.

    Attributes:
        id: Unique in its task.
        question: What is asked; the text to complete, when `cloze`.
        passages: The context; empty means closed book.
        ctx_answers: What the passages support, aliases included.
        par_answers: The real-world answer, aliases included; in state conflict also the model's memory.
        state: One of `STATES`; "plain" claims nothing.
        group: What intervals are clustered by; the normalised question when left empty.
        choices: If there are any, they are scored by log-likelihood as they are, leading space included.
        answer_index: Which of `choices` is wanted.
        cloze: `question` is a text to complete.
        meta: Whatever else the source says, JSON values only: relation, org_context, known, ...

    Raises:
        EvalError: A field of another type, an unknown state, or an `answer_index` without its choice.

    Example:
        >>> Record("1", "Where is Oslo?", ("Oslo is in Chile.",), ("Chile",), ("Norway",)).group
        'where is oslo'
    """

    id: str
    question: str
    passages: tuple[str, ...] = ()
    ctx_answers: tuple[str, ...] = ()
    par_answers: tuple[str, ...] = ()
    state: str = "conflict"
    group: str = ""
    choices: tuple[str, ...] = ()
    answer_index: int | None = None
    cloze: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("id", "question"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise EvalError(f"{name}={value!r} is not a text, or is empty.", "Every record needs one.")
        for name in ("ctx_answers", "par_answers"):
            object.__setattr__(self, name, texts(getattr(self, name), name))
        for name in ("passages", "choices"):  # twice the same passage is two passages
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v.strip() for v in value):
                raise EvalError(f"{name}={str(value)[:80]!r} is not a list of texts.", "None of them may be empty.")
            object.__setattr__(self, name, tuple(value))
        if self.state not in STATES:
            raise EvalError(f"no state {self.state!r}.", did_you_mean(str(self.state), STATES))
        index = self.answer_index
        if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
            raise EvalError(f"answer_index={index!r} is not a whole number.", "It counts the choices from 0.")
        if index is not None and not 0 <= index < len(self.choices):
            raise EvalError(f"answer_index={index} is not one of {len(self.choices)} choices.", "It counts from 0.")
        if not isinstance(self.meta, Mapping):
            raise EvalError(f"meta={self.meta!r} is not a mapping.", "Write an object, or leave it out.")
        if not self.group:
            object.__setattr__(self, "group", normalize(self.question) or self.id)

    @property
    def context(self) -> str:
        """The passages, separated by blank lines."""
        return "\n\n".join(self.passages)

    def to_dict(self) -> dict[str, Any]:
        """Return the canonical record: what is neither a text nor an answer goes into `meta`; defaults are left out.

        Example:
            >>> Record("1", "Where is Oslo?", ("Oslo is in Chile.",), ("Chile",), ("Norway",)).to_dict()["meta"]
            {'state': 'conflict'}
        """
        meta: dict[str, Any] = {**self.meta, "state": self.state}
        if len(self.passages) > 1:
            meta["docs"] = list(self.passages)
        if self.group != normalize(self.question):
            meta["group"] = self.group
        if self.choices:
            meta["choices"] = list(self.choices)
        if self.answer_index is not None:
            meta["answer_index"] = self.answer_index
        if self.cloze:
            meta["cloze"] = True
        return {
            "id": self.id,
            "question": self.question,
            "context": self.context,
            "ctx_answers": list(self.ctx_answers),
            "par_answers": list(self.par_answers),
            "meta": meta,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Return the record that a canonical object describes; keys beside the canonical ones are ignored.

        A text stands for a list of one, null for none. Without `meta.state`, a record with both kinds of answers
        and a context is a conflict, one without context is closed, any other is plain.

        Raises:
            EvalError: A field is missing or of another type, or `context` is not what `meta.docs` says.
        """
        if not isinstance(data, Mapping):
            raise EvalError(f"{type(data).__name__} is not a record.", "Write one JSON object per line.")
        meta = dict(data.get("meta") or {}) if isinstance(data.get("meta") or {}, Mapping) else None
        if meta is None:
            raise EvalError(f"meta={data['meta']!r} is not an object.", "Write an object, or leave it out.")
        context = data.get("context") or ""
        if not isinstance(context, str):
            raise EvalError(f"context={context!r} is not a text.", "Lists of documents go to meta.docs.")
        docs = meta.pop("docs", None) or ()
        passages = docs or ((context,) if context.strip() else ())
        if (
            isinstance(docs, list)
            and all(isinstance(doc, str) for doc in docs)
            and context
            and docs
            and context.split() != "\n\n".join(docs).split()
        ):
            raise EvalError("context is not meta.docs joined by blank lines.", "Leave out one of the two.")
        ctx, par = texts(data.get("ctx_answers"), "ctx_answers"), texts(data.get("par_answers"), "par_answers")
        both = "conflict" if ctx and par else "plain"
        number = data.get("id")
        return cls(
            id=str(number) if isinstance(number, int) else number,  # type: ignore[arg-type]
            question=data.get("question"),  # type: ignore[arg-type]
            passages=passages,
            ctx_answers=ctx,
            par_answers=par,
            state=meta.pop("state", None) or (both if passages or meta.get("choices") else "closed"),
            group=meta.pop("group", None) or "",
            choices=meta.pop("choices", None) or (),
            answer_index=meta.pop("answer_index", None),
            cloze=bool(meta.pop("cloze", False)),
            meta=meta,
        )


def texts(value: Any, name: str = "answers") -> tuple[str, ...]:
    """Return the texts that a field holds, each once: a text or a number stands for a list of one, null for none.

    Nothing is stripped; blank texts are left out.

    Raises:
        EvalError: Neither a text, a number nor a flat list of them.

    Example:
        >>> texts("23"), texts(["a", None, 23, "a"]), texts(None)
        (('23',), ('a', '23'), ())
    """
    try:
        return tables.texts(value, name)
    except tables.TableError as error:
        raise EvalError(error.reason, error.hint) from error


def squad(text: str) -> str:
    """Return `text` as SQuAD's scorer normalises it (Rajpurkar et al., 2016): no case, punctuation, articles, gaps.

    Example:
        >>> squad("The U.S. took São-Tomé.")
        'us took sãotomé'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def unclean(record: Record, by: str = "substring", supported: bool = True) -> tuple[str, str] | None:
    """Return why this conflict cannot be scored, as (reason, detail); None if it can, or is not a conflict.

    Unclean: an answer of one side contains one of the other; the parametric answer is in the context; the
    contextual one is not. Records with choices are compared by likelihood, so nothing is wrong with them.

    Args:
        record: Of any state; only conflict and irrelevant can be unclean.
        by: "substring" after `squad`, the definition behind published counts, or "words": whole words after
            `ckcontrol.eval.normalize`, for answers so short that they are part of every text.
        supported: The context must state the contextual answer; False where that takes more than one step.

    Raises:
        EvalError: An unknown `by`.
    """
    if by not in ("substring", "words"):
        raise EvalError(f"no comparison {by!r}.", did_you_mean(by, ("substring", "words")))
    if record.choices or record.state not in ("conflict", "irrelevant"):
        return None
    holds = mentions if by == "words" else _holds_substring
    if record.state == "conflict":
        if not record.ctx_answers:
            return "no contextual answer", ""
        if not record.par_answers:
            return "no parametric answer", ""
        for ctx in record.ctx_answers:
            for par in record.par_answers:
                if holds(ctx, [par]) or holds(par, [ctx]):
                    return "answers overlap", f"{ctx!r} and {par!r}"
    found = [par for par in record.par_answers if holds(record.context, [par])]
    if found:
        return "parametric answer in context", repr(found[0])
    if record.state == "conflict" and supported and not holds(record.context, record.ctx_answers):
        return "contextual answer not in context", repr(record.ctx_answers[0])
    return None


def _holds_substring(text: str, answers: Iterable[str]) -> bool:
    inside = squad(text)
    return any(wanted in inside for wanted in map(squad, answers))
