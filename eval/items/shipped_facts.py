"""The shipped capitals: one fact per country, with a passage that is true and one that is false.

Plain data; knows no model and no metric. Origin and changes are stated in NOTICE.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["Capital", "load_capitals"]


@dataclass(frozen=True)
class Capital:
    """A country's capital, and one passage that states it rightly and wrongly. Public as `ckcontrol.eval.Fact`.

    Attributes:
        subject: The country, without article.
        question: Asks for the capital.
        answer: The capital, in ASCII.
        aliases: Other spellings of the answer.
        false_answer: The capital of another country on the same continent.
        passage_true: States `answer`.
        passage_false: The same words with `false_answer`.
    """

    subject: str
    question: str
    answer: str
    aliases: tuple[str, ...]
    false_answer: str
    passage_true: str
    passage_false: str

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer and its aliases."""
        return (self.answer, *self.aliases)


def load_capitals() -> list[Capital]:
    """Return the capitals in the order of their file, alphabetical by country.

    Example:
        >>> facts = load_capitals()
        >>> facts[0].question, facts[0].answer, facts[0].false_answer
        ('What is the capital of Afghanistan?', 'Kabul', 'Pyongyang')
    """
    text = (files("ckcontrol.eval") / "data" / "capitals.jsonl").read_text(encoding="utf-8")
    records = (json.loads(line) for line in text.splitlines())
    return [Capital(**{**record, "aliases": tuple(record["aliases"])}) for record in records]
