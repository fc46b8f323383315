"""Plain forwards over left-padded prompts: the last logits and greedy texts.

Knows padding, positions and transformers' forward. The caller's hooks act as they do whenever the model runs.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Batch", "eager", "greedy", "last_logits", "pad", "run", "tokenized"]


class Batch(NamedTuple):
    """Left-padded prompts: the last column is every prompt's last token."""

    ids: Tensor  # [N, T] int64
    mask: Tensor  # [N, T] int64, 1 = token


def pad(prompts: Sequence[Sequence[int]], device: torch.device) -> Batch:
    """Put prompts of any lengths into one batch; padding is id 0, masked."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return Batch(ids, mask)


def tokenized(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Batch:
    """Tokenize texts into one batch on the model's device."""
    return pad([tokenizer(text).input_ids for text in texts], model.device)


_LOCK = threading.Lock()
_EAGER: list[Any] = []  # one entry per block that runs; the first holds torch's way back


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled models and layers as plain Python while the block runs: compiled code does not see hooks.

    In the whole process, also for models compiled by another name (``torch.compile`` returns a new one), and nothing
    is compiled inside, so that no compiled code outlives the hooks. Blocks nest and overlap between threads.
    """
    with _LOCK:
        _EAGER.append(None if _EAGER else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _LOCK:
            if len(_EAGER) == 1:
                _EAGER[0].__exit__(None, None, None)
            _EAGER.pop()


def run(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The model's logits at the last position, [N, V], in the model's dtype; gradients flow."""
    accepted = inspect.signature(model.forward).parameters
    extra = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    positions = (batch.mask.cumsum(-1) - 1).clamp(min=0)
    mask = None if bool(batch.mask.all()) else batch.mask
    with eager():
        output = model(input_ids=batch.ids, attention_mask=mask, position_ids=positions, use_cache=False, **extra)
    logits: Tensor = output.logits[:, -1]
    return logits


@torch.no_grad()
def last_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Like `run`, without gradients."""
    return run(model, batch)


@torch.no_grad()
def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Batch, max_new_tokens: int) -> list[str]:
    """Continue every prompt greedily; return the new text of each, without special tokens."""
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    made = model.generate(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad_id,
    )
    texts: list[str] = tokenizer.batch_decode(made[:, batch.ids.shape[1] :], skip_special_tokens=True)
    return texts
