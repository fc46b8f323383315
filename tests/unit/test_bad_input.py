"""Bad input to `generate`: a clear error of our own, or a correct answer; never a silent wrong one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.refusals import check_tokenizer
from ckcontrol.errors import ControlError, PromptError, PromptTooLong, TokenizerMismatch, UnsupportedMode
from ckcontrol.models.tiny import tiny_model

ASK = ("Who did it?", ["It was the postman."])
STEER = ck.Control("ck-plug", alpha=0.1, gate=3.0)


@pytest.mark.parametrize(
    ("question", "passages", "error"),
    [
        ("", ["p"], PromptError),
        ("  \n", ["p"], PromptError),
        (None, ["p"], PromptError),
        (b"q", ["p"], PromptError),
        (7, ["p"], PromptError),
        ({"q": 1}, None, PromptError),
        ([None], [["p"]], PromptError),
        ("q", 5, PromptError),
        ("q", 0.5, PromptError),
        ("q", b"bytes", PromptError),
        ("q", [b"bytes"], PromptError),
        ("q", [None], PromptError),
        ("q", {"a": "p"}, PromptError),
        ("q", {"p"}, PromptError),
        (["q", "r"], 5, PromptError),
        (["q", "r"], [5, ["p"]], PromptError),
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


def test_a_passage_of_a_million_tokens_is_refused_with_both_lengths(llama):
    model, tokenizer = llama
    with pytest.raises(PromptTooLong) as caught:
        ck.generate(model, tokenizer, "Who?", ["twelve bytes" * 100_000], max_new_tokens=4)
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


@pytest.mark.parametrize(
    ("control", "meant"),
    [
        (0.3, "Control(alpha=0.3)"),
        (1, "Control(alpha=1)"),
        (7, "Control(alpha=0.3)"),
        (True, "Control(alpha=0.3)"),
        ("cad", "Control('cad')"),
        ({"alpha": 0.3}, "Control.from_dict(...)"),
        ([0.3], "Control(alpha=0.3)"),
        (1 + 2j, "Control(alpha=0.3)"),
    ],
    ids=repr,
)
def test_what_is_no_control_is_told_which_one_was_meant(llama, control, meant):
    found = SimpleNamespace(search=None.__init__)
    doors = [
        lambda: ck.generate(*llama, *ASK, control=control, max_new_tokens=2),
        lambda: ck.CKLogitsProcessor(llama[0], torch.zeros(1, 3, dtype=torch.long), control=control),
    ]
    if not isinstance(control, list):
        doors.append(lambda: ck.Rag(llama, found, control=control))
    for door in doors:
        with pytest.raises(ControlError) as caught:
            door()
        assert "is not a Control" in str(caught.value) and meant in str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ({"alpha": 0.3}, "Control(alpha=0.3)"),
        ({"method": "cad"}, "Control('cad')"),
        ({"candidates": 5}, "Control(candidates=5)"),
        ({"gate": 2.0}, "Control('ck-plug', gate=2.0)"),
        ({"cad_alpha": 0.5}, "Control('cad', cad_alpha=0.5)"),
    ],
)
def test_what_belongs_to_the_control_is_shown_there(llama, keyword, meant):
    found = SimpleNamespace(search=None.__init__)
    for door in (lambda: ck.generate(*llama, *ASK, **keyword), lambda: ck.Rag(llama, found, **keyword)):
        with pytest.raises(ControlError) as caught:
            door()
        assert f"Pass control={meant}" in str(caught.value)


@pytest.mark.parametrize(("value", "kind"), [(True, "a bool"), ("0.5", "a str"), ([0.5], "a list")])
def test_a_number_of_another_kind_is_told_which(value, kind):
    with pytest.raises(ControlError, match=f"alpha=.* is {kind}, not a number. Give a number from 0"):
        ck.Control(alpha=value)
    for name in ("temperature", "max_new_tokens", "seed"):
        with pytest.raises(ControlError, match=f"{name}=.* is {kind}, not a"):
            ck.GenerateOptions(**{name: value})


def test_a_number_that_is_none_is_told_as_before():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ControlError, match=r"alpha=.* is not a finite number"):
            ck.Control(alpha=value)
    with pytest.raises(ControlError, match=r"max_new_tokens=2\.5 is not a whole number"):
        ck.GenerateOptions(max_new_tokens=2.5)
    with pytest.raises(ControlError, match="a number of many digits is out of range"):
        ck.GenerateOptions(seed=10**5000)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"num_beams": 4}, "num_beams=4: a beam ranks .* Control"),
        ({"num_return_sequences": 2}, "num_return_sequences=2: a question gets one answer.* Repeat the question"),
        ({"n": 2}, "n=2: a question gets one answer"),
        ({"generation_config": None}, "generation_config=None: nothing is read from one.* options="),
        ({"min_p": 0.1}, "min_p=0.1: it acts on scores.* processors="),
        ({"stopping_criteria": []}, "criteria="),
        ({"guidance_scale": 2.0}, r"guidance_scale=2.0: .*Control\('cad'"),
    ],
)
def test_options_of_transformers_are_refused_with_the_reason(llama, option, told):
    with pytest.raises(ControlError, match=told):
        ck.generate(*llama, "Who?", **option)


def test_a_dial_in_the_place_of_the_method_is_shown_where_it_belongs():
    with pytest.raises(ControlError, match=r"Control\(alpha=0\.3\)"):
        ck.Control(0.3)


def test_documents_of_other_frameworks_are_passages(llama):
    class Node:
        def get_content(self):
            return "It was the postman."

    texts = [
        SimpleNamespace(page_content="It was the postman.", metadata={}),
        Node(),
        SimpleNamespace(node=Node(), get_content=Node().get_content, score=1.0),
        SimpleNamespace(text="It was the postman."),
        SimpleNamespace(content="It was the postman.", meta={}),
        SimpleNamespace(passage=SimpleNamespace(id="a", text="It was the postman."), score=1.0),
    ]
    want = ck.generate(*llama, *ASK, control=STEER, max_new_tokens=3)
    for given in texts:
        assert ck.generate(*llama, ASK[0], [given], control=STEER, max_new_tokens=3) == want
    assert ck.generate(*llama, [ASK[0]], [texts[:1]], control=STEER, max_new_tokens=3) == [want]
    for wrong in (texts[0], [SimpleNamespace(content=None)], [SimpleNamespace(text=b"x")], [{"text": "x"}]):
        with pytest.raises(PromptError):
            ck.generate(*llama, ASK[0], wrong, max_new_tokens=3)


def test_an_ordinary_token_may_end_the_models_answers(byte):
    """Chat fine-tunes name a token in their generation config that their tokenizer takes for an ordinary one."""
    model, _ = tiny_model()
    free = ck.generate(model, byte, *ASK, max_new_tokens=12, control=STEER)
    at = next(i for i, token in enumerate(free.token_ids) if 32 < token < 127 and token not in free.token_ids[:i] and i)
    for config in ("generation_config", "config"):
        other, _ = tiny_model()
        setattr(getattr(other, config), "eos_token_id", free.token_ids[at])  # noqa: B010
        answer = ck.generate(other, byte, *ASK, max_new_tokens=12, control=STEER)
        assert answer.token_ids == free.token_ids[: at + 1] and answer.finish_reason == "stop"
        text = byte.decode(free.token_ids[:at], skip_special_tokens=True).strip()
        assert answer.text in (text, text.removesuffix("\ufffd")), "its end is no text"


def test_an_ordinary_end_of_a_tokenizer_from_elsewhere_is_refused_with_the_way_out(byte):
    model, _ = tiny_model()
    model.generation_config.eos_token_id = model.config.eos_token_id = 65
    assert check_tokenizer(model, byte) == 260
    model.config._name_or_path, byte.name_or_path = "fine-tune/", "fine-tune"
    assert check_tokenizer(model, byte) == 260
    byte.name_or_path = "another"
    with pytest.raises(TokenizerMismatch, match=r"say so: tokenizer\.eos_token = ") as caught:
        check_tokenizer(model, byte)
    byte.eos_token = str(caught.value).split("eos_token = '")[1][0]
    assert byte.eos_token_id == 65 and check_tokenizer(model, byte) == 260


def test_foreign_tokenizers_are_refused(llama):
    _, tokenizer = llama
    narrow, _ = tiny_model()
    narrow.resize_token_embeddings(100)
    with pytest.raises(TokenizerMismatch, match="produces 100"):
        ck.generate(narrow, tokenizer, *ASK)
    stranger, _ = tiny_model()
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
