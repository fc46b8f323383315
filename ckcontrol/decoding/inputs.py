"""What the loop is given: padded streams, and transformers' processors for our options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ControlError
from .options import GenerateOptions
from .processing import unpadded
from .refusals import input_device
from .streams import Stream

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedModel

__all__ = ["functions", "processors_for", "stream_of"]


def functions(name: str, given: Any) -> list[Callable[..., Tensor]]:
    """Return a caller's processors or criteria as a list.

    Raises:
        ControlError: One alone, or something that cannot be called.
    """
    if not isinstance(given, (list, tuple)) or not all(callable(one) and not isinstance(one, type) for one in given):
        raise ControlError(
            f"{name}={given!r:.60} is no list of functions.", f"Pass {name}=[...], as transformers does."
        )
    return list(given)


def stream_of(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Stream:
    """Return the stream of some prompts, padded on the left with `pad` to the longest."""
    longest = max(map(len, prompts))
    device = input_device(model)
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return Stream(model, ids, mask)


def processors_for(
    options: GenerateOptions, keep: Tensor | None, given: Sequence[Callable[..., Tensor]] = ()
) -> LogitsProcessorList:
    """Return transformers' processors and warpers for these options, in transformers' order.

    Args:
        options: How tokens are drawn.
        keep: [B, L] bool over the prompts, False where they are padded; None if nothing is.
        given: The caller's own, which see scores that are penalised but not yet warped.

    Raises:
        ControlError: `given` is no list of functions.
    """
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as lp

    processors = LogitsProcessorList()
    if options.repetition_penalty != 1:
        penalty = lp.RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty))
        processors.append(penalty if options.penalty_scope == "generated" else unpadded(penalty, keep))
    processors += functions("processors", given)
    if options.do_sample:
        if options.temperature != 1:
            processors.append(lp.TemperatureLogitsWarper(options.temperature))
        if options.top_k:
            processors.append(lp.TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            processors.append(lp.TopPLogitsWarper(options.top_p))
    return processors
