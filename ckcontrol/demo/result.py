"""The demo's records: a question, what was found out about it, the whole result; and the verdict on an answer.

Knows answers and text matching; runs no model and draws nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..answer import Answer

__all__ = ["ALPHAS", "VERDICTS", "DemoResult", "DemoRow", "Item", "judge"]

VERDICTS = ("passage", "memory", "both", "neither")
ALPHAS = tuple(step / 10 for step in range(11))  # where the dial is drawn


@dataclass(frozen=True)
class Item:
    """One question of the demo and what counts as which answer.

    Attributes:
        question: As asked.
        passage_id: The passage written for it.
        truth: The true answer; `truth_aliases` count as well.
        claim: What the passage says; equal to `truth` when the passage is true.
    """

    question: str
    passage_id: str
    truth: str
    claim: str
    truth_aliases: tuple[str, ...] = ()
    claim_aliases: tuple[str, ...] = ()

    @property
    def false(self) -> bool:
        """True when the passage contradicts the truth."""
        return self.claim != self.truth


@dataclass(frozen=True)
class DemoRow:
    """One question with everything that was found out about it.

    Attributes:
        item: The question.
        passage: Text of the passage that retrieval ranked first.
        expected: That passage is the one written for the question.
        closed_book: The answer without any passage, which is the one at alpha 1.
        knows: The closed-book answer names the truth and not the claim.
        answers: One answer per column.
        verdicts: What each answer relied on: one of `VERDICTS`, or ``agrees`` where passage and truth agree.
        dial: The same at each of `ALPHAS`.
    """

    item: Item
    passage: str
    expected: bool
    closed_book: Answer
    knows: bool
    answers: tuple[Answer, ...]
    verdicts: tuple[str, ...]
    dial: tuple[str, ...]

    @property
    def turns(self) -> list[tuple[str, float, float]]:
        """The stretches of the dial on which the verdict stays: verdict, first alpha and last."""
        found: list[tuple[str, float, float]] = []
        for alpha, verdict in zip(ALPHAS, self.dial, strict=True):
            same = found and found[-1][0] == verdict
            found[len(found) - bool(same) :] = [(verdict, found[-1][1] if same else alpha, alpha)]
        return found


@dataclass(frozen=True)
class DemoResult:
    """What one run of the demo found.

    Attributes:
        rows: One per question.
        columns: Names of the settings, in the order of `DemoRow.answers`.
        model: Name of the model.
        corpus_size: Passages in the index.
        seconds: Wall time per stage.
    """

    rows: tuple[DemoRow, ...]
    columns: tuple[str, ...]
    model: str
    corpus_size: int
    seconds: dict[str, float] = field(default_factory=dict)

    def totals(self, rows: Sequence[DemoRow]) -> list[Counter[str]]:
        """Count the verdicts of some rows, per column."""
        return [Counter(row.verdicts[i] for row in rows) for i in range(len(self.columns))]

    def false_rows(self, *, known: bool | None = None) -> list[DemoRow]:
        """Return the rows whose passage is false; with `known`, only those that the model knows, or does not know."""
        return [row for row in self.rows if row.item.false and known in (None, row.knows)]

    def true_rows(self) -> list[DemoRow]:
        """Return the rows whose passage is true."""
        return [row for row in self.rows if not row.item.false]

    def telling(self, count: int = 2) -> list[DemoRow]:
        """Return the rows that show the dial best, where the passage wins at one end and memory at the other."""

        def score(row: DemoRow) -> tuple[bool, bool, bool, int]:
            moved = "memory" in row.verdicts and "passage" in row.verdicts
            return (row.item.false and moved, row.verdicts[0] == "passage", row.knows, _switched(row))

        return sorted(self.rows, key=score, reverse=True)[:count]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, without the per-token records."""
        return {
            "model": self.model,
            "columns": list(self.columns),
            "corpus_size": self.corpus_size,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "rows": [
                {
                    "question": row.item.question,
                    "truth": row.item.truth,
                    "claim": row.item.claim,
                    "passage": row.passage,
                    "expected_passage": row.expected,
                    "closed_book": row.closed_book.text,
                    "knows": row.knows,
                    "dial": {f"{alpha:g}": said for alpha, said in zip(ALPHAS, row.dial, strict=True)},
                    "answers": {
                        name: {"text": answer.text, "relied_on": said, "switched": answer.switched}
                        for name, answer, said in zip(self.columns, row.answers, row.verdicts, strict=True)
                    },
                }
                for row in self.rows
            ],
        }


def _switched(row: DemoRow) -> int:
    return sum(answer.switched for answer in row.answers)


def judge(text: str, item: Item) -> str:
    """Say what an answer relied on, by whole-word mention of the truth and of the claim.

    Returns:
        ``memory`` (names the truth), ``passage`` (names the claim), ``both``, ``neither``; ``agrees`` where
        the passage is true and the answer names it. Mention is all that is tested: "not Lyon" counts as Lyon.
    """
    from ..eval.metrics import mentions

    truth = mentions(text, [item.truth, *item.truth_aliases])
    if not item.false:
        return "agrees" if truth else "neither"
    claim = mentions(text, [item.claim, *item.claim_aliases])
    return {(1, 0): "memory", (0, 1): "passage", (1, 1): "both", (0, 0): "neither"}[truth, claim]
