"""Tiny random models of every kind of decoder that transformers has: builders for tests and for docs/models.md.

`build(kind)` makes one, float32 and in eval mode, in milliseconds. A config is counted on the meta device first, so
that a value which was not made small cannot fill the memory.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import ckcontrol as ck
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.errors import CKError
from ckcontrol.heads.apply import pruned
from ckcontrol.heads.families import describe
from ckcontrol.heads.forward import pad
from ckcontrol.heads.mask import HeadMask
from ckcontrol.models.tiny import tiny_tokenizer

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
}

KINDS = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_neo"),
    *("gptj", "gpt_bigcode", "codegen", "phi", "phi3", "opt", "falcon", "bloom", "mpt", "stablelm", "starcoder2"),
    *("olmo", "olmo2", "olmo3", "cohere", "cohere2", "granite", "glm", "glm4", "nemotron", "persimmon", "smollm3"),
    *("ernie4_5", "exaone4", "helium", "bitnet", "arcee", "apertus", "hunyuan_v1_dense", "seed_oss", "vaultgemma"),
    *("biogpt", "xglm", "ctrl", "openai-gpt", "doge", "llama4_text"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "granitemoe", "deepseek_v2", "deepseek_v3", "gpt_oss", "jetmoe", "dots1"),
    *("minimax", "minimax_m2", "dbrx"),
    *("mamba", "mamba2", "falcon_mamba", "rwkv", "xlnet", "recurrent_gemma"),
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


# --- a Llama in other states ----------------------------------------------------------------------------------------


def _compiled(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def _compiled_layers(model: Any) -> Any:
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


def _adapted(name: str, **values: Any) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        import peft

        made = peft.get_peft_model(model, getattr(peft, name)(task_type="CAUSAL_LM", **values)).eval()
        for key, parameter in made.named_parameters():
            if "lora_B" in key:  # zeros otherwise, which would be no adapter
                torch.nn.init.normal_(parameter, std=0.3)
        return made

    return make


def _offloaded(model: Any) -> Any:
    from accelerate import cpu_offload

    return cpu_offload(model, torch.device("cpu"))


def _on_disk(model: Any) -> Any:
    from accelerate import disk_offload

    return disk_offload(model, tempfile.mkdtemp(), torch.device("cpu"))


def _checkpointing(model: Any) -> Any:
    older = model.gradient_checkpointing_enable  # its name in older transformers
    getattr(model, "activation_checkpointing_enable", older)()
    return model


def _dropping(model: Any) -> Any:
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    return model.train()


def _copied_layer(model: Any) -> Any:
    model.model.layers[1] = copy.deepcopy(model.model.layers[1])  # with a config of its own
    return model


STATES: dict[str, Callable[[Any], Any]] = {
    "`model.compile()`": _compiled,
    "`torch.compile(model)`": lambda model: torch.compile(model, backend="eager"),
    "compiled layers": _compiled_layers,
    "PEFT LoRA on q_proj": _adapted("LoraConfig", target_modules=["q_proj"]),
    "PEFT LoRA on o_proj": _adapted("LoraConfig", target_modules=["o_proj"]),
    "PEFT LoRA, merged": lambda model: _adapted("LoraConfig", target_modules=["o_proj"])(model).merge_and_unload(),
    "PEFT prompt tuning": _adapted("PromptTuningConfig", num_virtual_tokens=4),
    "PEFT p-tuning": _adapted("PromptEncoderConfig", num_virtual_tokens=4, encoder_hidden_size=16),
    "PEFT prefix tuning": _adapted("PrefixTuningConfig", num_virtual_tokens=4),
    "PEFT LLaMA-Adapter": _adapted("AdaptionPromptConfig", adapter_len=4, adapter_layers=2),
    "accelerate, offloaded to CPU": _offloaded,
    "accelerate, offloaded to disk": _on_disk,
    "gradient checkpointing, `eval()`": _checkpointing,
    "gradient checkpointing, `train()`": lambda model: _checkpointing(model).train(),
    "`train()` with dropout": _dropping,
    "`train()` without dropout": lambda model: model.train(),
    "a layer with a config of its own": _copied_layer,
}


# --- what works on a kind -------------------------------------------------------------------------------------------

DOORS = ("generate", "loop", "processor", "heads")
_TEMPLATE = ck.PromptTemplate(instruction="", intro="", question="{question}", answer="", chat=False)
_STEERED = ck.Control("cad", cad_alpha=1.0, candidate_ratio=0.0)
_QUESTIONS, _PASSAGES = ("Who?", "What river?"), (["He did it."], ["Short. It is long."])
_NEW = 4


def judge(model: Any) -> dict[str, str]:
    """Run every door on a model: "works", the sentence of a refusal, or how the result is wrong.

    "works" means: two prompts of different lengths in one batch give, unsteered, the ids of `model.generate` and,
    steered, those of `reference_generate`, which knows no cache and no batch; a mask acts as zeroed weights do.
    """
    tokenizer = tiny_tokenizer()
    pairs = [build_pair(tokenizer, q, p, template=_TEMPLATE) for q, p in zip(_QUESTIONS, _PASSAGES, strict=True)]
    (ids, mask), (par, par_mask) = (
        pad([getattr(p, s) for p in pairs], torch.device("cpu")) for s in ("contextual", "parametric")
    )
    plain = {"attention_mask": mask, "max_new_tokens": _NEW, "do_sample": False, "pad_token_id": 256}
    ends = set(eos_ids(model, tokenizer))

    def made(**more: Any) -> list[list[int]]:
        rows = model.generate(input_ids=ids, **plain, eos_token_id=sorted(ends), **more)[:, ids.shape[1] :].tolist()
        return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in rows]

    def answered(control: ck.Control) -> list[list[int]]:
        answers = ck.generate(
            model, tokenizer, _QUESTIONS, _PASSAGES, control=control, template=_TEMPLATE, max_new_tokens=_NEW
        )
        return [list(answer.token_ids) for answer in answers]

    def looped(control: ck.Control) -> list[list[int]]:
        return made(
            custom_generate=ck.decoding_loop(control, parametric_ids=par, parametric_mask=par_mask, vocab_size=260)
        )

    def processed(control: ck.Control) -> list[list[int]]:
        return made(logits_processor=[ck.CKLogitsProcessor(model, par, par_mask, control=control, vocab_size=260)])

    own = made()
    limits = {"max_new_tokens": _NEW, "eos": ends, "vocab_size": 260}
    steered = [ck.reference_generate(model, p.contextual, p.parametric, _STEERED, **limits) for p in pairs]

    def check(door: Callable[[ck.Control], list[list[int]]]) -> str:
        try:
            if door(ck.Control("off")) != own:
                return "off is not model.generate"
            return "works" if door(_STEERED) == steered else "steered is not the reference"
        except CKError as error:
            return str(error)

    return {
        "generate": check(answered),
        "loop": check(looped),
        "processor": check(processed),
        "heads": _judge_heads(model, ids),
    }


@torch.no_grad()
def _judge_heads(model: Any, ids: torch.Tensor) -> str:
    try:
        layout = describe(model)
        before = model(input_ids=ids).logits
        with pruned(model, HeadMask.of(model, [(0, 1), (1, 3)])):
            inside = model(input_ids=ids).logits
    except CKError as error:
        return str(error)
    kept = [layout.weight(layer).clone() for layer in (0, 1)]
    for layer, head in ((0, 1), (1, 3)):
        layout.weight(layer)[:, layout.columns(head)] = 0
    by_hand = model(input_ids=ids).logits
    for layer in (0, 1):
        layout.weight(layer).copy_(kept[layer])
    if not torch.allclose(inside, by_hand, rtol=0, atol=1e-4) or torch.allclose(inside, before, rtol=0, atol=1e-4):
        return "a mask is not zeroed weights"
    return "works" if torch.equal(model(input_ids=ids).logits, before) else "the model is not restored"
