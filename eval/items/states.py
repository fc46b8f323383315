"""Facts to records: what a passage and a model's memory can have to do with each other, one record per state.

Knows strings only. Whether a model knows a fact is probed elsewhere and passed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckcontrol.errors import EvalError, did_you_mean
from ckcontrol.heads.finding.facts import Fact, text_field
from ckcontrol.tables import TableError

from ..metrics import mentions
from ..records import Record, squad, texts

__all__ = ["FIVE", "StateFact", "build_states", "completed", "rank"]

FIVE = ("conflict", "agree", "helpful", "irrelevant", "noisy")


@dataclass(frozen=True)
class StateFact:
    """A fact that can be stated rightly and wrongly.

    Attributes:
        id: Unique among the facts; ``relation/subject`` where the file gives none.
        relation: False answers come from the same relation.
        subject: What the fact is about.
        question: Asks for the answer; the cloze where the file has no question.
        answer: The true answer.
        aliases: Other spellings of it.
        cloze: A text that ends where the answer would begin; may be empty.
        passage: States the fact, with ``{answer}`` in place of the answer.
        false_answers: What `passage` states wrongly, and its aliases; `completed` fills it.
        pool: Narrows the false answers to those of the same pool, such as a continent.
        other: The fact that an irrelevant passage states; `completed` fills it.
        wordings: Further wordings of the question, for screening.
    """

    id: str
    relation: str
    subject: str
    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    cloze: str = ""
    passage: str = ""
    false_answers: tuple[str, ...] = ()
    pool: str = ""
    other: StateFact | None = None
    wordings: tuple[str, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer and its aliases."""
        return tuple(dict.fromkeys((self.answer, *self.aliases)))

    def told(self, answer: str) -> str:
        """Return the passage as it states `answer`."""
        return self.passage.replace("{answer}", answer)

    def asked(self, cloze: bool = False) -> Record:
        """Return the closed-book record that probes whether a model knows the fact; its id is the fact's.

        It asks with the cloze if `cloze` says so, or if the fact has no question.
        """
        complete = bool(self.cloze) and (cloze or self.question == self.cloze)
        text = self.cloze if complete else self.question
        return Record(self.id, text, par_answers=self.answers, state="closed", cloze=complete)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StateFact:
        """Return the fact of one line of a facts file: the format of `ckcontrol heads`, and `pool`, `false_answer`.

        Needed are relation, subject, answer, and a question or a cloze; ``wordings`` repeat the question. The
        passage is `context_template` with ``{subject}`` and ``{answer}``, otherwise the cloze and the answer.

        Raises:
            EvalError: A field is missing or not a text, or the passage names the answer before it is filled in.

        Example:
            >>> line = {"relation": "r", "subject": "Oslo", "answer": "Norway", "cloze": "The city of Oslo is in"}
            >>> fact = StateFact.from_dict(line)
            >>> fact.id, fact.told("Chile")
            ('r/Oslo', 'The city of Oslo is in Chile.')
        """
        try:
            fact = Fact.from_dict(data)
            name, pool = text_field(data, "id"), text_field(data, "pool")
        except TableError as error:
            raise EvalError(error.reason, error.hint) from error
        if not (fact.question or fact.cloze):
            raise EvalError("fields 'question' and 'cloze' are missing.", "A fact is asked with one of them.")
        passage = fact.states("{answer}")
        answers = (fact.answer, *fact.aliases)
        if mentions(passage.replace("{answer}", " | "), answers) or mentions(fact.question, answers):
            raise EvalError(f"{fact.answer!r} is in the question or passage of {fact.subject!r}.", "Leave it out.")
        return cls(
            id=name or fact.id,
            relation=fact.relation,
            subject=fact.subject,
            question=fact.question or fact.cloze,
            answer=fact.answer,
            aliases=fact.aliases,
            cloze=fact.cloze,
            passage=passage,
            false_answers=texts(data.get("false_answer"), "false_answer"),
            pool=pool,
            wordings=texts(data.get("wordings"), "wordings"),
        )


def completed(facts: Iterable[StateFact], seed: int = 0) -> list[StateFact]:
    """Return the facts, each with a false answer and a fact that has nothing to do with it; given ones are kept.

    A false answer is one of the same relation (and pool) that neither is part of a true one nor contains one. The
    other fact names neither subject nor answers; it is None if there is no such fact. Both draws depend on which facts
    there are, so complete them before taking a sample, and beyond that on the seed and the fact's id alone.

    Raises:
        EvalError: A relation has no other answer that would be false.
    """
    facts = list(facts)
    ordered = sorted(facts, key=lambda fact: fact.id)
    spellings: dict[tuple[str, str], set[str]] = {}
    for fact in ordered:  # "Franc" is CHF here and XAF there: an alias counts where all facts agree on it
        key = (fact.relation, fact.answer)
        spellings[key] = spellings.get(key, set(fact.aliases)) & set(fact.aliases)
    answers: dict[tuple[str, str], set[str]] = {}
    for fact in ordered:
        for pool in {"", fact.pool}:
            answers.setdefault((fact.relation, pool), set()).add(fact.answer)

    def false_answers(fact: StateFact) -> tuple[str, ...]:
        for pool in dict.fromkeys((fact.pool, "")):
            for answer in sorted(answers[fact.relation, pool], key=lambda answer: rank(seed, fact.id, answer)):
                if _is_false(fact, answer):
                    more = sorted(spellings[fact.relation, answer])
                    return (answer, *(alias for alias in more if _is_false(fact, alias)))
        raise EvalError(
            f"relation {fact.relation!r} has no answer that is false for {fact.subject!r}.",
            "Give the fact a false_answer, or the relation more facts.",
        )

    done = []
    for fact in facts:
        fact = replace(fact, false_answers=fact.false_answers or false_answers(fact))
        done.append(replace(fact, other=fact.other or _elsewhere(fact, ordered, seed)))
    return done


def build_states(
    facts: Sequence[StateFact],
    known: Mapping[str, bool | None] | None = None,
    states: Collection[str] = FIVE,
    seed: int = 0,
    *,
    cloze: bool = False,
) -> list[Record]:
    """Return the records of each fact, in the order of the facts and of `FIVE`.

    A known fact becomes conflict (the passage is wrong), agree (right), irrelevant (about something else) and
    noisy (right and wrong together, in seeded order); an unknown one becomes helpful (right). A fact that has not been
    probed becomes all of them. `ctx_answers` are what the passage gives: in irrelevant, its own answer to another
    question; in noisy, the wrong one.

    Args:
        facts: Those that lack something go through `completed` first.
        known: Fact id to whether the model answers it closed-book; None, or a missing id, means not probed.
        states: Which of `FIVE` to build.
        seed: Draws false answers, irrelevant passages and the order of noisy ones.
        cloze: Ask with the cloze, if there is one, as a text to complete.

    Raises:
        EvalError: An unknown state; no false answer, or no irrelevant passage, among the facts.
    """
    for state in states:
        if state not in FIVE:
            raise EvalError(f"no state {state!r} to build.", did_you_mean(state, FIVE))
    if any(not fact.false_answers or fact.other is None for fact in facts):
        facts = completed(facts, seed)
    records = []
    for fact in facts:
        knows = (known or {}).get(fact.id)
        possible = FIVE if knows is None else ("helpful",) if not knows else tuple(s for s in FIVE if s != "helpful")
        records += [_record(fact, state, knows, seed, cloze) for state in possible if state in states]
    return records


def rank(seed: int, *parts: str) -> str:
    """Return a text to sort by: the order looks random and depends on the seed and the parts alone."""
    return hashlib.sha256("\0".join((str(seed), *parts)).encode()).hexdigest()


def _record(fact: StateFact, state: str, knows: bool | None, seed: int, cloze: bool) -> Record:
    right, wrong = fact.told(fact.answer), fact.told(fact.false_answers[0])
    passages: tuple[str, ...] = (right,)
    answers = fact.answers
    meta: dict[str, Any] = {"fact": fact.id, "relation": fact.relation, "subject": fact.subject, "known": knows}
    if state == "conflict":
        passages, answers = (wrong,), fact.false_answers
    elif state == "noisy":
        first = int(rank(seed, fact.id, state), 16) % 2
        passages, answers = ((right, wrong), (wrong, right))[first], fact.false_answers
    elif state == "irrelevant":
        other = fact.other
        if other is None:
            raise EvalError(f"no passage is irrelevant to {fact.id!r}.", "Add facts of another relation.")
        passages, answers = (other.told(other.answer),), other.answers
        meta["about"] = other.id
    return replace(
        fact.asked(cloze), id=f"{fact.id}/{state}", passages=passages, ctx_answers=answers, state=state, meta=meta
    )


def _elsewhere(fact: StateFact, facts: Sequence[StateFact], seed: int) -> StateFact | None:
    """Return a fact whose passage names neither the subject nor the answers of this one; the search starts anywhere."""
    start = int(rank(seed, fact.id, "irrelevant"), 16) % len(facts)
    unwanted = (fact.subject, *fact.answers, *fact.false_answers)
    for step in range(len(facts)):
        other = facts[(start + step) % len(facts)]
        if other.subject != fact.subject and not mentions(other.told(other.answer), unwanted):
            return other
    return None


def _is_false(fact: StateFact, answer: str) -> bool:
    """Whether no spelling of the truth is part of `answer` or contains it, and the passage does not name it anyway."""
    wrong, right = squad(answer), [squad(a) for a in fact.answers]
    apart = bool(wrong) and not any(wrong in true or true in wrong for true in right if true)
    return apart and not mentions(f"{fact.told(' | ')} {fact.question}", [answer])
