"""How likely given endings of a question are under one control: `likelihoods` of texts, and whether one is said.

Knows models and prompts; knows nothing of records, tasks or frameworks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckcontrol.control import Control
from ckcontrol.decoding.generate import generate
from ckcontrol.decoding.prompts import build_pair, plain_ids
from ckcontrol.decoding.refusals import check_tokenizer, eos_ids, position_limit
from ckcontrol.errors import PromptError
from ckcontrol.policies.off import OFF

from ..running.likelihood import likelihoods

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ckcontrol.decoding.prompts import PromptTemplate

__all__ = ["compare", "spoken"]


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    passages: Sequence[str],
    endings: Sequence[str],
    *,
    control: Control,
    template: PromptTemplate | None = None,
    truncate: str | None = None,
) -> list[float]:
    """Return the log-likelihood of each ending after one prompt, in nats.

    Args:
        model: A decoder-only model.
        tokenizer: Its tokenizer.
        question: As in `ckcontrol.generate`.
        passages: Empty: closed book, and the control has nothing to steer.
        endings: Plain texts, leading space included; they are tokenised apart from the prompt.
        control: Policy and dial. Its shortlist is not used, see likelihood.py.
        template: Wording.
        truncate: As in `ckcontrol.generate`; room is left for the longest ending.

    Raises:
        PromptError: As in `build_pair`, or an empty ending; `PromptTooLong` if one does not fit.
        TokenizerMismatch: The tokenizer is not the model's.
    """
    vocab_size = check_tokenizer(model, tokenizer)
    ids = [plain_ids(tokenizer, ending) for ending in endings]
    if not all(ids):
        raise PromptError("an ending is empty.", "Give each at least one character.")
    room, limit = max(map(len, ids), default=0), position_limit(model)
    pair = build_pair(
        tokenizer,
        question,
        passages,
        template=template,
        limit=None if limit is None else max(0, limit - room),
        max_new_tokens=room,
        truncate=truncate,
    )
    policy = control.policy() if pair.passages else OFF
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(eos_ids(model, tokenizer), default=0)
    prompts = [(pair.contextual, pair.parametric)] * len(ids)
    table = likelihoods(model, prompts, ids, [policy], vocab_size=vocab_size, pad=int(pad)) if ids else []
    return [row[0] for row in table]


def spoken(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    passages: Sequence[str],
    endings: Sequence[str],
    *,
    control: Control,
    template: PromptTemplate | None = None,
    truncate: str | None = None,
) -> list[bool]:
    """Return for each ending whether greedy decoding would begin with exactly its tokens. Arguments as in `compare`."""
    ids = [tuple(plain_ids(tokenizer, ending)) for ending in endings]
    longest = max(map(len, ids), default=1)
    options: dict[str, Any] = {"control": control, "template": template, "truncate": truncate, "trace": False}
    said = generate(model, tokenizer, question, passages, max_new_tokens=longest, **options).token_ids
    return [said[: len(ending)] == ending for ending in ids]
