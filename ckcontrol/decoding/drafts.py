"""Rows of a batch as drafts: policies that choose between whole answers have several rows per question.

Knows policies, recorded evidence and row numbers; knows no model and no loop (loop.py runs the rows). A row of the
batch is a draft; as long as the drafts of every question begin alike, the streams hold one row per question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..answer import Draft
from ..errors import ControlError
from ..policies import AnswerPolicy, Evidence, Policy, draft_policies, per_row, read_drafts
from ..policies.idle_drafts import first_sentence_so_far, nothing_to_add
from .recorder import Recorder
from .segments import segment, segmented

__all__ = ["Beginnings", "Drafts", "Hopeless", "choose"]


class Drafts:
    """What is decoded for a batch of questions, and the row that each of them is answered with.

    Args:
        policies: One per question.
        questions: Their texts, which a draft is compared with; none where there are only ids.
        read: Ids of an answer to its text; None where there are only ids.
        passages: Of each question, likewise; none where they are not known.
        alone: Reads the drafts of a question after its passages without the question, see `inputs.passages_alone`;
            None where that cannot be done, and no policy needs it.

    Attributes:
        policy: Decides the rows.
        each: Row to the policy that decides it.
        items: Row to question.
        names: Row to what its draft is called.
        tells: Question to whether its policy tells which drafts can no longer be given.
        stopped: Rows whose drafts are not whole: they were stopped when they could no longer be given.
        made: The drafts of each question, without their texts; set when the loop ends.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        questions: Sequence[str] = (),
        read: Callable[[Sequence[int]], str] | None = None,
        passages: Sequence[Sequence[str]] = (),
        alone: Callable[[int, Sequence[Sequence[int]]], list[list[float]]] | None = None,
    ) -> None:
        self.policies, self._questions, self._passages, self._read = tuple(policies), questions, passages, read
        self._alone = alone
        rows = [(item, *draft) for item, policy in enumerate(policies) for draft in draft_policies(policy).items()]
        self.items = [item for item, _, _ in rows]
        self.names = [name for _, name, _ in rows]
        self.each = [policy for _, _, policy in rows]
        self.policy = per_row(self.each)
        self.stopped: set[int] = set()
        self.made: list[list[Draft]] = []
        self.tells = [_may_stop(policy) for policy in self.policies]
        self._settled: dict[tuple[int, bool], bool] = {}

    @property
    def several(self) -> bool:
        """Whether any question has more than one row."""
        return len(self.items) > len(self.policies)

    def only(self, items: Sequence[int]) -> Drafts:
        """Return the drafts of these questions, which go by their place in `items` there."""
        alone = self._alone
        return Drafts(
            [self.policies[item] for item in items],
            [self._questions[item] for item in items] if self._questions else (),
            self._read,
            [self._passages[item] for item in items] if self._passages else (),
            None if alone is None else lambda place, answers: alone(items[place], answers),
        )

    def rows(self, item: int) -> list[int]:
        """Return the rows of a question."""
        return [row for row, of in enumerate(self.items) if of == item]

    def choose(self, recorder: Recorder) -> list[int]:
        """Return the row each question is answered with; keep what was drafted in `made`."""
        chosen, self.made = [], []
        for item, policy in enumerate(self.policies):
            rows = self.rows(item)
            if not isinstance(policy, AnswerPolicy) or len(rows) == 1:
                chosen.append(rows[0])
                self.made.append([])
                continue
            made = self.choose_one(item, [recorder.token_ids(r) for r in rows], [recorder.evidence(r) for r in rows])
            chosen.append(next(row for row, draft in zip(rows, made, strict=True) if draft.given))
            self.made.append(made)
        return chosen

    def hopeless(self, item: int, ids: Sequence[Sequence[int]], evidence: Sequence[Evidence]) -> list[int]:
        """Return the rows of a question whose drafts can no longer be given, from what there is of all its drafts.

        Args:
            item: The question.
            ids: Of each draft so far.
            evidence: Likewise; of those that go on it is not whole.

        Raises:
            ControlError: The policy names a draft that there is not.
        """
        policy, rows = self.policies[item], self.rows(item)
        if not self.tells[item] or all(found.whole for found in evidence):
            return []
        known = item, evidence[0].whole
        if known not in self._settled:
            self._settled[known] = bool(self._read and self._questions and self._passages) and nothing_to_add(
                self._questions[item],
                self._passages[item],
                self._read(ids[0]).strip() if self._read and evidence[0].whole else "",
            )
        settled = self._settled[known]
        each = zip(evidence, (self.names[row] == "context" for row in rows), strict=True)
        told = [found if found.whole else replace(found, idle=settled and context) for found, context in each]
        places = policy.hopeless(told)  # type: ignore[attr-defined]
        if any(place not in range(len(rows)) for place in places):
            raise ControlError(
                f"hopeless() of method {policy.name!r} gives {list(places)}, places among {len(rows)} drafts.",
                "Return places in the list that it was given, from 0.",
            )
        return [rows[place] for place in places if not evidence[place].whole]

    def choose_one(self, item: int, ids: Sequence[Sequence[int]], evidence: Sequence[Evidence]) -> list[Draft]:
        """Return the drafts of one question, of several, from their ids and what the streams made of them."""
        policy: AnswerPolicy = self.policies[item]  # type: ignore[assignment]
        evidence = [replace(e, whole=row not in self.stopped) for row, e in zip(self.rows(item), evidence, strict=True)]
        if policy.alone and self._alone is not None:
            evidence = [replace(e, logp_alone=a) for e, a in zip(evidence, self._alone(item, ids), strict=True)]
        return choose(
            policy,
            [self.names[row] for row in self.rows(item)],
            ids,
            evidence,
            [self._read(each) for each in ids] if self._read and self._questions else (),
            self._questions[item] if self._questions else "",
            self._passages[item] if self._passages else (),
        )


def choose(
    policy: AnswerPolicy,
    names: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    evidence: Sequence[Evidence],
    texts: Sequence[str] = (),
    question: str = "",
    passages: Sequence[str] = (),
) -> list[Draft]:
    """Return the drafts of one question, without their texts; one of them is given.

    Args:
        policy: Chooses.
        names: Of `policy.drafts`, in order.
        token_ids: Of each draft, the end token included.
        evidence: Of each draft, one number per token; not whole where it was stopped.
        texts: Of each draft, for what they tell (`read_drafts`); empty where there are only ids.
        question: What was asked.
        passages: What it was asked with; none where they are not known.
    """
    if texts:
        evidence = read_drafts(evidence, names, texts, question, passages)
    given, weighed = policy.choose(evidence), policy.weighed(evidence)
    if not evidence[given].whole:
        raise ControlError(
            f"method {policy.name!r} gives the draft {names[given]!r}, of which it had said that it cannot be given.",
            "Mend its hopeless().",
        )
    return [
        Draft(
            name,
            tuple(ids),
            found.surprise_ctx,
            found.surprise_par,
            i == given,
            evidence=weighed[i] if found.whole else None,
            idle=found.idle,
            stopped=not found.whole,
        )
        for i, (name, ids, found) in enumerate(zip(names, token_ids, evidence, strict=True))
    ]


class Hopeless:
    """Stops drafts of a running batch that can no longer be given.

    Args:
        drafts: Of the batch; their `stopped` is filled in.
        recorder: Of the batch, where it runs.
        read: Ids to their text where drafts end with their first sentence (`Segments.read`); None: they are answers.
    """

    def __init__(self, drafts: Drafts, recorder: Recorder, read: Callable[[Sequence[int]], str] | None = None) -> None:
        self._drafts, self._recorder, self._read = drafts, recorder, read
        self._open = {item: drafts.rows(item) for item, tells in enumerate(drafts.tells) if tells}
        self._over: dict[int, tuple[list[int], Evidence]] = {}  # row to its draft, which has ended or was stopped

    def __call__(self, unfinished: Tensor) -> Tensor:
        """Return which rows go on, from those that have not ended after this step, [R] bool."""
        going = unfinished.tolist()
        for item, rows in list(self._open.items()):
            told = [self._told(row, going[row]) for row in rows]
            for row in self._drafts.hopeless(item, *zip(*told, strict=True)):
                self._over[row], going[row] = told[rows.index(row)], False
                self._drafts.stopped.add(row)
            left = [row for row in rows if row not in self._drafts.stopped]
            if len(left) == 1 or not any(going[row] for row in left):
                del self._open[item]
        return unfinished & torch.tensor(going, device=unfinished.device)

    def _told(self, row: int, goes: bool) -> tuple[list[int], Evidence]:
        """Return what a draft is so far."""
        if row in self._over:
            return self._over[row]
        read = self._read if segmented(self._drafts.policies[self._drafts.items[row]]) else None  # others run whole
        ids = [] if goes and read is None else self._recorder.token_ids(row)  # of those that go on nobody reads them
        if goes:
            sentence = 1 if read is None else first_sentence_so_far(read(ids), len(ids))
            return ids, replace(self._recorder.evidence(row), sentence=sentence, whole=False)
        if read is not None:
            ids = ids[: segment(ids, read)[0]]
        self._over[row] = ids, self._recorder.evidence(row, len(ids))
        return self._over[row]


def _may_stop(policy: Policy) -> bool:
    """Whether a policy tells which drafts are hopeless, and of its own choice: a subclass may choose in another way."""
    if not isinstance(policy, AnswerPolicy) or len(policy.drafts) < 2:
        return False
    tells, *others = (
        next(base for base in type(policy).__mro__ if name in vars(base)) for name in ("hopeless", "choose", "weighed")
    )
    return tells is not AnswerPolicy and all(issubclass(tells, base) for base in others)


class Beginnings:
    """Which row of the streams each draft reads: drafts of a question share one until they part, ended ones have none.

    Args:
        items: Draft to question.
        device: Of the streams. Whether drafts have parted or ended cannot be seen on an accelerator without waiting for
            it, so there every draft has a row of its own from the first token to the last.
        drop: Give up the rows of drafts that have ended; not where anything goes on from them.

    Attributes:
        places: Draft to row of the streams; of a draft without one, any row.
    """

    def __init__(self, items: Sequence[int], device: torch.device, drop: bool) -> None:
        self.places = list(items)
        self._device, self._drop, self._held = device, drop, 1 + max(items)
        self._read: Tensor | None = torch.tensor(self.places, device=device)

    def widen(self, rows: Tensor) -> Tensor:
        """Return one row per draft, from what the streams gave, [rows of the streams, ...]."""
        return rows if self._read is None else rows[self._read]

    def feed(self, tokens: Tensor, unfinished: Tensor, select: Callable[[Tensor], None]) -> Tensor:
        """Return the tokens that the streams take next, from one per draft.

        Args:
            tokens: Of every draft, [drafts] int64.
            unfinished: Which have not ended, one of them at least, [drafts] bool.
            select: Keeps rows of the streams, as `TwoStreams.select`.
        """
        before, fed = self.places, tokens
        if self._device.type == "cpu":
            each, going = list(zip(before, tokens.tolist(), strict=True)), unfinished.tolist()
            rows = dict.fromkeys(pair for pair, goes in zip(each, going, strict=True) if goes or not self._drop)
            kept, fed = [place for place, _ in rows], torch.tensor([token for _, token in rows])
            found = {pair: row for row, pair in enumerate(rows)}
            self.places = [found.get(pair, 0) for pair in each]
        else:
            kept, self.places = before, list(range(len(before)))
        if kept != list(range(self._held)):
            select(torch.tensor(kept, device=self._device))
            self._held = len(kept)
        if self.places != before:
            same = self.places == list(range(self._held))
            self._read = None if same else torch.tensor(self.places, device=self._device)
        return fed
