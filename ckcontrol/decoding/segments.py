"""Where the sentences of a draft end, and which answers may be decided sentence by sentence.

Knows ids, their text and policies; the rounds that decode so are in rounds.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedMode
from ..policies import AnswerPolicy, Policy, sentence_end

__all__ = ["Segments", "check_segments", "seed_of_round", "segment", "segmented"]


@dataclass(frozen=True)
class Segments:
    """What ends a segment, and an answer.

    Attributes:
        read: Ids to their text, with white space at both ends.
        ends: Ids that end an answer.
        stopped: Tells of an answer's ids whether a stop text stands in it.
    """

    read: Callable[[Sequence[int]], str]
    ends: Collection[int] = ()
    stopped: Callable[[Sequence[int]], bool] = lambda ids: False


def segmented(policy: Policy) -> bool:
    """Return whether a policy chooses at every sentence."""
    return isinstance(policy, AnswerPolicy) and policy.segmented and len(policy.drafts) > 1


def segment(ids: Sequence[int], read: Callable[[Sequence[int]], str]) -> tuple[int, bool]:
    """Return how many of a draft's ids are its first sentence, and whether that has ended.

    That a sentence has ended shows in the token after it mostly, which then is not part of it.
    """
    text = read(ids)
    end = sentence_end(text)
    if end is None:
        return len(ids), False
    beyond = bool(text[end:].strip()) and len(ids) > 1
    return len(ids) - beyond, True


def seed_of_round(seed: int, number: int) -> int:
    """Return the seed that a round draws with: the question's own in the first, unlike ones after it."""
    return (seed + number * 0x9E3779B97F4A7C15) % 2**63 if number else seed


def check_segments(
    policies: Sequence[Policy],
    *,
    shared: bool,
    thinking: bool = False,
    penalty: bool = False,
    processors: Sequence[Any] = (),
    criteria: Sequence[Any] = (),
    structured: bool = False,
) -> bool:
    """Return whether any answer is decided by segments.

    Args:
        policies: Of the questions.
        shared: The model decodes both streams in one forward.
        thinking: The prompts open a thought.
        penalty: There is a repetition penalty.
        processors: The caller's own.
        criteria: Likewise; those with a true attribute ``any_row`` do not care which ids they see.
        structured: A grammar holds the answers.

    Raises:
        UnsupportedMode: There are, beside something that cannot be led back to where a draft starts anew.
    """
    if not any(map(segmented, policies)):
        return False
    barred = {
        "a model whose streams run in two forwards": not shared,
        "a thought": thinking,
        "a repetition penalty": penalty,
        "processors": bool(processors),
        "stopping criteria": any(not getattr(one, "any_row", False) for one in criteria),
        "a schema or grammar": structured,
    }
    if found := [name for name, there in barred.items() if there]:
        raise UnsupportedMode(
            f"segments=True starts drafts anew after each sentence, which {found[0]} cannot follow.",
            "Leave segments out to choose between whole answers.",
        )
    return True
