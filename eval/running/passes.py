"""The work of a run, cut into passes: records of similar length under all arms that share a wording of the prompt.

The cut depends on the records and the settings alone, never on what is already done or by whom, so an interrupted run
and its shards make the very passes of a whole run, and round alike. Knows records, arms and engines' lengths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ckcontrol.errors import EvalError

from ..records import Record
from .arms import Arm

__all__ = ["Pass", "in_measuring_order", "passes", "shard_of"]


TOKENS = 8192  # a pass is widened beyond batch_size only up to so many tokens (of a server: characters)


@dataclass(frozen=True)
class Pass:
    """Records that are run together.

    Attributes:
        key: Digest of everything below.
        task: Its name.
        prompt: Wording of the prompts.
        records: Of similar length.
        arms: All that use this wording.
        work: A measure of the cost: prompt length times records, plus a share for every answer.
    """

    key: str
    task: str
    prompt: str
    records: tuple[Record, ...]
    arms: tuple[Arm, ...]
    work: float


def passes(
    tasks: Sequence[tuple[str, Sequence[Record]]],
    arms: Sequence[Arm],
    length: Callable[[Record, str], int],
    *,
    batch_size: int,
) -> list[Pass]:
    """Cut the work, longest records first within a task: what does not fit fails early.

    Args:
        tasks: Names and records.
        arms: All arms of the run.
        length: Length of a record's prompts under a wording.
        batch_size: Records per pass; up to eight times as many where fewer than eight arms share a wording.

    Raises:
        EvalError: The arms differ in the shortlist that one pass shares.
    """
    if len({arm.control.shortlist for arm in arms}) > 1:
        raise EvalError("the methods differ in candidates or candidate_ratio.", "Run them into separate folders.")
    made = []
    for task, records in tasks:
        for prompt in dict.fromkeys(arm.prompt for arm in arms):
            mine = tuple(arm for arm in arms if arm.prompt == prompt)
            # A text to complete has no instruction that could be worded in another way.
            some = [record for record in records if prompt == "base" or not (record.cloze or record.choices)]
            sizes = {record.id: length(record, prompt) for record in some}
            order = sorted(some, key=lambda record: (-sizes[record.id], record.id))
            # A row of the batch costs the same whether records or arms fill it, as long as the prompts are short.
            widest = batch_size * max(1, 8 // len(mine))
            start = 0
            while start < len(order):
                size = max(batch_size, min(widest, TOKENS // max(1, sizes[order[start].id])))
                part = tuple(order[start : start + size])
                start += size
                longest = max(sizes[record.id] for record in part)
                # Padding makes every record as long as the longest; an answer costs about as much as 10 tokens per arm.
                work = len(part) * (longest + 10.0 * len(mine))
                made.append(Pass(_key(task, prompt, part, mine), task, prompt, part, mine, work))
    return made


def _key(task: str, prompt: str, records: Sequence[Record], arms: Sequence[Arm]) -> str:
    content: Any = [task, prompt, [record.to_dict() for record in records], [arm.to_dict() for arm in arms]]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def shard_of(work: Sequence[Pass], shard: tuple[int, int]) -> list[Pass]:
    """Return the passes of shard i of n, counted from 1.

    Raises:
        EvalError: There is no such shard.
    """
    which, count = shard
    if not 1 <= which <= count:
        raise EvalError(f"there is no shard {which} of {count}.", "Write --shard 1/4 to --shard 4/4.")
    return [each for i, each in enumerate(work) if i % count == which - 1]


def in_measuring_order(work: Sequence[Pass]) -> tuple[list[Pass], int]:
    """Put a long and a short pass of every task and wording first, to measure by; return the order and their number.

    A group of fewer than five passes is not measured by itself: it is over before an estimate would be of use.
    """
    groups: dict[tuple[str, str], list[Pass]] = {}
    for each in work:
        groups.setdefault((each.task, each.prompt), []).append(each)
    first = []
    for members in groups.values():
        if len(members) > 4:
            first += [members[len(members) // 4], members[3 * len(members) // 4]]
    keys = {each.key for each in first}
    return [*first, *(each for each in work if each.key not in keys)], len(first)
