"""The three doors agree with each other and, when neutral, are `model.generate` bit for bit."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

import ckcontrol as ck
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.refusals import REFUSED
from ckcontrol.errors import ControlError, UnsupportedMode
from ckcontrol.models.tiny import FAMILIES, tiny_model

from .test_reference import PASSAGES, QUESTIONS

NEUTRAL = [ck.Control("off"), ck.Control("ck-plug", alpha=0.5), ck.Control("cad", alpha=0.5)]
GREEDY = {"do_sample": False, "pad_token_id": 256}
SAMPLED = {"do_sample": True, "temperature": 0.9, "top_k": 50, "top_p": 0.9, "pad_token_id": 256}


def padded(tokenizer, which):
    pairs = [build_pair(tokenizer, q, p) for q, p in zip(QUESTIONS, PASSAGES, strict=True)]
    prompts = [list(getattr(p, which)) for p in pairs]
    width = max(map(len, prompts))
    ids = torch.tensor([[256] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("traced", [False, True])
def test_neutral_loop_is_generate_bit_for_bit(tiny, family, how, traced):
    model, tokenizer = tiny(family)
    ids, mask = padded(tokenizer, "contextual")
    par, par_mask = padded(tokenizer, "parametric")
    more = {
        "max_new_tokens": 12,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    torch.manual_seed(3)
    plain = model.generate(ids, attention_mask=mask, **how, **more)
    for control in NEUTRAL:
        recorder = ck.Recorder() if traced else None
        loop = ck.decoding_loop(control, parametric_ids=par, parametric_mask=par_mask, recorder=recorder)
        torch.manual_seed(3)
        ours = model.generate(ids, attention_mask=mask, custom_generate=loop, **how, **more)
        assert torch.equal(ours.sequences, plain.sequences)
        for a, b in zip(ours.scores, plain.scores, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(ours.logits, plain.logits, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "top_p": 0.9, "temperature": 0.7}, {"repetition_penalty": 1.4}]
)
def test_neutral_generate_is_generate(tiny, family, options):
    """Row by row, seeded: `ck.generate(seed=s)` is `torch.manual_seed(s); model.generate` on that prompt alone."""
    model, tokenizer = tiny(family)
    seeded = {"seed": 5} if "do_sample" in options else {}
    answers = ck.generate(
        model,
        tokenizer,
        QUESTIONS,
        PASSAGES,
        control=ck.Control("ck-plug", alpha=0.5),
        max_new_tokens=12,
        **options,
        **seeded,
    )
    for i, answer in enumerate(answers):
        pair = build_pair(tokenizer, QUESTIONS[i], PASSAGES[i])
        ids = torch.tensor([pair.contextual])
        torch.manual_seed(5)
        plain = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, pad_token_id=256, eos_token_id=258,
            **({"do_sample": False} | options), top_k=0 if options.get("do_sample") else None,
        )  # fmt: skip
        assert list(answer.token_ids) == plain[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    "control", [ck.Control("ck-plug", alpha=0.1, gate=3.0), ck.Control("arr"), ck.Control("cad", alpha=0.9)], ids=repr
)
def test_loop_processor_and_generate_agree(llama, control):
    model, tokenizer = llama
    ids, mask = padded(tokenizer, "contextual")
    par, par_mask = padded(tokenizer, "parametric")
    loop = ck.decoding_loop(control, parametric_ids=par, parametric_mask=par_mask, vocab_size=len(tokenizer))
    processor = ck.CKLogitsProcessor(model, par, par_mask, control=control, vocab_size=len(tokenizer))
    looped = model.generate(ids, attention_mask=mask, custom_generate=loop, max_new_tokens=10, **GREEDY)
    processed = model.generate(ids, attention_mask=mask, logits_processor=[processor], max_new_tokens=10, **GREEDY)
    answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=10)
    assert torch.equal(looped, processed)
    for row, answer in zip(looped[:, ids.shape[1] :].tolist(), answers, strict=True):
        assert row[: len(answer.token_ids)] == list(answer.token_ids)


def test_a_processor_may_be_used_again(llama):
    """The second call equals a fresh object's, also when its prompt is one token longer than what came before."""
    model, tokenizer = llama
    control = ck.Control("ck-plug", alpha=0.1, gate=3.0)
    par = torch.tensor([build_pair(tokenizer, QUESTIONS[0], []).parametric])
    used = ck.CKLogitsProcessor(model, par, control=control)
    first = torch.tensor([build_pair(tokenizer, QUESTIONS[0], PASSAGES[0]).contextual])
    out = model.generate(
        first, attention_mask=torch.ones_like(first), logits_processor=[used], max_new_tokens=4, **GREEDY
    )
    longer = torch.cat([torch.full((1, 1), 65), out[:, :-1]], dim=1)
    for second in (first, longer, out):
        mask = torch.ones_like(second)
        if second is out:  # continues `first`; to the processor that could be a rolled-back candidate
            model.generate(
                first, attention_mask=torch.ones_like(first), logits_processor=[used], max_new_tokens=9, **GREEDY
            )
            with pytest.raises(UnsupportedMode, match="reset"):
                model.generate(out, attention_mask=mask, logits_processor=[used], max_new_tokens=6, **GREEDY)
            used.reset()
        fresh = ck.CKLogitsProcessor(model, par, control=control)
        again = model.generate(second, attention_mask=mask, logits_processor=[used], max_new_tokens=6, **GREEDY)
        wanted = model.generate(second, attention_mask=mask, logits_processor=[fresh], max_new_tokens=6, **GREEDY)
        assert torch.equal(again, wanted)


def test_processor_sees_penalised_scores(llama):
    """The documented limit: under a repetition penalty the processor door and the loop differ."""
    model, tokenizer = llama
    ids = torch.tensor([build_pair(tokenizer, QUESTIONS[2], PASSAGES[2]).contextual])
    par = torch.tensor([build_pair(tokenizer, QUESTIONS[2], []).parametric])
    control = ck.Control("cad", alpha=0.2)
    more = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 16, "repetition_penalty": 1.8, **GREEDY}
    processor = ck.CKLogitsProcessor(model, par, control=control)
    loop = ck.decoding_loop(control, parametric_ids=par)
    assert not torch.equal(
        model.generate(ids, logits_processor=[processor], **more),
        model.generate(ids, custom_generate=loop, **more),
    )


def test_assisted_decoding_is_refused_by_the_processor(tiny, llama):
    """A draft that is rejected rolls the rows back; the parametric stream cannot follow, so it must say so."""
    model, tokenizer = llama
    draft = tiny_model("llama", seed=1)[0]
    ids = torch.tensor([build_pair(tokenizer, QUESTIONS[2], PASSAGES[2]).contextual])
    par = torch.tensor([build_pair(tokenizer, QUESTIONS[2], []).parametric])
    processor = ck.CKLogitsProcessor(model, par, control=ck.Control("ck-plug", alpha=0.1, gate=9.0))
    with pytest.raises(UnsupportedMode, match="rolled back"):
        model.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], assistant_model=draft,
            max_new_tokens=12, **GREEDY,
        )  # fmt: skip


def test_loop_options_are_checked_at_once(llama):
    for wrong in ({"penalty_scope": "prompt"}, {"seed": -1}):
        with pytest.raises(ControlError):
            ck.decoding_loop(parametric_ids=torch.zeros(1, 3, dtype=torch.long), **wrong)


def test_beams_are_refused_by_the_processor(llama):
    model, tokenizer = llama
    ids = torch.tensor([build_pair(tokenizer, QUESTIONS[2], PASSAGES[2]).contextual])
    par = torch.tensor([build_pair(tokenizer, QUESTIONS[2], []).parametric])
    for rows in (1, 4):
        processor = ck.CKLogitsProcessor(model, par.repeat(rows, 1), control=ck.Control("ck-plug", alpha=0.1, gate=9.0))
        with pytest.raises(UnsupportedMode):
            model.generate(
                ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], num_beams=4,
                max_new_tokens=12, **GREEDY,
            )  # fmt: skip


ASKED = {
    "beam search": {"num_beams": 3},
    "guidance_scale": {"guidance_scale": 1.5},
    "assisted decoding": {"prompt_lookup_num_tokens": 3},
    "token healing": {"token_healing": True},
    "a cache_implementation": {"cache_implementation": "static"},
    "use_cache=False": {"use_cache": False},
    "output_attentions": {"output_attentions": True, "return_dict_in_generate": True},
    "output_hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "contrastive search": {"penalty_alpha": 0.5, "top_k": 4},
    "DoLa": {"dola_layers": "low"},
    "constrained beams": {"force_words_ids": [[5]], "num_beams": 2},
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_modes_raise_before_the_first_forward(llama, what, monkeypatch):
    model, _ = llama
    from ckcontrol.decoding.refusals import check_mode

    config = GenerationConfig(**{k: v for k, v in ASKED[what].items() if k != "force_words_ids"})
    for key, value in ASKED[what].items():
        setattr(config, key, value)
    if what == "constrained beams":
        config.num_beams = 1
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: pytest.fail("a forward ran"))
    with pytest.raises(UnsupportedMode, match=what.split()[-1].split("=")[0]):
        check_mode(config)


@pytest.mark.parametrize("asked", [{"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_refused_modes_through_generate(llama, asked, monkeypatch):
    model, tokenizer = llama
    ids = torch.tensor([build_pair(tokenizer, QUESTIONS[0], PASSAGES[0]).contextual])
    loop = ck.decoding_loop(ck.Control("ck-plug", alpha=0.2), parametric_ids=ids)
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: pytest.fail("a forward ran"))
    with pytest.raises(UnsupportedMode):
        model.generate(ids, attention_mask=torch.ones_like(ids), custom_generate=loop, max_new_tokens=3, **asked)


def test_several_return_sequences_draw_once_per_pair(llama):
    model, tokenizer = llama
    ids, mask = padded(tokenizer, "contextual")
    par, par_mask = padded(tokenizer, "parametric")
    loop = ck.decoding_loop(ck.Control("off"), parametric_ids=par, parametric_mask=par_mask)
    more = {"num_return_sequences": 2, "do_sample": True, "max_new_tokens": 6, "pad_token_id": 256}
    torch.manual_seed(1)
    ours = model.generate(ids, attention_mask=mask, custom_generate=loop, **more)
    torch.manual_seed(1)
    assert torch.equal(ours, model.generate(ids, attention_mask=mask, **more))


def test_row_counts_must_agree(llama):
    model, tokenizer = llama
    ids, mask = padded(tokenizer, "contextual")
    for bad in (ids[:2], ids[0]):
        loop = ck.decoding_loop(ck.Control("ck-plug", alpha=0.2), parametric_ids=bad)
        with pytest.raises(ControlError, match="one parametric row"):
            model.generate(ids, attention_mask=mask, custom_generate=loop, max_new_tokens=3)


def test_right_padding_is_refused(llama):
    model, tokenizer = llama
    ids, mask = padded(tokenizer, "contextual")
    loop = ck.decoding_loop(ck.Control("ck-plug", alpha=0.2), parametric_ids=ids, parametric_mask=mask.flip(1))
    with pytest.raises(UnsupportedMode, match="right"):
        model.generate(ids, attention_mask=mask, custom_generate=loop, max_new_tokens=3)
