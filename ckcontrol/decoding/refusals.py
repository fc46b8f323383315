"""Refusals, before any forward: models, tokenizers and generation modes that two-stream decoding cannot honour.

Knows transformers' model and generation configs; changes nothing. Every refused mode is listed with its remedy in
`REFUSED`, which the tests walk through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import TokenizerMismatch, UnsupportedMode

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["REFUSED", "check_mode", "check_model", "check_tokenizer", "eos_ids", "position_limit"]

# what -> (test on the generation config, why and what to do instead)
REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "beam search": (lambda c: (c.num_beams or 1) > 1, "Use num_beams=1; sample several answers instead."),
    "contrastive search": (
        lambda c: bool(getattr(c, "penalty_alpha", None)),
        "Drop penalty_alpha; for contrast between context and memory use method='cad'.",
    ),
    "DoLa": (lambda c: getattr(c, "dola_layers", None) is not None, "Drop dola_layers."),
    "assisted decoding": (
        lambda c: bool(getattr(c, "prompt_lookup_num_tokens", None) or getattr(c, "is_assistant", False)),
        "Drop prompt_lookup_num_tokens and assistant models: a draft knows one stream only.",
    ),
    "guidance_scale": (
        lambda c: (getattr(c, "guidance_scale", None) or 1) != 1,
        "Drop it: Control(method='cad', cad_alpha=guidance_scale - 1, candidate_ratio=0) is the same and batched.",
    ),
    "constrained beams": (
        lambda c: bool(getattr(c, "force_words_ids", None) or getattr(c, "constraints", None)),
        "Use prefix_allowed_tokens_fn or a logits processor.",
    ),
    "token healing": (lambda c: bool(getattr(c, "token_healing", False)), "Drop token_healing."),
    "a cache_implementation": (
        lambda c: c.cache_implementation not in (None, "dynamic"),
        "Leave cache_implementation unset: the streams keep caches of their own.",
    ),
    "use_cache=False": (
        lambda c: c.use_cache is False,
        "Leave use_cache on, or use ckcontrol.reference_generate.",
    ),
    "output_attentions": (lambda c: bool(c.output_attentions), "Drop it: one forward serves two streams."),
    "output_hidden_states": (
        lambda c: bool(c.output_hidden_states),
        "Drop it: one forward serves two streams.",
    ),
}


def check_mode(config: GenerationConfig) -> None:
    """Raise `UnsupportedMode` if the generation config asks for a mode in `REFUSED`."""
    for what, (asked, instead) in REFUSED.items():
        if asked(config):
            raise UnsupportedMode(f"{what} is not supported.", instead)


def check_model(model: PreTrainedModel) -> None:
    """Raise `UnsupportedMode` for encoder-decoder models and models without a language-model head."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedMode(f"{type(model).__name__} is an encoder-decoder model.", "Use a decoder-only model.")
    if model.get_output_embeddings() is None or not hasattr(model, "generate"):
        raise UnsupportedMode(f"{type(model).__name__} has no language-model head.", "Load AutoModelForCausalLM.")


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[int, ...]:
    """Return every end token: of the generation config, the model config and the tokenizer."""
    found: set[int] = set()
    for owner in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(owner, "eos_token_id", None)
        found |= set(value) if isinstance(value, (list, tuple)) else set() if value is None else {int(value)}
    return tuple(sorted(found))


def position_limit(model: PreTrainedModel) -> int | None:
    """Return the number of positions the model was made for, or None if its config does not say."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(model.config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Check that the tokenizer is the model's; return the number of ids the tokenizer can name.

    The fingerprint: every ordinary id fits the model's output, and the model's end tokens are special tokens of the
    tokenizer, or at least tokens it can name (chat fine-tunes end with an ordinary one). Where they are ordinary, none
    of them is the tokenizer's own end token, and the two come from different places, the tokenizer is another model's.
    (Two tokenizers that pass all this and still differ cannot be told apart from their files.)

    Raises:
        TokenizerMismatch: With the ids that differ.
    """
    width = int(model.get_output_embeddings().weight.shape[0])
    if tokenizer.vocab_size > width:
        raise TokenizerMismatch(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model produces {width}.",
            "Load the tokenizer from the model's own folder.",
        )
    size = len(tokenizer)
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    ends = eos_ids(model)
    strangers = [token for token in ends if token not in special]
    names = [tokenizer.convert_ids_to_tokens(t) if t < size else None for t in strangers]
    if None in names or (strangers and tokenizer.eos_token_id not in ends and _from_elsewhere(model, tokenizer)):
        named = next((name for name in names if name is not None), None)
        other = "" if named is None else f" If it is the model's, say so: tokenizer.eos_token = {named!r}."
        raise TokenizerMismatch(
            f"the model ends its answers with token {strangers}, which in this tokenizer is {names}.",
            f"Load the tokenizer from the model's own folder.{other}",
        )
    return min(size, width)


def _from_elsewhere(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether model and tokenizer are known to have been loaded from different places."""
    places = {
        str(place).rstrip("/")
        for place in (getattr(model.config, "_name_or_path", ""), tokenizer.name_or_path)
        if place
    }
    return len(places) > 1
