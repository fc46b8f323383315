"""A random model small enough to run hundreds of pairs through a real engine, as a folder both engines load."""

from __future__ import annotations

from pathlib import Path

from ckcontrol.models.tiny import tiny_tokenizer


def small_checkpoint(folder: Path, seed: int = 0) -> str:
    """Write a two-layer Llama with heads as wide as vLLM's CPU attention asks for, and the byte tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=4096,
        pad_token_id=256,
        bos_token_id=257,
        eos_token_id=258,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float().eval()
    model.generation_config.eos_token_id = 258
    model.save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return str(folder)
