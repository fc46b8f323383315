"""A batch that questions join and leave while it runs: the loop of loop.py for a server, one step at a time.

The prompts of those that join run apart, of one question or of several; their rows then step beside those that are
there, and are dropped when they have ended. All rows share forwards and fusion; what is done to a row's scores, and its
draw, is the row's own, so that its tokens are those of `generate`. The drafts of a question are one row of the streams
until they part. What is wrong with one row ends that row. Knows plans, streams and scores; who owns a row says when it
has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import NonFiniteLogits
from ..fusion.distributions import first_max, nonfinite_rows
from ..policies import Policy, per_row
from .fused_step import FusedStep, fused_step
from .loop import Draw
from .plan import DecodingPlan
from .processing import penalise_answers
from .recorder import Recorder, measure
from .streams import TwoStreams, side_by_side

__all__ = ["Row", "RunningBatch", "end_hopeless"]

_STREAMS = ("contextual", "parametric", "fused")


@dataclass(eq=False)
class Row:
    """One draft of one question.

    Attributes:
        plan: Of the question, the only one in it.
        policy: Of this draft.
        tokens: What was generated; one more after each step.
        error: What ended the row, if anything is wrong with it; no token was added then.
        ended: Set by its owner when the row takes part no more.
        recorder: Of this row alone; None records nothing.
    """

    plan: DecodingPlan
    policy: Policy
    place: int = 0  # its row of the streams
    tokens: list[int] = field(default_factory=list)
    error: Exception | None = None
    ended: bool = False

    def __post_init__(self) -> None:
        plan = self.plan
        recorded = plan.recorder is not None or plan.favourites is not None or plan.drafts.several
        self.recorder = Recorder(plan.favourites or 0) if recorded else None
        self._ids = plan.contextual.input_ids
        seeds = None if plan.seed is None else [plan.seed] if isinstance(plan.seed, int) else plan.seed
        self._draw = Draw(plan.sample, seeds, self._ids.device)
        self._structure = None if plan.structure is None else plan.structure.anew()
        self._processors = plan.processors
        if plan.penalise != "all":
            self._processors = penalise_answers(plan.processors, self._ids.shape[1])

    @property
    def processed(self) -> bool:
        """Whether something is done to the fused scores."""
        return bool(self._processors)

    @property
    def plain(self) -> bool:
        """Whether nothing lies between fusion and the greedy choice."""
        return not (self.plan.sample or self._processors or self.recorder)

    def mask(self, *logits: Tensor | None) -> None:
        """Mask in place, in each stream, [1, V], what a grammar forbids; an error of it becomes the row's."""
        if self._structure is not None:
            running = torch.ones(1, dtype=torch.bool, device=self._ids.device)
            try:
                self._structure.mask(self._ids, running, *logits)
            except Exception as error:
                self.error = error

    def process(self, scores: Tensor) -> Tensor:
        """Return the processed scores, [1, V]."""
        return self._processors(self._ids, scores) if self._processors else scores

    def draw(self, scores: Tensor, broken: Tensor) -> Tensor:
        """Return the next token, [1]."""
        return self._draw(scores, broken)

    def take(self, token: Tensor, number: int) -> None:
        """Take the next token, [1], and its number."""
        self.tokens.append(number)
        if self._processors or self._structure is not None:
            self._ids = torch.cat([self._ids, token[:, None]], dim=1)


class RunningBatch:
    """Rows that step together.

    Args:
        around: Makes the context that every forward runs in, e.g. `heads.pruned`; it must be the same for all.

    Attributes:
        rows: Those that have not ended, as of the last step.
        around: As given; what is read of drafts beside the steps runs in it too.
    """

    def __init__(self, around: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self.rows: list[Row] = []
        self.around = around
        self._streams: TwoStreams | None = None
        self._joining: list[tuple[TwoStreams, list[Row]]] = []

    @property
    def joins(self) -> bool:
        """Whether further questions may join: not where the model's cache cannot take in rows."""
        first = self._streams or next((streams for streams, _ in self._joining), None)
        return first is None or first.joins

    def join(self, plan: DecodingPlan) -> list[Row]:
        """Do as `join_together` for one question; return its rows."""
        return self.join_together([plan])[0]

    @torch.no_grad()
    def join_together(self, plans: Sequence[DecodingPlan]) -> list[list[Row]]:
        """Run the prompts of some questions; return the rows of each, which have a token and join the next step.

        The streams of all questions of a batch must be the same: one or two, in shared forwards or not. Several
        questions are padded to the longest prompt, so their model must take padding.

        Args:
            plans: Of one question each.

        Raises:
            Exception: Whatever the forward raises; the batch is as it was.
        """
        rows = [[Row(plan, policy, place) for policy in plan.drafts.each] for place, plan in enumerate(plans)]
        whole = plans[0]
        if len(plans) > 1:
            whole = replace(
                whole,
                contextual=side_by_side([plan.contextual for plan in plans]),
                parametric=lambda: side_by_side([plan.parametric() for plan in plans]),
                max_new_tokens=max(plan.max_new_tokens for plan in plans),
            )
        streams: Any = whole.streams()  # two: nothing that joins is asked with several sources
        with self.around():
            logits = streams.prefill()
        together = [row for of in rows for row in of]
        _choose(together, *logits)
        self._joining.append((streams, together))
        return rows

    @torch.no_grad()
    def step(self) -> None:
        """Drop rows that have ended, take in those that join, and give each one more token, or an error.

        Raises:
            Exception: Whatever the forward raises; the batch is of no use afterwards.
        """
        parts = [(self._streams, self.rows), *self._joining] if self._streams is not None else self._joining
        parts = [
            (streams, left)
            for streams, rows in parts
            if (left := [row for row in rows if not row.ended and not row.error])
        ]
        self._streams, self.rows, self._joining = None, [], []
        fed: list[int] = []
        fewer = False
        for streams, rows in parts:
            places = list(dict.fromkeys((row.place, row.tokens[-1]) for row in rows))
            fewer = _select(streams, [place for place, _ in places]) or fewer
            for row in rows:
                row.place = len(fed) + places.index((row.place, row.tokens[-1]))
            fed += [token for _, token in places]
            self.rows += rows
        if not parts:
            return
        self._streams, *others = [streams for streams, _ in parts]
        if others or (fewer and self._streams.wasteful):
            self._streams.join(others)
        with self.around():
            logits = self._streams.step(torch.tensor(fed, device=self._streams.contextual.input_ids.device))
        _choose(self.rows, *logits)


def end_hopeless(rows: Sequence[Row]) -> None:
    """End those rows whose drafts can no longer be given, see `Drafts.hopeless`; what they have is kept as stopped.

    Args:
        rows: Of one question.
    """
    drafts = rows[0].plan.drafts
    if not drafts.tells[0]:
        return
    each = [row.recorder.evidence(0) for row in rows if row.recorder is not None]
    whole = [row.ended and place not in drafts.stopped for place, row in enumerate(rows)]
    told = [e if ended else replace(e, sentence=1, whole=False) for e, ended in zip(each, whole, strict=True)]
    for place in drafts.hopeless(0, [row.tokens for row in rows], told):
        rows[place].ended = True
        drafts.stopped.add(place)


def _select(streams: TwoStreams, places: list[int]) -> bool:
    """Keep these rows of the streams; return whether they are fewer than before."""
    before = len(streams.contextual.position)
    if places != list(range(before)):
        streams.select(torch.tensor(places, device=streams.contextual.input_ids.device))
    return len(places) < before


def _choose(rows: Sequence[Row], logits_ctx: Tensor, logits_par: Tensor | None) -> None:
    """Give each row its next token from the logits of the streams, [S, V], or an error."""
    places = [row.place for row in rows]
    if places != list(range(len(logits_ctx))):
        logits_ctx, logits_par = logits_ctx[places], None if logits_par is None else logits_par[places]
    for i, row in enumerate(rows):
        row.mask(logits_ctx[i : i + 1], None if logits_par is None else logits_par[i : i + 1])
    for shortlist in dict.fromkeys(row.plan.shortlist for row in rows):
        of = [i for i, row in enumerate(rows) if row.plan.shortlist == shortlist and row.error is None]
        if len(of) == len(rows):
            _choose_alike(rows, logits_ctx, logits_par)
        elif of:
            _choose_alike([rows[i] for i in of], logits_ctx[of], None if logits_par is None else logits_par[of])


def _choose_alike(rows: Sequence[Row], logits_ctx: Tensor, logits_par: Tensor | None) -> None:
    try:
        made = _fused(rows, logits_ctx, logits_par)
    except Exception as error:  # a method that raised: of which row shows where each is alone
        if len(rows) == 1:
            rows[0].error = error
            return
        for i, row in enumerate(rows):
            _choose_alike([row], logits_ctx[i : i + 1], None if logits_par is None else logits_par[i : i + 1])
        return
    if made is not None and made.tokens is not None:
        tokens, broken = made.tokens, made.broken
    else:
        scores = logits_ctx if made is None or made.scores is None else made.scores
        broken = nonfinite_rows(logits_ctx).to(torch.uint8) if made is None else made.broken
        if any(row.processed for row in rows):
            scores = torch.cat([row.process(scores[i : i + 1]) for i, row in enumerate(rows)])
        broken = torch.where((broken == 0) & nonfinite_rows(scores), 3, broken)
        if any(row.plan.sample for row in rows):
            each = [row.draw(scores[i : i + 1], broken[i : i + 1] > 0) for i, row in enumerate(rows)]
            tokens = torch.cat(each)
        else:
            tokens = first_max(scores)
        if any(row.recorder is not None for row in rows):
            signals = None if made is None else (made.signals, made.decision)
            final, columns = measure(tokens, scores, *(signals or (None, None)))
            for i, row in enumerate(rows):
                if row.recorder is not None:
                    here = slice(i, i + 1)
                    row.recorder.take(tokens[here], final[here], None if columns is None else columns[here])
                    row.recorder.look(scores[here])
    for i, (row, token, stream) in enumerate(zip(rows, tokens.tolist(), broken.tolist(), strict=True)):
        if stream:
            row.error = NonFiniteLogits(0, len(row.tokens), _STREAMS[stream - 1])
        else:
            row.take(tokens[i : i + 1], token)


def _fused(rows: Sequence[Row], logits_ctx: Tensor, logits_par: Tensor | None) -> FusedStep | None:
    if logits_par is None:
        return None
    plan = rows[0].plan
    return fused_step(
        per_row([row.policy for row in rows]),
        logits_ctx,
        logits_par,
        shortlist=plan.shortlist,
        vocab_size=plan.vocab_size,
        pick=all(row.plain for row in rows),
    )
