"""Tiny random models of every kind of decoder that transformers has: builders for tests and for docs/models.md.

`build(kind)` makes one, float32 and in eval mode, in milliseconds. A config is counted on the meta device first, so
that a value which was not made small cannot fill the memory.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LARGEST = 2_000_000  # parameters

# Every name under which a config of transformers keeps a size; each config takes those it has.
_SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "mamba_d_ssm"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_key_value_heads"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("head_dim", "query_pre_attn_scalar", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "mamba_d_state", "state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 4096),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "conv_kernel", "rotary_dim"), 4),
    **dict.fromkeys(("num_experts_per_tok", "expand", "mamba_expand", "linear_num_key_heads"), 2),
    **dict.fromkeys(("attn_layer_period", "expert_layer_period"), 2),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "n_group", "topk_group", "decoder_sparse_step"), 1),
    **dict.fromkeys(("attn_layer_offset", "expert_layer_offset"), 1),
    "sliding_window": 64,
}

# What a kind needs besides; a class name stands first where the causal mapping names another.
_NEEDS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "ctrl": {"dff": 64},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"head_dim": None, "num_key_value_heads": 4, "topk_method": "greedy"},
    "deepseek_v3": {"num_key_value_heads": 4, "first_k_dense_replace": 1},
    "dots1": {"n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 64},
    "xlnet": {"d_inner": 64},
    "xlstm": {"hidden_size": 64},
}

KINDS = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_neo"),
    *("gptj", "gpt_bigcode", "codegen", "phi", "phi3", "opt", "falcon", "bloom", "mpt", "stablelm", "starcoder2"),
    *("olmo", "olmo2", "olmo3", "cohere", "cohere2", "granite", "glm", "glm4", "nemotron", "persimmon", "smollm3"),
    *("ernie4_5", "exaone4", "helium", "bitnet", "arcee", "apertus", "hunyuan_v1_dense", "seed_oss", "vaultgemma"),
    *("biogpt", "xglm", "ctrl", "openai-gpt", "doge", "llama4_text"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "granitemoe", "deepseek_v2", "deepseek_v3", "gpt_oss", "jetmoe", "dots1"),
    *("minimax", "minimax_m2", "dbrx"),
    *("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "xlnet", "recurrent_gemma"),
    *("jamba", "bamba", "falcon_h1", "granitemoehybrid", "lfm2", "qwen3_next", "zamba"),
    *("gemma3", "llava", "qwen2_vl"),
)


def build(kind: str, seed: int = 0) -> Any:
    """Return a tiny model of a kind, float32, eval mode.

    Raises:
        ValueError: The config makes more than `LARGEST` parameters.
    """
    config, name = _MULTIMODAL[kind]() if kind in _MULTIMODAL else _text(kind)
    made = getattr(transformers, name)
    with torch.device("meta"):
        count = sum(p.numel() for p in made(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{kind}: {count} parameters")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = made(config).float().eval()
        if kind in _UNINITIALISED:
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
    return model


@cache
def kept(kind: str) -> Any:
    """Return `build(kind)`, made once; it must not be changed."""
    return build(kind)


def _text(kind: str) -> tuple[Any, str]:
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    return _small(kind, **_NEEDS.get(kind, {})), named if isinstance(named, str) else named[0]


def _small(kind: str, **more: Any) -> Any:
    cls = CONFIG_MAPPING[kind]
    base = cls()
    fixed = {name for name in dir(cls) if isinstance(getattr(cls, name, None), property)}
    values = {name: value for name, value in _SMALL.items() if hasattr(base, name) and name not in fixed}
    types = getattr(base, "layer_types", None)
    if types and not {"layer_types", "layers_block_type"} & fixed:
        kinds = list(dict.fromkeys(types))
        values["num_hidden_layers"] = max(2, len(kinds))
        values["layer_types"] = (kinds * 2)[: values["num_hidden_layers"]]
    return cls(**{**values, **more})


def _gemma3() -> tuple[Any, str]:
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    ids = dict(boi_token_index=300, eoi_token_index=301, image_token_index=302, tie_word_embeddings=False)
    text = _small("gemma3_text").to_dict()
    config = CONFIG_MAPPING["gemma3"](text_config=text, vision_config={**vision, "patch_size": 14}, **ids)
    return config, "Gemma3ForConditionalGeneration"


def _llava() -> tuple[Any, str]:
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    vision |= {"patch_size": 14, "model_type": "clip_vision_model", "projection_dim": 16}
    text = {**_small("llama").to_dict(), "model_type": "llama"}
    config = CONFIG_MAPPING["llava"](
        text_config=text, vision_config=vision, image_token_index=302, tie_word_embeddings=False
    )
    return config, "LlavaForConditionalGeneration"


def _qwen2_vl() -> tuple[Any, str]:
    text = {**_small("qwen2").to_dict(), "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
    text |= {"model_type": "qwen2_vl_text", "rope_theta": 1e4}
    text["rope_parameters"]["rope_theta"] = 1e4
    vision = dict(depth=1, embed_dim=16, hidden_size=32, num_heads=2, patch_size=4, mlp_ratio=2)
    ids = {"image_token_id": 302, "video_token_id": 303, "vision_start_token_id": 300, "vision_end_token_id": 301}
    config = CONFIG_MAPPING["qwen2_vl"](text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    return config, "Qwen2VLForConditionalGeneration"


_MULTIMODAL = {"gemma3": _gemma3, "llava": _llava, "qwen2_vl": _qwen2_vl}
_UNINITIALISED = {"rwkv"}  # left at values that give one distribution whatever the prompt
