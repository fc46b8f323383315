"""What the loop is given: padded streams, and transformers' processors for our options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .options import GenerateOptions
from .processing import unpadded
from .streams import Stream

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedModel

__all__ = ["processors_for", "stream_of"]


def stream_of(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Stream:
    """Return the stream of some prompts, padded on the left with `pad` to the longest."""
    longest = max(map(len, prompts))
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return Stream(model, ids, mask)


def processors_for(options: GenerateOptions, keep: Tensor | None) -> LogitsProcessorList:
    """Return transformers' processors and warpers for these options, in transformers' order.

    Args:
        options: How tokens are drawn.
        keep: [B, L] bool, False where the prompts they will see are padded; None if nothing is.
    """
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as lp

    processors = LogitsProcessorList()
    if options.repetition_penalty != 1:
        penalty = lp.RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty))
        processors.append(penalty if options.penalty_scope == "generated" else unpadded(penalty, keep))
    if options.do_sample:
        if options.temperature != 1:
            processors.append(lp.TemperatureLogitsWarper(options.temperature))
        if options.top_k:
            processors.append(lp.TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            processors.append(lp.TopPLogitsWarper(options.top_p))
    return processors
