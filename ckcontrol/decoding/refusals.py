"""Refusals, before any forward: models, tokenizers and generation modes that two-stream decoding cannot honour.

Knows transformers' model and generation configs; changes nothing. Every refused mode is listed with its remedy in
`REFUSED`, which the tests walk through.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import TokenizerMismatch, UnsupportedMode

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "CACHE_NAMES",
    "REFUSED",
    "accepted_inputs",
    "bare",
    "cache_name",
    "check_mode",
    "check_model",
    "check_tokenizer",
    "eos_ids",
    "input_device",
    "output_width",
    "position_limit",
]

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


# Of these a checkpoint's own generation_config may say what it likes: the answer is the same, and nobody asked.
_WITHOUT_EFFECT = frozenset({"a cache_implementation", "use_cache=False", "output_attentions", "output_hidden_states"})


def check_mode(config: GenerationConfig, checkpoint: GenerationConfig | None = None) -> None:
    """Raise `UnsupportedMode` if the generation config asks for a mode in `REFUSED`.

    Args:
        config: What this generation runs with, the caller's settings and the checkpoint's in one.
        checkpoint: The model's own generation config, to tell what the caller did not ask for.
    """
    for what, (asked, instead) in REFUSED.items():
        if not asked(config):
            continue
        inherited = checkpoint is not None and asked(checkpoint)
        if inherited and what in _WITHOUT_EFFECT:
            continue
        by = "which the checkpoint's generation_config asks for, " if inherited else ""
        raise UnsupportedMode(f"{what}, {by}is not supported." if by else f"{what} is not supported.", instead)


def bare(model: Any) -> Any:
    """Return the transformers model inside ``torch.compile(model)`` and inside a PEFT adapter, or the model itself."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def accepted_inputs(model: PreTrainedModel) -> Any:
    """Return the parameters of the model's forward; of its class, since an instance's may be wrapped."""
    return inspect.signature(type(bare(model)).forward).parameters


# What models call the past they take, the newest name first: `cache` is transformers' from 5.24 on.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")


def cache_name(model: PreTrainedModel) -> str | None:
    """Return the argument in which the model takes its past; None if it takes no cache that a stream could own."""
    accepted = accepted_inputs(model)
    for name in CACHE_NAMES:
        if name in accepted:
            return name
    return None if "input_ids" in accepted else "past_key_values"  # a forward of *args: streams.py's check judges


def check_model(model: PreTrainedModel) -> None:
    """Refuse, before any forward, a model that two streams of it would not be.

    Raises:
        UnsupportedMode: Something that is no model, an encoder-decoder model, one without a language-model head or
            without a cache of its past that a stream could own, a PEFT adapter of the prompt-learning kind, or active
            dropout (training mode).
    """
    if not hasattr(model, "config"):
        raise UnsupportedMode(f"{type(model).__name__} is no model.", "Pass the model first, then its tokenizer.")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedMode(f"{type(model).__name__} is an encoder-decoder model.", "Use a decoder-only model.")
    if model.get_output_embeddings() is None or not hasattr(model, "generate"):
        raise UnsupportedMode(f"{type(model).__name__} has no language-model head.", "Load AutoModelForCausalLM.")
    name = type(bare(model)).__name__
    if cache_name(model) is None:
        raise UnsupportedMode(
            f"{name} takes its past neither as past_key_values nor as cache_params, so a stream cannot have its own.",
            "Use ckcontrol.reference_generate, which needs no cache.",
        )
    if kind := _prompt_learning(model):
        raise UnsupportedMode(
            f"a {kind} adapter acts on the prompt outside the model's forward, so neither stream would be the adapter.",
            "Use a LoRA adapter, or model.get_base_model() without the adapter.",
        )
    if what := _random_part(model):
        raise UnsupportedMode(
            f"{name} is in training mode, where {what}.",
            "Call model.eval() first.",
        )


def _prompt_learning(model: Any) -> str | None:
    """Return the kind of an active PEFT adapter that is no part of the forward (prompt, prefix, p-tuning), or None."""
    model = getattr(model, "_orig_mod", model)
    # While an adapter's generate runs, the base model is called, with this method of the adapter in place of its own.
    model = getattr(vars(model).get("prepare_inputs_for_generation"), "__self__", model)
    configs, disabled = getattr(model, "peft_config", None), getattr(model, "_adapters_disabled", False)
    if not hasattr(model, "get_base_model") or not isinstance(configs, dict) or disabled is True:
        return None
    active = configs.get(getattr(model, "active_adapter", None))
    if not getattr(active, "is_prompt_learning", False):
        return None
    kind = getattr(active, "peft_type", "prompt learning")
    return str(getattr(kind, "value", kind)).replace("_", " ").lower()


def _random_part(model: Any) -> str | None:
    """Return what training mode spoils, as a clause, or None. The names are torch's and transformers'."""
    for module in model.modules():
        if not module.training:
            continue
        if getattr(module, "gradient_checkpointing", False):
            return "gradient checkpointing turns the cache off"
        values = (
            {**vars(module), "dropout": getattr(module, "p", 0)} if "Dropout" in type(module).__name__ else vars(module)
        )
        for key, value in values.items():
            if ("drop" in key or "jitter" in key) and isinstance(value, float) and value > 0:
                return f"{key}={value:g} makes the same prompt answer differently each time"
    return None


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[int, ...]:
    """Return every end token: of the generation config, the model config and the tokenizer."""
    found: set[int] = set()
    for owner in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(owner, "eos_token_id", None)
        found |= set(value) if isinstance(value, (list, tuple)) else set() if value is None else {int(value)}
    return tuple(sorted(found))


def input_device(model: PreTrainedModel) -> Any:
    """Return the device on which the model takes token ids, also where accelerate keeps its weights elsewhere."""
    embedding: Any = model.get_input_embeddings()
    hook: Any = getattr(embedding, "_hf_hook", None)
    each: Any
    for each in getattr(hook, "hooks", (hook,)):
        if getattr(each, "execution_device", None) is not None:
            return each.execution_device
    return embedding.weight.device


def output_width(model: PreTrainedModel) -> int:
    """Return V, the number of ids that the model scores."""
    head: Any = model.get_output_embeddings()
    weight = head.weight() if callable(head.weight) else head.weight  # torch.ao's quantised layers have a method
    return int(weight.shape[0])


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
    width = output_width(model)
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
