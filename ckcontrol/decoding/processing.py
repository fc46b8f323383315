"""Processors and stopping criteria, called as `model.generate` would call them.

Row i of what they see is row i of the batch that was asked, whatever the loop decodes beside it: for policies that
choose between whole answers they are called once per draft, each time with one row per question. And
`penalty_scope="generated"` shortens the view of penalties alone. Knows ids, scores and transformers' two interfaces;
knows no model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UnsupportedMode

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, StoppingCriteriaList

__all__ = ["RowsOfQuestions", "is_penalty", "penalise_answers", "unpadded"]

# transformers' own that treat every row alike and keep nothing of it: called once for all drafts.
_ROW_BLIND = frozenset(
    {
        "EosTokenCriteria",
        "MaxLengthCriteria",
        "MaxTimeCriteria",
        "StopStringCriteria",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
    }
)


class RowsOfQuestions:
    """The processors and criteria of a run whose rows are drafts of questions.

    Args:
        processors: transformers' logits processors and warpers.
        criteria: transformers' stopping criteria.
        items: Row to question, the rows of a question beside each other.
        device: Of the rows.

    Raises:
        UnsupportedMode: One of them cannot be copied: every further draft needs one with a memory of its own.
    """

    def __init__(
        self,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        items: Sequence[int],
        device: torch.device,
    ) -> None:
        questions = max(items) + 1
        drafts = [[row for row, of in enumerate(items) if of == item] for item in range(questions)]
        turns = range(max(map(len, drafts)))
        # A question with fewer drafts than others shows its last one again; nobody reads what comes of it.
        self._turns = [
            torch.tensor([rows[min(turn, len(rows) - 1)] for rows in drafts], device=device) for turn in turns
        ]
        places = [drafts[item].index(row) * questions + item for row, item in enumerate(items)]
        self._back = torch.tensor(places, device=device)
        self._processors = (
            [processors] if _row_blind(processors) else [processors, *map(_copies, [processors] * turns[-1])]
        )
        self._criteria = [criteria] if _row_blind(criteria) else [criteria, *map(_copies, [criteria] * turns[-1])]

    def process(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the processed scores, [R, L] and [R, V] -> [R, V]."""
        if len(self._processors) == 1:
            return self._processors[0](ids, scores)  # type: ignore[no-any-return]
        made = [
            processors(ids[rows], scores[rows]) for rows, processors in zip(self._turns, self._processors, strict=True)
        ]
        return torch.cat(made)[self._back]

    def stop(self, ids: Tensor, scores: Sequence[Tensor] | None) -> Tensor:
        """Return which rows end, [R, L] -> [R] bool; `scores` are those of all steps, where they are kept."""
        if len(self._criteria) == 1:
            return self._criteria[0](ids, None if scores is None else tuple(scores)).bool()  # type: ignore[no-any-return]
        ended = [
            criteria(ids[rows], None if scores is None else tuple(step[rows] for step in scores)).bool()
            for rows, criteria in zip(self._turns, self._criteria, strict=True)
        ]
        return torch.cat(ended)[self._back]


def _row_blind(things: Sequence[Any]) -> bool:
    return all(type(t).__name__ in _ROW_BLIND and type(t).__module__.startswith("transformers.") for t in things)


def _copies(things: Any) -> Any:
    """Return a list of the same type with copies that share no memory of rows; models and tokenizers stay shared."""
    from transformers import PreTrainedTokenizerBase

    copied = type(things)()
    for thing in things:
        held = [*getattr(thing, "__dict__", {}).values()]
        for value in [*held, thing]:
            held += getattr(getattr(value, "__self__", None), "__dict__", {}).values()  # of a bound method
        shared = {id(v): v for v in held if isinstance(v, (torch.nn.Module, PreTrainedTokenizerBase))}
        try:
            copied.append(copy.deepcopy(thing, shared))
        except Exception as error:
            raise UnsupportedMode(
                f"{type(thing).__name__} cannot be copied ({error}), and a method that chooses between whole answers "
                "needs one for each draft.",
                "Give it a __deepcopy__, or use a method that decides per token, such as 'ck-plug'.",
            ) from error
    return copied


def is_penalty(processor: Any) -> bool:
    """Whether a processor punishes repeating what it is shown, and so is what `penalty_scope` speaks of.

    That is transformers' repetition penalty and n-gram ban, and any processor with an attribute `penalty` or
    `..._penalty` (a presence or frequency penalty of your own), unless it is about length.
    """
    if type(processor).__name__ == "NoRepeatNGramLogitsProcessor":
        return True
    names = [type(processor).__name__, *getattr(processor, "__dict__", {})]
    return any(n.endswith("penalty") for n in names[1:]) and not any("length_p" in n or "LengthP" in n for n in names)


def penalise_answers(processors: LogitsProcessorList, prompt_length: int) -> LogitsProcessorList:
    """Return the processors with every penalty seeing the answer alone; all others see prompt and answer."""
    return type(processors)(_AnswerOnly(p, prompt_length) if is_penalty(p) else p for p in processors)


class _AnswerOnly:
    """A penalty that is shown the ids from `prompt_length` on."""

    def __init__(self, penalty: Any, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self.inner = penalty
        ignored = getattr(penalty, "prompt_ignore_length", None)
        if ignored is not None:  # counted from the prompt's beginning, which it no longer sees
            self.inner = copy.copy(penalty)
            left = ignored - prompt_length
            self.inner.prompt_ignore_length = left.clamp(min=0) if isinstance(left, Tensor) else max(0, left)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the penalised scores, [B, L] and [B, V] -> [B, V]."""
        return self.inner(input_ids[:, self.prompt_length :], scores)  # type: ignore[no-any-return]


def unpadded(penalty: Callable[[Tensor, Tensor], Tensor], keep: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a penalty on the set of ids seen that does not count padding, as in a batch of one.

    Args:
        penalty: A repetition penalty.
        keep: [B, L] bool over the prompts, False where they are padded on the left; None if nothing is.
    """
    return penalty if keep is None else _Unpadded(penalty, keep)


class _Unpadded:
    def __init__(self, penalty: Callable[[Tensor, Tensor], Tensor], keep: Tensor) -> None:
        self.penalty, self.keep = penalty, keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Show every padded position as the row's newest token, which is seen once already."""
        width = self.keep.shape[1]
        prompt = input_ids[:, :width].where(self.keep, input_ids[:, -1:])
        return self.penalty(torch.cat([prompt, input_ids[:, width:]], dim=1), scores)
