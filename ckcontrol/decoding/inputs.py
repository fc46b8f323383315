"""What the loop is given: padded streams, transformers' processors for our options, and the plan that holds both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..control import Control
from ..errors import ControlError
from ..policies.off import OFF
from .drafts import Drafts
from .loop import DecodingPlan
from .options import GenerateOptions
from .processing import unpadded
from .prompts import PromptPair
from .recorder import Recorder
from .refusals import check_tokenizer, input_device
from .streams import Stream
from .token_texts import StopTexts, said

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

    from .structured import Structure

__all__ = ["functions", "plan_of", "processors_for", "stream_of"]


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


def plan_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    controls: Sequence[Control],
    options: GenerateOptions,
    *,
    ends: Sequence[int],
    processors: Sequence[Any] = (),
    criteria: Sequence[Any] = (),
    structure: Structure | None = None,
    streamer: Any = None,
    seeds: Sequence[int] | None = None,
) -> DecodingPlan:
    """Return the plan of a batch.

    Args:
        model: Decodes it.
        tokenizer: The model's own.
        pairs: Prompts, one pair per question.
        controls: One per question, with one shortlist.
        options: Of all of them.
        ends: End tokens.
        processors: The caller's own, see `processors_for`.
        criteria: The caller's own, beside the end tokens, stop texts and longest answer.
        structure: What holds all answers to a grammar.
        streamer: transformers streamer.
        seeds: One per question, instead of that of the options.

    Raises:
        ControlError: Processors or criteria are no list of functions.
        TokenizerMismatch: The tokenizer is not the model's.
    """
    from transformers import StoppingCriteriaList
    from transformers.generation import EosTokenCriteria, MaxLengthCriteria

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    # Without passages the streams are one: nothing to steer, and rounding must not look like a conflict.
    steered = [pair.contextual != pair.parametric for pair in pairs]
    contextual = stream_of(model, [pair.contextual for pair in pairs], pad)
    length = contextual.input_ids.shape[1]
    ending = StoppingCriteriaList(
        [MaxLengthCriteria(length + options.max_new_tokens), *functions("criteria", criteria)]
    )
    if ends:
        ending.append(EosTokenCriteria(list(ends)))
    if options.stop:
        ending.append(StopTexts(tokenizer, options.stop, length))

    def text_of(ids: Sequence[int]) -> str:
        return said(tokenizer, ids, stop=options.stop, ends=ends, thinking=pairs[0].thinking).text

    policies = [c.policy() if two else OFF for c, two in zip(controls, steered, strict=True)]
    return DecodingPlan(
        drafts=Drafts(policies, [pair.question for pair in pairs], text_of, [pair.passages for pair in pairs]),
        shortlist=controls[0].shortlist,
        contextual=contextual,
        parametric=lambda: stream_of(model, [pair.parametric for pair in pairs], pad),
        processors=processors_for(options, contextual.keep, processors),
        criteria=ending,
        max_new_tokens=options.max_new_tokens,
        sample=options.do_sample,
        seed=options.seed if seeds is None else seeds,
        pad_token_id=pad,
        vocab_size=check_tokenizer(model, tokenizer),
        recorder=Recorder() if options.trace else None,
        streamer=streamer,
        penalise=options.penalty_scope,
        compile=options.compile,
        structure=structure,
    )
