"""Random tiny models of every supported family and a byte tokenizer: tests, examples and `ckcontrol doctor`.

Nothing is downloaded. Knows transformers' config classes; the output is noise, the structure is real.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ModelUnavailable, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["FAMILIES", "tiny_model", "tiny_tokenizer"]

VOCAB = 320  # 256 bytes + 4 specials, padded as many checkpoints are
SPECIALS = ["<|pad|>", "<|bos|>", "<|end|>", "<|eot|>"]

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "initializer_range": 0.3,
}
_SLIDING: dict[str, Any] = {"sliding_window": 64, "num_hidden_layers": 3}
_MIXED: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_UNTIED: dict[str, Any] = {"tie_word_embeddings": False}  # a random tied model mostly repeats its last token

# family -> (config class, model class, what differs from a small Llama)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"head_dim": None}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _UNTIED),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_SLIDING, **_MIXED, **_UNTIED, "query_pre_attn_scalar": 8, "attn_implementation": "eager"},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_SLIDING, **_MIXED, **_UNTIED, "query_pre_attn_scalar": 8},
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", _SLIDING),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 4096, "n_inner": 64},
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {"rotary_pct": 0.5}),
}
_GPT2_KEEPS = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "initializer_range"}


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer of 260 tokens with a chat template; every string survives the round trip."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=SPECIALS[0], bos_token=SPECIALS[1], eos_token=SPECIALS[2]
    )
    tokenizer.chat_template = (
        "<|bos|>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|eot|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return tokenizer


def tiny_model(family: str = "llama", seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a random two- or three-layer model of a family, float32, eval mode, and its tokenizer.

    Args:
        family: A key of `FAMILIES`.
        seed: Seeds the weights; the global random state is left as it was.

    Raises:
        ModelUnavailable: Unknown family.
    """
    import torch
    import transformers

    if family not in FAMILIES:
        raise ModelUnavailable(f"no tiny model of family {family!r}.", did_you_mean(family, FAMILIES))
    config_name, model_name, changes = FAMILIES[family]
    base = {k: v for k, v in _SMALL.items() if family != "gpt2" or k in _GPT2_KEEPS}
    values = {k: v for k, v in {**base, **changes}.items() if v is not None}
    attention = values.pop("attn_implementation", "sdpa")
    config = getattr(transformers, config_name)(**values)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, model_name)._from_config(config, attn_implementation=attention)
    return model.float().eval(), tiny_tokenizer()
