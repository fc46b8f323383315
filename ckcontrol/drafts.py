"""Rows of a batch as drafts: policies that choose between whole answers have several rows a question.

Knows policies, recorded evidence and row numbers; knows no model and no loop (decode.py runs the rows).
"""

from __future__ import annotations

from collections.abc import Sequence

from .policies import AnswerPolicy, Policy, draft_policies, per_row
from .recorder import Recorder
from .trace import Draft

__all__ = ["Drafts"]


class Drafts:
    """What is decoded for some questions, and which row of it each of them is answered with.

    Args:
        policies: One a question.

    Attributes:
        policy: Decides the rows.
        items: Row to question.
        names: Row to what its draft is called.
        made: The drafts of each question, without their texts; set when the loop ends.
    """

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = tuple(policies)
        rows = [(item, *draft) for item, policy in enumerate(policies) for draft in draft_policies(policy).items()]
        self.items = [item for item, _, _ in rows]
        self.names = [name for _, name, _ in rows]
        self.policy = per_row([policy for _, _, policy in rows])
        self.made: list[list[Draft]] = []

    @property
    def several(self) -> bool:
        """Whether any question has more than one row."""
        return len(self.items) > len(self.policies)

    def rows(self, item: int) -> list[int]:
        """Return the rows of a question."""
        return [row for row, of in enumerate(self.items) if of == item]

    def choose(self, recorder: Recorder) -> list[int]:
        """Return the row each question is answered with; keep what was drafted in `made`."""
        chosen, self.made = [], []
        for item, policy in enumerate(self.policies):
            rows = self.rows(item)
            drafts = [recorder.evidence(row) for row in rows]
            several = isinstance(policy, AnswerPolicy) and len(rows) > 1
            given = policy.choose(drafts) if isinstance(policy, AnswerPolicy) and several else 0
            chosen.append(rows[given])
            told = [
                Draft(self.names[row], tuple(recorder.token_ids(row)), each.surprise_ctx, each.surprise_par, i == given)
                for i, (row, each) in enumerate(zip(rows, drafts, strict=True))
            ]
            self.made.append(told if several else [])
        return chosen
