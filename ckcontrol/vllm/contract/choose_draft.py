"""Which draft of an answer is given, from what the workers recorded of each. Knows policies and recorded rows.

Knows nothing of HTTP, of engines, nor of how the rows came here.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...answer import Draft
from ...control import Control
from ...decoding.drafts import choose
from ...decoding.recorder import evidence
from ...errors import ServingError
from ...policies import AnswerPolicy

__all__ = ["choose_draft"]


def choose_draft(
    control: Control,
    names: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    rows: Sequence[Sequence[Sequence[float]]],
    texts: Sequence[str],
    question: str,
    passages: Sequence[str],
) -> list[Draft]:
    """Return the drafts of an answer, without their texts; one of them is given.

    Args:
        control: Whose method chooses.
        names: From `pair_params.drafts`, in order.
        token_ids: Of each draft, the end token included.
        rows: What the workers recorded of each, per token; what they recorded past the answer's end is not read.
        texts: Of each draft.
        question: What was asked; empty where only ids came.
        passages: What it was asked with; none where only prompts came.

    Raises:
        ServingError: A draft without token ids, or one whose record is shorter than the draft: nothing can be compared.
    """
    policy = control.policy()
    if not isinstance(policy, AnswerPolicy):
        raise ServingError(f"method {control.method!r} has no drafts.")
    for name, ids, known in zip(names, token_ids, rows, strict=True):
        if not ids:
            raise ServingError(f"draft {name!r} came without token ids, by which drafts are compared.")
        if len(known) < len(ids):
            raise ServingError(
                f"draft {name!r} has {len(ids)} tokens, and the workers recall {len(known)} of them.",
                "Ask for fewer or shorter answers at once.",
            )
    found = [evidence([row[1:] for row in known[: len(ids)]]) for ids, known in zip(token_ids, rows, strict=True)]
    return choose(policy, names, token_ids, found, texts, question, passages)
