"""Answers waiting questions with one model: a thread of its own decodes those together that one plan can hold.

The one that has waited longest is always served next; others that can share its plan join it. Every row has its own
control, seed, stop texts and longest answer, ends by itself, and is told its tokens one by one. A batch that fails is
decoded again row by row, so that what is wrong with one fails no other. Knows prompts, plans and rows; knows nothing of
HTTP or JSON.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..answer import Draft
from ..control import Control
from ..decoding.drafts import Drafts
from ..decoding.inputs import plan_of
from ..decoding.loop import decode
from ..decoding.options import GenerateOptions
from ..decoding.prompts import PromptPair
from ..decoding.recorder import Recorder
from ..decoding.refusals import check_model, check_tokenizer, eos_ids, input_device, output_width, position_limit
from ..decoding.structured import Structure, structure_of
from ..decoding.token_texts import StopTexts
from ..errors import CKError, MissingExtra, NonFiniteLogits
from ..policies.off import OFF
from .replies import Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Batcher", "End", "Job"]

_GATHER = 0.005  # seconds that others have to join the first question of an idle model
log = logging.getLogger("ckcontrol.serving")


@dataclass(frozen=True)
class End:
    """An answer has ended.

    Attributes:
        reason: ``stop`` or ``length``.
        rows: What was recorded per token, see `Recorder.rows`; empty if nothing was.
        drafts: Of the answer, without their texts.
    """

    reason: str
    rows: Sequence[Sequence[float]] = ()
    drafts: Sequence[Draft] = ()


@dataclass(eq=False)
class Job:
    """One question, on its way to an answer.

    Attributes:
        pair: Its prompts.
        control: Its control.
        options: How its tokens are drawn; with a seed where it samples.
        structured: What `structure_of` takes beside the model: ``json_schema``, ``grammar`` or ``regex``.
        tell: Called in the batcher's thread with each token id, at last with an `End` or an error.
        left: Set, by any thread, when nobody wants the answer any more.
        over: It has ended; `answered` if with an answer.
        ids: What was generated.
    """

    pair: PromptPair
    control: Control
    options: GenerateOptions
    structured: Mapping[str, Any] = field(default_factory=dict)
    tell: Callable[[int | End | Exception], None] = print
    left: bool = False
    over: bool = False
    answered: bool = False
    ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        steered = self.pair.contextual != self.pair.parametric
        drafts = Drafts([self.control.policy() if steered else OFF])
        self.several = drafts.several
        self.two = self.options.trace or not drafts.policy.neutral
        shared = replace(self.options, max_new_tokens=1, seed=None, stop=(), trace=False)
        structured = json.dumps(self.structured, sort_keys=True, default=str)
        self.kind = (shared, self.control.shortlist, self.two, structured)
        self._told: list[int] = []

    @property
    def dead(self) -> bool:
        """Whether no more tokens are to be computed: it has ended, or nobody waits for it."""
        return self.over or self.left

    def take(self, token: int) -> None:
        """Take the next token. When a batch is decoded again, those that were told already only have to agree."""
        place = len(self.ids)
        self.ids.append(token)
        if place >= len(self._told):
            self._told.append(token)
            self.tell(token)
        elif self._told[place] != token:
            self.fail(Refusal(503, "the answer was interrupted and came out differently.", "Try again."))

    def finish(self, end: End) -> None:
        """End with an answer, unless it has ended."""
        if not self.over:
            self.over = self.answered = True
            self.tell(end)

    def fail(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if not self.over:
            self.over = True
            self.tell(error)


class _Rows:
    """The rows of a batch: the streamer that hands each its tokens, and the criterion that ends each by itself."""

    any_row = True

    def __init__(self, jobs: Sequence[Job], tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
        self.jobs, self.ends = jobs, set(ends)
        self.drafted = jobs[0].several
        self.recorder: Recorder | None = None
        self._begun = False
        self._stops = [StopTexts(tokenizer, job.options.stop, 0) if job.options.stop else None for job in jobs]
        self._ended: dict[int, str] = {}  # row -> why; told when the step has turned out to be sound

    def __deepcopy__(self, _: Any) -> _Rows:
        return self  # of drafts too there is one client

    def put(self, value: Tensor) -> None:
        """Take the prompts, and then one token per row."""
        if not self._begun:
            self._begun = True
            return
        self.settle()
        for job, token in zip(self.jobs, value.tolist(), strict=True):
            if not job.over and not job.left:
                job.take(token)

    def end(self) -> None:
        """Nothing: rows end by themselves."""

    def __call__(self, ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        """Return which rows have ended, [B] bool."""
        if not self.drafted:
            for row, job in enumerate(self.jobs):
                if row not in self._ended and not job.dead:
                    reason = self.reason(row)
                    if reason:
                        self._ended[row] = reason
        over = [job.dead or row in self._ended for row, job in enumerate(self.jobs)]
        return torch.tensor(over, dtype=torch.bool, device=ids.device)

    def reason(self, row: int) -> str:
        """Return why a row ends after its newest token; empty if it goes on."""
        job, stop = self.jobs[row], self._stops[row]
        if not job.ids:
            return ""
        if job.ids[-1] in self.ends or (stop is not None and bool(stop(torch.tensor([job.ids])))):
            return "stop"
        return "length" if len(job.ids) >= job.options.max_new_tokens else ""

    def settle(self) -> None:
        """Tell the rows that ended in the step before this one."""
        for row in [row for row, job in enumerate(self.jobs) if row in self._ended and not job.over]:
            job = self.jobs[row]
            rows = self.recorder.rows(row)[: len(job.ids)] if self.recorder and job.options.trace else ()
            job.finish(End(self._ended[row], rows))


class Batcher:
    """Decodes jobs, in a thread of its own.

    Args:
        model: A decoder-only transformers model.
        tokenizer: Its own.
        rows: Most questions in one batch.

    Attributes:
        ends: End tokens of model and tokenizer.
        counts: What happened so far, by the names in `COUNTED`.

    Raises:
        UnsupportedMode, TokenizerMismatch: They cannot be steered, or do not fit.
    """

    COUNTED = ("answers", "failures", "left", "tokens", "batches")

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int = 8) -> None:
        check_model(model)
        self.vocabulary = check_tokenizer(model, tokenizer) or output_width(model)
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.ends = sorted(eos_ids(model, tokenizer))
        self.positions = position_limit(model)
        self.counts: Counter[str] = Counter()
        self._batch: list[Job] = []
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="ckcontrol-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Questions that wait for a batch."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Questions whose answers are being decoded."""
        return sum(not job.over and not job.left for job in self._batch)

    def submit(self, job: Job) -> None:
        """Queue a job; from here on its `tell` is called, until it has ended.

        Raises:
            Refusal: The batcher was closed (503).
        """
        with self._changed:
            if self._closed:
                raise _stopping()
            self._waiting.append(job)
            self._changed.notify()

    def structure(self, structured: Mapping[str, Any]) -> Structure | None:
        """Return what holds answers to a schema or grammar, see `structure_of`; None where none is asked for."""
        if not structured:
            return None
        width, device = output_width(self.model), input_device(self.model)
        try:
            return structure_of(self.tokenizer, width, self.ends, device, **structured)
        except MissingExtra as error:
            hint = "Have ckcontrol[grammar] installed on it."
            raise Refusal(400, "this server reads no schemas or grammars.", hint) from error

    def close(self, seconds: float = 30.0) -> None:
        """Stop; what waits or runs fails with a 503 at its next token."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        for job in self._batch:
            job.fail(_stopping())
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                alone = len(self._waiting) == 1
            if alone:
                time.sleep(_GATHER)
            with self._changed:
                if self._closed:
                    for job in self._waiting:
                        job.fail(_stopping())
                    self._waiting.clear()
                    return
                jobs = self._next()
            self._batch = jobs
            if jobs:
                self._run(jobs)
                self._count(jobs)
            self._batch = []

    def _next(self) -> list[Job]:
        """Take the next batch from the queue."""
        taken: list[Job] = []
        for job in [job for job in self._waiting if not job.dead]:
            if not taken or self._fits(taken, job):
                taken.append(job)
        self._waiting = deque(job for job in self._waiting if job not in taken and not job.over and not job.left)
        return taken

    def _fits(self, taken: Sequence[Job], job: Job) -> bool:
        if len(taken) >= self.rows or job.several or taken[0].several or job.kind != taken[0].kind:
            return False
        both = [*taken, job]
        prompt = max(max(len(one.pair.contextual), len(one.pair.parametric)) for one in both)
        longest = max(one.options.max_new_tokens for one in both)
        return self.positions is None or prompt + longest <= self.positions

    def _run(self, jobs: Sequence[Job]) -> None:
        try:
            self._decode(jobs)
        except Exception as error:
            left = [job for job in jobs if not job.dead]
            if len(jobs) > 1:
                for job in left:
                    job.ids = []
                    self._run([job])
            elif left:
                log.warning("an answer failed", exc_info=not isinstance(error, CKError))
                left[0].fail(_told(error, left[0].control))

    def _count(self, jobs: Sequence[Job]) -> None:
        self.counts["batches"] += 1
        for job in jobs:
            self.counts["tokens"] += len(job.ids)
            self.counts["answers" if job.answered else "failures" if job.over else "left"] += 1

    def _decode(self, jobs: Sequence[Job]) -> None:
        rows, first = _Rows(jobs, self.tokenizer, self.ends), jobs[0].options
        options = replace(
            first,
            max_new_tokens=max(job.options.max_new_tokens for job in jobs),
            stop=first.stop if rows.drafted else (),
            trace=any(job.options.trace for job in jobs),
        )
        plan = plan_of(
            self.model,
            self.tokenizer,
            [job.pair for job in jobs],
            [job.control for job in jobs],
            options,
            ends=self.ends,
            criteria=[rows],
            structure=self.structure(jobs[0].structured),
            streamer=rows,
            seeds=None if first.seed is None else [job.options.seed or 0 for job in jobs],
        )
        rows.recorder = plan.recorder
        decode(plan)
        rows.settle()
        for row, job in enumerate(jobs):
            if rows.drafted and not job.dead:
                recorded = plan.recorder.rows(row) if plan.recorder else ()
                reason = rows.reason(row)
                job.finish(End(reason or "length", recorded, plan.drafts.made[row]))


def _stopping() -> Refusal:
    return Refusal(503, "the server is stopping.", "Try again when it is back.")


def _told(error: Exception, control: Control) -> Exception:
    """Return an error for the client."""
    if isinstance(error, NonFiniteLogits):
        return Refusal(503, str(error))
    if isinstance(error, CKError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return Refusal(503, "the model ran out of memory.", "Shorten the prompt or ask for fewer tokens.")
    what = f"{type(error).__name__}: {str(error)[:200]}".rstrip(".")
    return Refusal(500, f"method {control.method!r} did not answer: {what}.", "Use another method, or see the log.")
