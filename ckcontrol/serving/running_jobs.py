"""What a batcher steps in turn: a batch with the jobs in it, or one question whose sources weigh whole answers.

Knows jobs and what changes the model for them; who decides what begins, and tells whom, is the batcher.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..answer import Answer
from ..decoding.running import RunningBatch
from ..decoding.token_texts import said
from ..heads.apply import Pruned
from ..heads.directions.apply import Added
from ..heads.directions.direction import Direction
from .jobs import End, Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Running", "Weighed", "answer_of"]


class Running:
    """A batch and the jobs in it, which are of one kind.

    Args:
        model: Decodes them.
        first: One of them, which says what changes the model.
        direction: What its alpha leads along.
    """

    def __init__(self, model: PreTrainedModel, first: Job, direction: Direction | None) -> None:
        self.kind: Any = first.kind
        self.jobs: list[Job] = []
        self.batch = RunningBatch(self._around)
        # both were made for this model: no step reads its weights to see that
        self._changes: list[Pruned | Added] = [] if first.mask is None else [Pruned(model, first.mask, strict=False)]
        if first.direction is not None:
            self._changes.append(Added(model, direction, first.direction, strict=False))

    @contextmanager
    def _around(self) -> Iterator[None]:
        with ExitStack() as stack:
            for change in self._changes:
                stack.enter_context(change.acting())
            yield

    def step(self) -> None:
        """Give every row one more token."""
        self.batch.step()


class Weighed(Running):
    """One question whose sources write, read and weigh whole answers, a forward at each step.

    Attributes:
        answer: Once it is there.
    """

    def __init__(
        self, model: PreTrainedModel, job: Job, direction: Direction | None, steps: Generator[None, None, Answer]
    ) -> None:
        super().__init__(model, job, direction)
        self.kind, self.jobs, self.steps = None, [job], steps
        self.answer: Answer | None = None

    def step(self) -> None:
        """Run one more forward."""
        with self._around():
            try:
                next(self.steps)
            except StopIteration as ended:
                self.answer = ended.value

    def settle(self) -> None:
        """Tell the job of its answer, if it is there; leave the streams where nobody waits for it."""
        (job,) = self.jobs
        answer = self.answer
        if job.dead:
            self.steps.close()
        elif answer is not None:
            while len(job.ids) < len(answer.token_ids):
                job.take(answer.token_ids, None)
            end = job.first or End(answer.finish_reason, _rows(answer), answer.drafts)
            job.finish(replace(end, sources=answer.sources, disputed=answer.disputed))


def answer_of(job: Job, end: End, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> Answer:
    """Return what a job's pair was answered, without its trace.

    Args:
        job: Its ids are complete.
        end: Of it.
        tokenizer: The model's own.
        ends: End tokens.
    """
    pair = job.pair

    def read(ids: Sequence[int]) -> str:
        return said(tokenizer, ids, stop=job.options.stop, ends=ends, thinking=pair.thinking).text

    return Answer(
        text=read(job.ids),
        tokens=(),
        token_ids=tuple(job.ids),
        question=pair.question,
        passages=pair.passages,
        control=job.control,
        finish_reason=end.reason,
        context_tokens=len(pair.contextual),
        parametric_tokens=len(pair.parametric),
        drafts=tuple(replace(draft, text=read(draft.token_ids)) for draft in end.drafts),
    )


def _rows(answer: Answer) -> list[list[Any]]:
    """Return an answer's traces as `Recorder.rows` tells them."""
    return [
        [t.logp_final, t.h_par, t.h_ctx, t.tau, t.switched, t.rank_par, t.rank_ctx, t.logp_par, t.logp_ctx, 0.0]
        for t in answer.tokens
    ]
