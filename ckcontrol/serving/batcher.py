"""Answers waiting questions with one model, in a thread of its own: they join a running batch, and leave when they end.

Between two steps the one that has waited longest joins, or several with short prompts; these are run apart. Every row
has its own control, draw, schema, stop texts and longest answer, and is told its tokens one by one; what is wrong with
it fails no other. Rows of one stream, of two, of each head mask and alpha of the direction are batches of their own,
which take turns step by step; so does a question whose sources weigh whole answers. Knows prompts, plans and rows;
knows nothing of HTTP or JSON.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from ..control import Control
from ..decoding.inputs import plan_of
from ..decoding.pair_cache import can_share_forward
from ..decoding.plan import DecodingPlan
from ..decoding.refusals import bare, check_model, check_tokenizer, eos_ids, input_device, output_width, position_limit
from ..decoding.running import Row, RunningBatch, end_hopeless
from ..decoding.sourced import told_pair, weighing
from ..decoding.structured import Structure, structure_of
from ..decoding.token_texts import StopTexts
from ..decoding.weight_rows import DIALS
from ..errors import CKError, MissingExtra, NonFiniteLogits, ServingError
from ..heads.directions.direction import Direction
from ..heads.fingerprint import Fingerprint
from ..heads.mask import HeadMask
from .jobs import End, Job
from .read_heads import Entries
from .replies import Refusal
from .running_jobs import Running, Weighed, answer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Batcher"]

_PROMPTS = 1024  # tokens of prompts that rows under way wait for between two steps; at least one question joins
_PADDED = 1.2  # how much longer padding may make prompts that are run together
_IDLE, _ENDED = 1.0, 64  # seconds without work, or ended questions, after which the C library gives memory back
log = logging.getLogger("ckcontrol.serving")


class Batcher:
    """Decodes jobs, in a thread of its own.

    Args:
        model: A decoder-only transformers model.
        tokenizer: Its own.
        rows: Most questions that are decoded at once.
        direction: What a job's alpha leads along; it was made for this model.

    Attributes:
        dial: A dial of adapters was loaded onto the model.
        ends: End tokens of model and tokenizer.
        counts: What happened so far, by the names in `COUNTED`.

    Raises:
        UnsupportedMode, TokenizerMismatch: They cannot be steered, or do not fit.
    """

    COUNTED = ("answers", "failures", "left", "tokens", "steps")

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: int = 8,
        direction: Direction | None = None,
    ) -> None:
        check_model(model)
        self.direction = direction
        self.vocabulary = check_tokenizer(model, tokenizer) or output_width(model)
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.dial = bare(model) in DIALS
        self.ends = sorted(eos_ids(model, tokenizer))
        self.positions = position_limit(model)
        self.counts: Counter[str] = Counter()
        self._running: list[Running] = []
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._trimmed = 0  # questions that had ended when the C library was last asked for memory
        self._fingerprint: Fingerprint | None = None
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
        return sum(not job.dead for job in self._jobs())

    def submit(self, job: Job) -> None:
        """Queue a job; from here on its `tell` is called, until it has ended.

        Raises:
            Refusal: The batcher was closed (503).
        """
        with self._changed:
            if self._closed:
                raise _stopping()
            job.counts = self.counts
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

    def mask(self, entries: Entries) -> HeadMask | None:
        """Return the head mask of some entries; None where there are none.

        Raises:
            HeadsError: A head that the model does not have, or a model of whose heads nothing is known.
        """
        if not entries:
            return None
        with self._changed:
            self._fingerprint = self._fingerprint or Fingerprint.of(self.model)
        return HeadMask(self._fingerprint, {(layer, head): factor for layer, head, factor in entries})

    def lean(self, alpha: float | None) -> float | None:
        """Return a request's alpha of the direction, None where it adds nothing.

        Raises:
            ServingError: No direction is served.
            HeadsError: It does not lead to that side.
        """
        if alpha is None:
            return None
        if self.direction is None:
            raise ServingError("ck.direction was given, and this server has none.", "Start it with --direction FILE.")
        return alpha if self.direction.coefficient(alpha) else None

    def close(self, seconds: float = 30.0) -> None:
        """Stop; what waits or runs fails with a 503 at its next token."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        for job in self._jobs():
            job.fail(_stopping())
        self._thread.join(seconds)

    def _jobs(self) -> list[Job]:
        return [job for running in list(self._running) for job in list(running.jobs)]

    def _work(self) -> None:
        while self._round():
            pass

    def _round(self) -> bool:
        """Wait for work, begin what waits and step once; False when closed. What it held is let go: idle, no batch."""
        with self._changed:
            busy = self._changed.wait_for(self._has_work, _IDLE if self._since_trim else None)
            if self._closed:
                for job in [*self._waiting, *self._jobs()]:
                    job.fail(_stopping())
                self._waiting.clear()
                return False
            jobs = self._next()
        if not busy or self._since_trim >= _ENDED:
            self._trimmed += self._since_trim
            if not busy:
                gc.collect()  # streams and their caches know each other
            _malloc_trim()(0)
        for together in self._groups([job for job in jobs if not job.weighs]):
            self._begin(together)
        for job in jobs:
            if job.weighs and job.sources is not None:
                how: dict[str, Any] = {"ends": self.ends, "plain": job.plain}
                steps = weighing(self.model, self.tokenizer, job.sources, job.control, job.options, **how)
                self._running.append(Weighed(self.model, job, self.direction, steps))
        for running in list(self._running):
            self._step(running)
        return True

    def _has_work(self) -> bool:
        return bool(self._waiting or self._running or self._closed)

    @property
    def _since_trim(self) -> int:
        return self.counts["answers"] + self.counts["failures"] + self.counts["left"] - self._trimmed

    def _next(self) -> list[Job]:
        """Take from the queue what begins now: where others run, no more than they may wait for.

        Of questions that weigh sources one at a time, as each runs a row for every source; others may pass those.
        """
        self._waiting = deque(job for job in self._waiting if not job.dead)
        under_way = self._jobs()
        taken: list[Job] = []
        tokens = 0
        while self._waiting and len(under_way) + len(taken) < self.rows:
            beside = [*under_way, *taken]
            weighs = any(one.weighs for one in beside)
            job = next((one for one in self._waiting if not (one.weighs and weighs)), None)
            if job is None:
                break
            tokens += 0 if job.weighs else len(job.pair.contextual) + len(job.pair.parametric)
            if beside and (job.alone or any(one.alone for one in beside)):
                break
            if under_way and taken and tokens > _PROMPTS:
                break
            self._waiting.remove(job)
            taken.append(job)
        return taken

    def _groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Return which jobs have their prompts run together: of one kind, short, and of like lengths."""
        groups: list[list[Job]] = []
        for job in sorted(jobs, key=lambda one: -len(one.pair.contextual)):  # equal ones in their order
            for group in groups:
                pairs = [one.pair for one in (*group, job)]
                sides = [[len(pair.contextual) for pair in pairs], [len(pair.parametric) for pair in pairs]]
                padded = sum(len(pairs) * max(lengths) for lengths in sides)
                if group[0].kind == job.kind and padded <= min(_PROMPTS, _PADDED * sum(map(sum, sides))):
                    group.append(job)
                    break
            else:
                groups.append([job])
        if can_share_forward(self.model):
            return groups
        return [[job] for job in jobs]  # may keep its past otherwise than in keys, or not take padding

    def _begin(self, jobs: Sequence[Job]) -> None:
        """Run the prompts of jobs of one kind, which join a batch."""
        plans: dict[Job, DecodingPlan] = {}
        for job in jobs:
            try:
                job.stop = StopTexts(self.tokenizer, job.options.stop, 0) if job.options.stop else None
                plans[job] = self._plan(job)
            except Exception as error:
                self._failed([job], error, beside=bool(self._running))
        if not plans:
            return
        running = next((one for one in self._running if one.kind == jobs[0].kind and one.batch.joins), None)
        running = running or Running(self.model, jobs[0], self.direction)
        try:
            made = running.batch.join_together(list(plans.values()))
        except Exception as error:
            self._failed(list(plans), error, beside=bool(self._running))
            return
        for job, rows in zip(plans, made, strict=True):
            job.rows = rows
            running.jobs.append(job)
        if running not in self._running:
            self._running.append(running)
        self._tell(running)

    def _plan(self, job: Job) -> DecodingPlan:
        structure = self.structure(job.structured)
        plan = plan_of(
            self.model,
            self.tokenizer,
            [job.pair],
            [job.control],
            job.options
            if job.mask is None and job.direction is None
            else replace(job.options, compile=False),  # a graph keeps what hooks did
            ends=self.ends,
            structure=structure,
        )
        plan.favourites = job.favourites
        return plan

    def _step(self, running: Running) -> None:
        try:
            running.step()
            self.counts["steps"] += 1
        except Exception as error:
            self._running.remove(running)
            self._failed(running.jobs, error, beside=bool(self._running))
            return
        self._tell(running)

    def _failed(self, jobs: Sequence[Job], error: Exception, *, beside: bool) -> None:
        """Decode jobs once more, each alone, if they were not; else fail them."""
        left = [job for job in jobs if not job.dead]
        again = [job for job in left if not job.alone and (len(left) > 1 or beside)]
        for job in again:
            job.ids, job.rows, job.alone, job.plain, job.first = [], [], True, None, None
        for job in left:
            if job not in again:
                _fail(job, error)
        for job in (job for job in jobs if job.dead):
            job.count()
        with self._changed:
            self._waiting.extendleft(reversed(again))

    def _tell(self, running: Running) -> None:
        """Tell the jobs of a batch what their rows have become; those that ended leave it."""
        for job in running.jobs:
            if isinstance(running, Weighed):
                running.settle()
            elif not job.dead:
                self._settle(job, running.batch)
        on = [job for job in running.jobs if job.first is not None and job.rows and not job.dead]
        for job in running.jobs:
            if job.dead:
                job.count()
            if job.dead or job in on:
                for row in job.rows:
                    row.ended = True
        running.jobs = [job for job in running.jobs if not job.dead and job not in on]
        for job in on:
            job.rows = []
        with self._changed:
            self._waiting.extendleft(reversed(on))
        if not running.jobs and running in self._running:
            self._running.remove(running)

    def _settle(self, job: Job, batch: RunningBatch) -> None:
        for error in (row.error for row in job.rows if row.error is not None):
            return _fail(job, error)
        if not job.several:
            (row,) = job.rows
            if len(row.tokens) > len(job.ids):
                job.take(row.tokens, row.recorder)
                if (reason := self._reason(job, row)) and not job.over:
                    self._end(job, End(reason, row.recorder.rows(0) if row.recorder is not None else ()))
            return None
        for row in job.rows:
            row.ended = row.ended or bool(self._reason(job, row))
        if not (job.options.trace or job.sources):  # nobody reads a draft that is not given
            end_hopeless(job.rows)
        if all(row.ended for row in job.rows):
            recorders = [row.recorder for row in job.rows if row.recorder is not None]
            with batch.around():
                chosen = job.rows[0].plan.drafts.choose_one(
                    0, [row.tokens for row in job.rows], [recorder.evidence(0) for recorder in recorders]
                )
            given = next(i for i, draft in enumerate(chosen) if draft.given)
            for _ in job.rows[given].tokens:
                job.take(job.rows[given].tokens, job.rows[given].recorder)
            self._end(job, End(self._reason(job, job.rows[given]), recorders[given].rows(0), chosen))
        return None

    def _end(self, job: Job, end: End) -> None:
        """End a pair's answer; where several sources are to weigh it, they go on from it."""
        if job.sources is None:
            return job.finish(end)
        answer = answer_of(job, end, self.tokenizer, self.ends)
        if job.sources.prompts.several:
            job.plain, job.first = answer, end
        else:
            job.finish(replace(end, sources=told_pair(answer, job.sources.prompts)))
        return None

    def _reason(self, job: Job, row: Row) -> str:
        """Return why a row ends after its newest token; empty if it goes on."""
        if row.tokens[-1] in self.ends or (job.stop is not None and bool(job.stop(torch.tensor([row.tokens])))):
            return "stop"
        return "length" if len(row.tokens) >= job.options.max_new_tokens else ""


@cache
def _malloc_trim() -> Callable[[int], int]:
    """Return glibc's function that gives free memory back; joins and steps of every size leave its heap full of holes.

    Of other C libraries nothing is asked.
    """
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl and macOS; none; Windows
        return lambda pad: 0
    return trim


def _stopping() -> Refusal:
    return Refusal(503, "the server is stopping.", "Try again when it is back.")


def _fail(job: Job, error: Exception) -> None:
    """Fail a job; of what the client got wrong the log says nothing."""
    told = _told(error, job.control)
    if getattr(told, "status", 400) >= 500:
        log.warning("an answer failed: %s", told, exc_info=None if isinstance(error, CKError) else error)
    job.fail(told)


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
