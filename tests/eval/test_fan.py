"""Every answer of a shared pass is the one `generate` gives with that control alone."""

from __future__ import annotations

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.decoding.streams import Stream, TwoStreams
from ckcontrol.eval.running.fan import Width, fan

CONTROLS = [
    ck.Control("off"),
    *(ck.Control("ck-plug", alpha=a) for a in (0.0, 0.25, 0.5, 0.75, 1.0)),
    *(ck.Control("ck-plug-repo", alpha=a) for a in (0.0, 0.5, 1.0)),
    ck.Control("ck-plug", adaptive=True),
    *(ck.Control("cad", alpha=a) for a in (0.0, 0.25, 0.75, 1.0)),
    *(ck.Control(name) for name in ("adacad", "coiecd", "acd", "arr", "nwcad")),
    ck.Control("grd", sure=0.01),
    ck.Control("trustmargin", lambda_bind=2.0, margin=-0.01),
    *(ck.Control("dial", alpha=a) for a in (0.0, 0.3, 0.5, 0.6, 1.0)),
    ck.Control("dial", adaptive=True),
]
QUESTIONS = ["What is the capital of Peru?", "Who wrote it?", "How many?"]
PASSAGES = [["Peru's capital is Quito."], ["It was written by a committee of nine people.", "Nobody knows."], ["Nine."]]


def fanned(model, tokenizer, controls, options, questions=QUESTIONS, passages=PASSAGES, width=None):
    pairs = [build_pair(tokenizer, q, p) for q, p in zip(questions, passages, strict=True)]
    return fan(
        model,
        pairs,
        [c.policy() for c in controls],
        options=options,
        ends=sorted(eos_ids(model, tokenizer)),
        pad=tokenizer.pad_token_id or 0,
        vocab_size=len(tokenizer),
        width=width,
        questions=questions,
        read=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
    )


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox", "qwen3"])
def test_equals_generate_for_every_control(tiny, family):
    model, tokenizer = tiny(family)
    options = GenerateOptions(max_new_tokens=12)
    made = fanned(model, tokenizer, CONTROLS, options)
    for arm, control in enumerate(CONTROLS):
        alone = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=12)
        for item, answer in enumerate(alone):
            found = made[item][arm]
            assert tuple(found.ids) == answer.token_ids, (family, control, item)
            assert found.error is None
            if control.policy().neutral:
                continue  # `generate` shows a neutral row with its spare ids
            assert found.gain == pytest.approx([t.gain for t in answer.tokens], abs=1e-4)
            assert found.tau == pytest.approx([t.tau for t in answer.tokens], rel=1e-3, abs=1e-4)
            assert found.switched == [t.switched for t in answer.tokens]
            assert found.logp_par == pytest.approx([t.logp_par for t in answer.tokens], abs=1e-3)


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": True, "seed": 3, "temperature": 0.8, "top_k": 20},
        {"repetition_penalty": 1.3},
        {"do_sample": True, "seed": 5, "repetition_penalty": 1.2, "penalty_scope": "generated", "top_p": 0.9},
    ],
    ids=["sampled", "penalty", "both"],
)
def test_drawing_equals_generate(llama, how):
    model, tokenizer = llama
    options = GenerateOptions(max_new_tokens=10, **how)
    made = fanned(model, tokenizer, CONTROLS, options, QUESTIONS[:1], PASSAGES[:1])
    for arm, control in enumerate(CONTROLS):
        alone = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=control, max_new_tokens=10, **how)
        assert tuple(made[0][arm].ids) == alone.token_ids, control


def test_padded_vocabulary_never_wins_and_off_is_left_alone(llama):
    model, tokenizer = llama
    assert model.config.vocab_size > len(tokenizer), "the tiny model has spare ids"
    made = fanned(model, tokenizer, CONTROLS, GenerateOptions(max_new_tokens=12))
    steered = [arm for arm, control in enumerate(CONTROLS) if not control.policy().neutral]
    assert all(token < len(tokenizer) for answers in made for arm in steered for token in answers[arm].ids)


def test_alike_controls_cost_one_row(llama):
    model, tokenizer = llama
    width = Width()
    controls = [ck.Control("off"), ck.Control("ck-plug", alpha=0.5), ck.Control("cad", alpha=0.5)]
    made = fanned(model, tokenizer, controls, GenerateOptions(max_new_tokens=8), width=width)
    assert [a.ids for a in made[0]] == [made[0][0].ids] * 3
    assert width.asked == 3 * width.rows


def test_broken_logits_fail_their_own_answers_only(llama):
    """The model breaks on one question; the others' answers are what they were."""
    model, tokenizer = llama
    options = GenerateOptions(max_new_tokens=6)
    controls = CONTROLS[:6]
    whole = fanned(model, tokenizer, controls, options)
    bad = build_pair(tokenizer, QUESTIONS[1], PASSAGES[1]).contextual

    def poison(module, args, kwargs, output):
        ids = kwargs.get("input_ids")
        if ids is not None and ids.shape[1] >= len(bad):
            for row in range(ids.shape[0]):
                if ids[row, -len(bad) :].tolist() == list(bad):
                    output.logits[row] = float("nan")
        return output

    hook = model.register_forward_hook(poison, with_kwargs=True)
    try:
        made = fanned(model, tokenizer, controls, options)
    finally:
        hook.remove()
    assert all("contextual" in a.error and "step 0" in a.error and a.ids == [] for a in made[1])
    for item in (0, 2):
        assert [a.ids for a in made[item]] == [a.ids for a in whole[item]]
        assert all(a.error is None for a in made[item])


def two_streams(model, tokenizer, chosen, share):
    """Streams of the chosen questions, padded to the longest of all of them."""
    pairs = [build_pair(tokenizer, q, p) for q, p in zip(QUESTIONS, PASSAGES, strict=True)]
    made = []
    for name in ("contextual", "parametric"):
        prompts = [getattr(pair, name) for pair in pairs]
        longest = max(map(len, prompts))
        ids = [[0] * (longest - len(prompts[i])) + list(prompts[i]) for i in chosen]
        masks = [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen]
        made.append(Stream(model, torch.tensor(ids), torch.tensor(masks)))
    return TwoStreams(*made, share=share, reserve=2)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
def test_rows_can_be_dropped_repeated_and_reordered(tiny, family, share):
    """Selecting rows after a step is running the selected prompts from the start."""
    model, tokenizer = tiny(family)
    rows = [2, 0, 0]
    every = two_streams(model, tokenizer, [0, 1, 2], share)
    some = two_streams(model, tokenizer, rows, share)
    with torch.no_grad():
        every.prefill()
        every.step(torch.tensor([7, 8, 9]))
        every.select(torch.tensor(rows))
        some.prefill()
        some.step(torch.tensor([9, 7, 7]))
        for tokens in (torch.tensor([5, 5, 6]), torch.tensor([4, 3, 2])):
            for ours, theirs in zip(every.step(tokens), some.step(tokens), strict=True):
                torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
