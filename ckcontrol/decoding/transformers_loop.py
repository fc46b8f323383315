"""The door for `model.generate(custom_generate=...)`: transformers prepares, the one loop of loop.py decodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..control import Control, controls_for
from ..errors import ControlError, PromptTooLong, UnsupportedMode
from ..policies import Policy, check_drafts, draft_policies
from .drafts import Drafts
from .endings import Once
from .loop import Generated, decode
from .options import GenerateOptions, stop_texts
from .plan import DecodingPlan
from .recorder import Recorder
from .refusals import CACHE_NAMES, check_mode, check_model, position_limit
from .streams import Stream
from .token_texts import StopTexts, said

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        StoppingCriteriaList,
    )
    from transformers.generation.streamers import BaseStreamer

__all__ = ["decoding_loop"]


def decoding_loop(
    control: Control | Sequence[Control] | None = None,
    *,
    parametric_ids: Tensor,
    parametric_mask: Tensor | None = None,
    vocab_size: int | None = None,
    streamer: BaseStreamer | None = None,
    recorder: Recorder | None = None,
    seed: int | None = None,
    penalty_scope: str = "all",
    tokenizer: PreTrainedTokenizerBase | None = None,
    stop: str | Sequence[str] = (),
    compile: bool | None = None,
) -> Callable[..., Any]:
    """Return a callable for ``model.generate(**contextual_inputs, custom_generate=...)``.

    transformers prepares everything it usually does (generation config, processors, stopping criteria); this loop
    replaces its sampling loop. The order is: fuse the raw logits, then transformers' processors and warpers, then one
    draw per pair.

    Args:
        control: Which policy and how far; a list gives one per row.
        parametric_ids: The prompts without passages, left-padded, [B, L_par] int64: one row per row of `input_ids`.
            With ``num_return_sequences=n`` pass B rows; they are repeated.
        parametric_mask: Their attention mask, [B, L_par]; None means nothing is padded.
        vocab_size: ``len(tokenizer)``: higher ids can never win. None trusts the model's width.
        streamer: transformers streamer. It must be given here: transformers drops ``generate(streamer=...)`` for
            callables, without ending it. It is ended exactly once, also if the call is refused; if transformers
            itself refuses before it comes here, when the loop is forgotten.
        recorder: A `Recorder` to be filled with the trace.
        seed: As in `GenerateOptions`; None uses torch's global generator like ``model.generate``.
        penalty_scope: As in `GenerateOptions`.
        tokenizer: Needed with stop texts, and for ``dial`` to recognise drafts that say nothing. It must be given here:
            transformers drops ``generate(tokenizer=...)`` for callables.
        stop: As in `GenerateOptions`, beside ``generate(stop_strings=...)``; the ids hold the text that ended them.
            Stop strings in a generation config are refused by transformers itself, which does not find the tokenizer.
        compile: As in `GenerateOptions`.

    Returns:
        The callable. It returns what ``model.generate`` would: ids, or a `GenerateDecoderOnlyOutput` with
        ``return_dict_in_generate=True`` (scores are the fused, processed scores; logits the raw contextual ones).

    Raises:
        UnsupportedMode: From within generate, before the first forward: see `refusals.REFUSED`.
        ControlError: Row counts of the two prompts differ, or an option is out of range.
    """
    once = None if streamer is None else Once(streamer)
    try:
        drawn = GenerateOptions(seed=seed, penalty_scope=penalty_scope, stop=stop, compile=compile)  # type: ignore[arg-type]
    except ControlError:
        if once is not None:
            once.end()
        raise

    def loop(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        stop_strings: str | Sequence[str] | None = None,  # named here, so that transformers leaves them to us
        **model_kwargs: Any,  # an input named here would be taken from transformers before it prepares the rest
    ) -> Any:
        check_model(model)
        check_mode(generation_config, model.generation_config)
        attention_mask = model_kwargs.pop("attention_mask", None)
        _check_inputs(model_kwargs)
        rows = input_ids.shape[0]
        ids, mask = _repeat(parametric_ids.to(input_ids.device), parametric_mask, rows, generation_config)
        controls = controls_for(control, rows)
        longest = stopping_criteria.max_length or generation_config.max_length
        budget = int(longest) - input_ids.shape[1]
        limit = position_limit(model)
        widths = (input_ids.shape[1], ids.shape[1])
        if limit is not None and max(widths) + budget > limit:
            raise PromptTooLong(*widths, limit - budget, budget)
        texts = (*drawn.stop, *(() if stop_strings is None else stop_texts(stop_strings)))
        if texts and tokenizer is None:
            raise ControlError(f"stop={texts!r:.60} needs the tokenizer.", "Pass decoding_loop(tokenizer=...).")
        if texts:
            stopping_criteria.append(StopTexts(tokenizer, texts, input_ids.shape[1]))
        pad = getattr(generation_config, "_pad_token_tensor", None)
        plan = DecodingPlan(
            drafts=_drafts([c.policy() for c in controls], ids, tokenizer),
            shortlist=controls[0].shortlist,
            contextual=Stream(model, input_ids, attention_mask),
            parametric=lambda: Stream(model, ids, mask),
            processors=logits_processor,
            criteria=stopping_criteria,
            max_new_tokens=budget,
            sample=bool(generation_config.do_sample),
            seed=drawn.seed,
            pad_token_id=int(pad) if pad is not None else int(generation_config.pad_token_id or 0),
            vocab_size=vocab_size,
            recorder=recorder,
            streamer=once,
            penalise=drawn.penalty_scope,
            keep_scores=bool(generation_config.output_scores and generation_config.return_dict_in_generate),
            keep_logits=bool(generation_config.output_logits and generation_config.return_dict_in_generate),
            compile=drawn.compile,
        )
        return _native_result(plan, decode(plan), generation_config)

    return loop if once is None else once.around(loop)


def _drafts(policies: Sequence[Policy], prompts: Tensor, tokenizer: PreTrainedTokenizerBase | None) -> Drafts:
    """Return the drafts; where there is a tokenizer, the prompts without passages stand for the questions."""
    check_drafts(policies, "decoding_loop")
    if tokenizer is None or all(len(draft_policies(policy)) == 1 for policy in policies):
        return Drafts(policies)
    ends = {token for token in (tokenizer.eos_token_id,) if token is not None}
    questions = [said(tokenizer, row).text for row in prompts.tolist()]
    return Drafts(policies, questions, lambda ids: said(tokenizer, ids, ends=ends).text)


def _native_result(plan: DecodingPlan, made: Generated, config: GenerationConfig) -> Any:
    if not config.return_dict_in_generate:
        return made.sequences
    from transformers.generation import GenerateDecoderOnlyOutput

    return GenerateDecoderOnlyOutput(
        sequences=made.sequences,
        scores=tuple(plan.scores) if config.output_scores else None,
        logits=tuple(plan.logits) if config.output_logits else None,
    )


def _check_inputs(model_kwargs: dict[str, Any]) -> None:
    cache = next((model_kwargs[name] for name in CACHE_NAMES if model_kwargs.get(name) is not None), None)
    if cache is not None and _filled(cache):
        raise UnsupportedMode("past_key_values is already filled.", "Pass the whole prompt instead.")
    known = {*CACHE_NAMES, "position_ids", "use_cache", "logits_to_keep", "cache_position"}
    known |= {"output_attentions", "output_hidden_states"}  # asked for: check_mode; from the config: nobody asked
    if unknown := sorted(k for k, v in model_kwargs.items() if k not in known and not _says_nothing(k, v)):
        raise UnsupportedMode(f"model inputs {unknown} have no parametric counterpart.", "Pass token ids only.")


def _filled(cache: Any) -> bool:
    states = [layer.has_previous_state for layer in getattr(cache, "layers", ()) if hasattr(layer, "recurrent_states")]
    return any(any(state.values()) for state in states) if states else cache.get_seq_length() > 0


def _says_nothing(name: str, value: Any) -> bool:
    """Whether an input says only that there is text alone: what transformers or a processor adds by itself."""
    if isinstance(value, Tensor):
        return value.numel() == 0 or (name.endswith("token_type_ids") and not bool(value.any()))
    return value is None or (isinstance(value, (dict, list, tuple)) and not value)


def _repeat(ids: Tensor, mask: Tensor | None, rows: int, config: GenerationConfig) -> tuple[Tensor, Tensor | None]:
    copies = config.num_return_sequences or 1
    if ids.ndim != 2 or ids.shape[0] * copies != rows:
        raise ControlError(
            f"parametric_ids has shape {tuple(ids.shape)} for {rows // copies} contextual prompts.",
            "Give one parametric row per contextual row.",
        )
    if mask is not None and mask.shape != ids.shape:
        raise ControlError(
            f"parametric_mask has shape {tuple(mask.shape)}, parametric_ids {tuple(ids.shape)}.",
            "Make them equal.",
        )
    return ids.repeat_interleave(copies, 0), None if mask is None else mask.repeat_interleave(copies, 0)
