"""Answers that are decided sentence by sentence: drafts are weighed at each end, and all go on from the one chosen.

A round runs the drafts of every question to the end of their sentence, side by side as whole drafts are run. Then each
question's choice is made; the chosen rows' caches are kept up to that end, the other drafts start anew from them, and
the tokens are streamed. A question whose drafts have a single sentence is through after one round: the same tokens as
without segments. Knows rounds, rows and ends of sentences; the steps of a round are loop.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..answer import Draft
from ..errors import NonFiniteLogits
from .drafts import Drafts
from .plan import DecodingPlan
from .recorder import Recorder
from .segments import Segments, seed_of_round, segment, segmented

__all__ = ["Rounds"]


@dataclass
class _Question:
    """An answer under way: what is decided, and what was recorded of it."""

    item: int
    prompt: list[int]
    segmented: bool
    ids: list[int] = field(default_factory=list)
    parts: list[tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=list)
    made: list[Draft] = field(default_factory=list)


class _Ends:
    """The stopping criterion of a round: ids [questions, L] -> which have come to an end, of a segment or of all."""

    any_row = True

    def __init__(self, questions: Sequence[_Question], segments: Segments, start: int, longest: int) -> None:
        self._questions, self._segments, self._start, self._longest = questions, segments, start, longest

    def __deepcopy__(self, _: Any) -> _Ends:
        return self  # keeps nothing of any row

    def __call__(self, ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        new = ids[:, self._start :].tolist()
        told = [self._ended(question, row) for question, row in zip(self._questions, new, strict=True)]
        return torch.tensor(told, dtype=torch.bool, device=ids.device)

    def _ended(self, question: _Question, new: Sequence[int]) -> bool:
        if len(question.ids) + len(new) >= self._longest:
            return True
        if question.segmented and segment(new, self._segments.read)[1]:
            return True
        return self._segments.stopped([*question.ids, *new])


class Rounds:
    """The rounds of one run.

    Args:
        plan: Of the whole run, with `segments`.
        segments: Its `segments`.
    """

    def __init__(self, plan: DecodingPlan, segments: Segments) -> None:
        self.plan, self.segments = plan, segments
        prompts = plan.contextual.input_ids.tolist()
        policies = plan.drafts.policies
        self.questions = [_Question(i, p, segmented(policies[i])) for i, p in enumerate(prompts)]
        self.open = list(self.questions)
        self.number = 0
        self._told = 0

    def ids(self) -> Tensor:
        """Return prompts and decided answers of the open questions, padded on the left, [Q, L] int64."""
        rows = [[*question.prompt, *question.ids] for question in self.open]
        longest, pad = max(map(len, rows)), self.plan.pad_token_id
        device = self.plan.contextual.input_ids.device
        return torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)

    def part(self, start: int, recorder: Recorder) -> DecodingPlan:
        """Return the plan of the next round, whose answers begin at column `start`."""
        from transformers import StoppingCriteriaList

        plan = self.plan
        kept = [c for c in plan.criteria if type(c).__name__ not in ("MaxLengthCriteria", "StopTexts")]
        ends = _Ends(self.open, self.segments, start, plan.max_new_tokens)
        seeds = plan.seed
        if seeds is not None:
            each = [seeds] * len(self.questions) if isinstance(seeds, int) else list(seeds)
            seeds = [seed_of_round(each[question.item], self.number) for question in self.open]
        return replace(
            plan,
            drafts=plan.drafts.only([question.item for question in self.open]),
            criteria=StoppingCriteriaList([ends, *kept]),
            max_new_tokens=max(plan.max_new_tokens - len(question.ids) for question in self.open),
            seed=seeds,
            recorder=recorder,
            streamer=None,
        )

    def decide(self, drafts: Drafts, recorder: Recorder) -> tuple[list[int], list[int]]:
        """Choose, take the chosen segments, and close what has come to its end.

        Returns:
            Of each question that goes on: its chosen row, and how many of that row's newest ids were not taken, the
            last id decided counted as not yet run.
        """
        whole = list(recorder.lengths)
        for row, item in enumerate(drafts.items):
            if self.open[item].segmented:
                recorder.lengths[row] = segment(recorder.token_ids(row), self.segments.read)[0]
        rows, drop, going = [], [], []
        for question, row, made in zip(self.open, drafts.choose(recorder), drafts.made, strict=True):
            new = recorder.token_ids(row)
            question.ids += new
            question.parts.append(recorder.part(row))
            question.made += [replace(draft, segment=self.number) for draft in made]
            ended = question.segmented and (len(new) < whole[row] or segment(new, self.segments.read)[1])
            over = len(question.ids) >= self.plan.max_new_tokens or self.segments.stopped(question.ids)
            if ended and not over:
                going.append(question)
                rows.append(row)
                drop.append(recorder.steps - len(new))
        self.open, self.number = going, self.number + 1
        return rows, drop

    def stream(self, streamer: Any) -> None:
        """Hand on what every question has decided by now, one id per question at a time."""
        if streamer is None:
            return
        if not self._told:
            streamer.put(self.plan.contextual.input_ids.cpu())
        running = [len(question.ids) for question in self.open]
        until = min(running) if running else max(len(question.ids) for question in self.questions)
        table = self.answers()
        for step in range(self._told, until):
            streamer.put(table[:, step].cpu())
        self._told = max(self._told, until)

    def answers(self) -> Tensor:
        """Return what is decided, padded on the right, [questions, T] int64."""
        longest, pad = max(len(question.ids) for question in self.questions), self.plan.pad_token_id
        rows = [question.ids + [pad] * (longest - len(question.ids)) for question in self.questions]
        return torch.tensor(rows, device=self.plan.contextual.input_ids.device)

    def fill(self, recorder: Recorder | None) -> None:
        """Put what was recorded of the decided answers into the caller's recorder, a row each."""
        if recorder is not None:
            recorder.fill([question.parts for question in self.questions])

    def broken(self, error: NonFiniteLogits) -> NonFiniteLogits:
        """Return the error of a round as one of the run, whose recorder then holds a row per whole draft."""
        drafts = self.plan.drafts
        question = self.open[drafts.only([q.item for q in self.open]).items[error.row]]
        if self.plan.recorder is not None:
            self.plan.recorder.fill([self.questions[item].parts for item in drafts.items])
        return NonFiniteLogits(question.item, len(question.ids) + error.step, error.stream)
