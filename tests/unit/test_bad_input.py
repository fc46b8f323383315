"""Bad input to `generate`: a clear error of our own, or a correct answer; never a silent wrong one."""

from __future__ import annotations

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.refusals import check_tokenizer
from ckcontrol.errors import ControlError, PromptError, PromptTooLong, TokenizerMismatch, UnsupportedMode
from ckcontrol.models.tiny import tiny_model

ASK = ("Who did it?", ["It was the postman."])
STEER = ck.Control(alpha=0.1, gate=3.0)


@pytest.mark.parametrize(
    ("question", "passages", "error"),
    [
        ("", ["p"], PromptError),
        ("  \n", ["p"], PromptError),
        (None, ["p"], (PromptError, TypeError)),
        ("q", [""], PromptError),
        ("q", "a string", PromptError),
        ("q", [3], PromptError),
        ([], [], PromptError),
        (["q", "r"], [["p"]], PromptError),
        (["q", "r"], ["p", "p"], PromptError),
        (["q", ""], [["p"], ["p"]], PromptError),
        ("q", ["x " * 11_000_000], PromptError),
    ],
)  # fmt: skip
def test_bad_questions_and_passages(llama, question, passages, error):
    with pytest.raises(error):
        ck.generate(*llama, question, passages, max_new_tokens=2)


def test_a_ten_megabyte_passage_is_refused_with_both_lengths(llama):
    model, tokenizer = llama
    with pytest.raises(PromptTooLong) as caught:
        ck.generate(model, tokenizer, "Who?", ["ten megabytes " * 715_000], max_new_tokens=4)
    assert caught.value.context_tokens > 1_000_000 and caught.value.parametric_tokens < 200


@pytest.fixture
def llama(llama):
    return llama


def test_controls_must_match_the_batch(llama):
    with pytest.raises(ControlError, match="2 controls"):
        ck.generate(*llama, ["a?"], [["b"]], control=[STEER, STEER], max_new_tokens=2)
    with pytest.raises(ControlError, match="candidates"):
        ck.generate(*llama, ["a?", "b?"], control=[STEER, ck.Control(candidates=3)], max_new_tokens=2)


def test_the_processor_checks_its_controls_as_generate_does(llama):
    ids = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ControlError, match="2 controls"):
        ck.CKLogitsProcessor(llama[0], ids, control=[STEER, STEER])


def test_foreign_tokenizers_are_refused(llama):
    _, tokenizer = llama
    narrow, _ = tiny_model()
    narrow.resize_token_embeddings(100)
    with pytest.raises(TokenizerMismatch, match="produces 100"):
        ck.generate(narrow, tokenizer, *ASK)
    stranger, _ = tiny_model()
    stranger.generation_config.eos_token_id = [258, 65]
    with pytest.raises(TokenizerMismatch, match="65"):
        check_tokenizer(stranger, tokenizer)
    stranger.generation_config.eos_token_id = 300
    with pytest.raises(TokenizerMismatch, match="300"):
        check_tokenizer(stranger, tokenizer)


def test_encoder_decoders_are_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(UnsupportedMode, match="encoder-decoder"):
        ck.generate(t5, None, *ASK)


def test_a_model_outside_the_shared_families_falls_back_to_two_forwards():
    """OPT is not in the table: two forwards, same result as the reference."""
    from transformers import OPTConfig, OPTForCausalLM

    from ckcontrol.decoding.pair_cache import can_share_forward
    from ckcontrol.models.tiny import tiny_tokenizer

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=320, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, init_std=0.3,
        max_position_embeddings=512, word_embed_proj_dim=32, pad_token_id=256, bos_token_id=257, eos_token_id=258,
    )  # fmt: skip
    model, tokenizer = OPTForCausalLM(config).eval(), tiny_tokenizer()
    assert not can_share_forward(model)
    pairs = [ck.build_pair(tokenizer, q, p) for q, p in (ASK, ("Where?", ["Here. " * 5]))]
    answers = ck.generate(
        model, tokenizer, [ASK[0], "Where?"], [ASK[1], ["Here. " * 5]], control=STEER, max_new_tokens=8
    )
    for pair, answer in zip(pairs, answers, strict=True):
        want = ck.reference_generate(
            model,
            pair.contextual,
            pair.parametric,
            STEER,
            max_new_tokens=8,
            eos={258},
            vocab_size=len(tokenizer),
        )
        assert list(answer.token_ids) == want
