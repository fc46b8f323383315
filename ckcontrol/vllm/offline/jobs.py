"""The pairs of one offline call, one per question or one per draft: how many run at once, and which is the answer.

Knows controls and what the workers have room for; knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ...answer import Draft
from ...control import Control
from ...decoding.options import GenerateOptions
from ...errors import ServingError
from ..contract.choose_draft import choose_draft
from ..contract.pair_params import new_pair
from ..engine.traces import MAX_TOKENS

__all__ = ["Job", "given_of", "parts"]


@dataclass(eq=False)
class Job:
    """One pair.

    Attributes:
        item: Its question.
        draft: Its draft; empty if it has only one.
        name: The pair's.
        ids: Its tokens, once it has run.
        rows: What the workers recorded of them.
        broken: The stream whose logits became NaN or infinite; empty if none did.
        failed: Why it could not be steered to its end; empty if it was.
    """

    item: int
    draft: str
    name: str = field(default_factory=new_pair)
    ids: list[int] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    broken: str = ""
    failed: str = ""


def parts(items: Sequence[Sequence[Job]], chosen: GenerateOptions, room: int = MAX_TOKENS // 2) -> Iterator[list[Job]]:
    """Yield the jobs that run at once, those of an item together: all; or as many as can be recorded.

    Args:
        items: The jobs of each item.
        chosen: Length of the answers, and whether all are recorded; drafts are in any case.
        room: Tokens that the workers can record.
    """
    part: list[Job] = []
    tokens = 0
    for jobs in items:
        longest = chosen.max_new_tokens * len(jobs) if chosen.trace or len(jobs) > 1 else 0
        if tokens and tokens + longest > room:
            yield part
            part, tokens = [], 0
        part += jobs
        tokens += longest
    yield part


def given_of(
    jobs: Sequence[Job],
    control: Control,
    lost: bool,
    question: str,
    passages: Sequence[str],
    read: Callable[[Sequence[int]], str],
) -> tuple[Job, list[Draft]]:
    """Return the pair that an item is answered with, and the drafts it was chosen from; none if one of them broke.

    Args:
        jobs: Of the item.
        control: Whose method chooses.
        lost: The pair fell back to plain context.
        question: What was asked.
        passages: What it was asked with.
        read: Ids of an answer to its text.

    Raises:
        ServingError: The drafts cannot be compared.
    """
    if len(jobs) == 1 or lost:
        return jobs[0], []
    if broken := [job for job in jobs if job.broken or job.failed]:
        return broken[0], []
    try:
        drafts = choose_draft(
            control,
            [job.draft for job in jobs],
            [job.ids for job in jobs],
            [job.rows for job in jobs],
            [read(job.ids) for job in jobs],
            question,
            passages,
        )
    except ServingError as error:
        raise ServingError(f"item {jobs[0].item}: {error}") from error
    return next(job for job, draft in zip(jobs, drafts, strict=True) if draft.given), drafts
