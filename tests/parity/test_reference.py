"""The engine (cached, batched, ragged, one shared forward) against the naive loop, for every family."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as lp

import ckcontrol as ck
from ckcontrol.decoding.pair_cache import can_share_forward
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.models.tiny import FAMILIES

QUESTIONS = ["Who?", "What is the name of the longest river of all?", "Where did it begin?"]
PASSAGES = [["It was the postman, always."], ["Short."], ["A long one. " * 6, "And another."]]
CONTROLS = [
    ck.Control("off"),
    ck.Control("ck-plug", alpha=0.0),
    ck.Control("ck-plug", alpha=0.3),
    ck.Control("ck-plug", alpha=0.8, gate=3.0),
    ck.Control("ck-plug", alpha=1.0, gate=100.0),
    ck.Control("ck-plug", adaptive=True, gate=2.0),
    ck.Control("ck-plug-repo", alpha=0.2),
    ck.Control("ck-plug-repo", adaptive=True),
    ck.Control("cad", alpha=1 / 3),
    ck.Control("cad", cad_alpha=1.0, candidate_ratio=0.0),
    ck.Control("adacad", warmup=0.3),
    ck.Control("coiecd"),
    ck.Control("coiecd", coiecd_alpha=0.5),
    ck.Control("acd"),
    ck.Control("arr"),
    ck.Control("nwcad", k_ctx=0.02),
    ck.Control("grd", sure=0.01),
    ck.Control("grd", sure=0.004, gate_mode="conf_only"),
    ck.Control("trustmargin"),
    ck.Control("trustmargin", lambda_bind=2.0, margin=-0.01),
    ck.Control("dial", alpha=0.3),
    ck.Control("dial", alpha=0.6),
    ck.Control("dial", alpha=1.0),
    ck.Control("dial", adaptive=True),
]


def expected(model, tokenizer, control, i, new=12, **kwargs):
    pair = build_pair(tokenizer, QUESTIONS[i], PASSAGES[i])
    return ck.reference_generate(
        model,
        pair.contextual,
        pair.parametric,
        control,
        max_new_tokens=new,
        eos=eos_ids(model, tokenizer),
        vocab_size=len(tokenizer),
        question=QUESTIONS[i],
        read=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        passages=pair.passages,
        alone=pair.alone,
        **kwargs,
    )


def ids(answers):
    return [list(a.token_ids) for a in answers]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_greedy_ragged_batch_equals_reference(tiny, family, control):
    model, tokenizer = tiny(family)
    answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=12)
    assert ids(answers) == [expected(model, tokenizer, control, i) for i in range(3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tiny_family_shares_its_forward(tiny, family):
    """Otherwise the parity tests would silently test the two-forward fallback."""
    assert can_share_forward(tiny(family)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_two_forwards_equal_one(tiny, family, monkeypatch):
    model, tokenizer = tiny(family)
    control = ck.Control("ck-plug", alpha=0.1, gate=2.0)
    shared = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=12)
    monkeypatch.setattr("ckcontrol.decoding.pair_cache.can_share_forward", lambda model: False)
    apart = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=12)
    assert ids(shared) == ids(apart)
    for a, b in zip(shared, apart, strict=True):
        for s, t in zip(a.tokens, b.tokens, strict=True):
            assert s.gain == pytest.approx(t.gain, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "control",
    [
        ck.Control("ck-plug", alpha=0.2, gate=2.0),
        ck.Control("cad", alpha=0.7),
        ck.Control("ck-plug-repo", alpha=0.8),
        ck.Control("dial", alpha=0.6),
    ],
    ids=repr,
)
def test_seeded_sampling_with_warpers_equals_reference(tiny, family, control):
    model, tokenizer = tiny(family)
    answers = ck.generate(
        model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=12,
        do_sample=True, temperature=0.8, top_k=40, top_p=0.95, seed=7,
    )  # fmt: skip
    warpers = LogitsProcessorList([lp.TemperatureLogitsWarper(0.8), lp.TopKLogitsWarper(40), lp.TopPLogitsWarper(0.95)])
    wanted = [expected(model, tokenizer, control, i, processors=warpers, sample=True, seed=7) for i in range(3)]
    assert ids(answers) == wanted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "control", [ck.Control("off"), ck.Control("ck-plug", alpha=0.2), ck.Control("cad", alpha=1.0)], ids=repr
)
def test_repetition_penalty_equals_reference(tiny, family, control):
    model, tokenizer = tiny(family)
    question, passages = QUESTIONS[2], PASSAGES[2]
    answer = ck.generate(
        model, tokenizer, question, passages, control=control, max_new_tokens=12, repetition_penalty=1.3
    )
    penalty = LogitsProcessorList([lp.RepetitionPenaltyLogitsProcessor(1.3)])
    assert list(answer.token_ids) == expected(model, tokenizer, control, 2, processors=penalty)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_early_finished_rows_and_several_end_tokens(tiny, family):
    """Each row stops at its own end token; what the others still do changes nothing in it."""
    model, tokenizer = tiny(family)
    control = ck.Control("ck-plug", alpha=0.2, gate=2.0)
    free = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=16)
    late = free[1].token_ids[7]
    stops = (free[0].token_ids[2], late)
    answers = ck.generate(
        model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=16, stop_token_ids=stops
    )
    for i, answer in enumerate(answers):
        pair = build_pair(tokenizer, QUESTIONS[i], PASSAGES[i])
        wanted = ck.reference_generate(
            model, pair.contextual, pair.parametric, control, max_new_tokens=16,
            eos={*eos_ids(model, tokenizer), *stops}, vocab_size=len(tokenizer),
        )  # fmt: skip
        assert list(answer.token_ids) == wanted
        assert answer.finish_reason == ("stop" if wanted[-1] in stops else "length")
    assert len({len(a.token_ids) for a in answers}) > 1, "the case must have rows of different length"


def test_a_batch_may_mix_controls(llama):
    model, tokenizer = llama
    mixed = [ck.Control("coiecd"), ck.Control("ck-plug-repo", alpha=0.1), ck.Control("cad", alpha=0.9)]
    answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=mixed, max_new_tokens=12)
    assert ids(answers) == [expected(model, tokenizer, control, i) for i, control in enumerate(mixed)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_trace_equals_recomputation(tiny, family):
    """H, gain, ranks and probabilities of the trace are those of two plain forwards over the finished answer."""
    model, tokenizer = tiny(family)
    answers = ck.generate(
        model, tokenizer, QUESTIONS, PASSAGES, control=ck.Control("ck-plug", alpha=0.2), max_new_tokens=8
    )
    for i, answer in enumerate(answers):
        pair = build_pair(tokenizer, QUESTIONS[i], PASSAGES[i])
        streams = []
        for prompt in (pair.contextual, pair.parametric):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *answer.token_ids]])).logits[0].double()
            logits[:, len(tokenizer) :] = -torch.inf
            streams.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
        for j, token in enumerate(answer.tokens):
            ctx, par = streams[0][j], streams[1][j]
            entropy = [float(torch.special.entr(x.exp()).sum()) for x in (par, ctx)]
            assert token.h_par == pytest.approx(entropy[0], abs=1e-4)
            assert token.h_ctx == pytest.approx(entropy[1], abs=1e-4)
            assert token.gain == pytest.approx(entropy[0] - entropy[1], abs=2e-4)
            assert token.logp_ctx == pytest.approx(float(ctx[token.id]), abs=1e-4)
            assert token.logp_par == pytest.approx(float(par[token.id]), abs=1e-4)
            assert token.rank_ctx == int((ctx > ctx[token.id]).sum())
