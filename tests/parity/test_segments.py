"""Answers decided sentence by sentence: against the naive loop, alone and in batches, and one sentence as ever.

A tiny model writes no sentences, so here one ends wherever one of a few letters stands: before the next character, as
most sentences do, or with the letter itself, as a line does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.errors import UnsupportedMode
from ckcontrol.eval.running.fan import fan
from ckcontrol.policies import AnswerPolicy, idle_drafts, register, sentence_end
from ckcontrol.policies.base import _REGISTRY
from ckcontrol.policies.cad import CAD
from ckcontrol.policies.off import UNMODIFIED

from .test_reference import PASSAGES, QUESTIONS, ids


@register
@dataclass(frozen=True)
class Turns(AnswerPolicy):
    """Takes one draft or the other by how long both are: a tiny model's memory would hardly ever win."""

    name: ClassVar[str] = "turns"
    segmented = True

    @property
    def drafts(self):
        return {"unmodified": UNMODIFIED, "memory": CAD(cad_alpha=-1.0)}

    def choose(self, drafts):
        return sum(len(draft.logp_ctx) for draft in drafts) % 2

    def weigh(self, logp_ctx, logp_par):
        return sum(logp_ctx)


TURNS = ck.Control("turns")
del _REGISTRY["turns"]  # other files go through every method there is
SEGMENTS = [
    ck.Control("dial", alpha=0.96, segments=True),
    ck.Control("dial", alpha=0.98, segments=True),
    ck.Control("dial", alpha=0.0, segments=True),
    ck.Control("dial", adaptive=True, segments=True),
]
BEFORE, WITH = r"[^\W_](?=.)", r"[^\W_]"


@pytest.fixture(params=[BEFORE, WITH], ids=["before", "with"])
def ends(request, monkeypatch):
    monkeypatch.setattr(idle_drafts, "_END", re.compile(request.param, re.DOTALL))


def expected(model, tokenizer, control, i, new, **keywords):
    pair = build_pair(tokenizer, QUESTIONS[i], PASSAGES[i])
    return ck.reference_generate(
        model, pair.contextual, pair.parametric, control, max_new_tokens=new, eos=eos_ids(model, tokenizer),
        vocab_size=len(tokenizer), question=QUESTIONS[i], passages=pair.passages,
        read=lambda ids: tokenizer.decode(ids, skip_special_tokens=True), **keywords,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3"])
def test_a_ragged_batch_equals_reference_and_its_rows(tiny, family, ends):
    model, tokenizer = tiny(family)
    rounds, given = set(), set()
    for control in (TURNS, SEGMENTS[1]):
        answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=14)
        assert ids(answers) == [expected(model, tokenizer, control, i, 14) for i in range(3)], control
        for i, answer in enumerate(answers):
            alone = ck.generate(model, tokenizer, QUESTIONS[i], PASSAGES[i], control=control, max_new_tokens=14)
            assert (alone.token_ids, alone.text) == (answer.token_ids, answer.text)
            kept = [draft for draft in answer.drafts if draft.given]
            assert [id for draft in kept for id in draft.token_ids] == list(answer.token_ids)
            assert [draft.segment for draft in kept] == list(range(len(kept)))
            assert [t.id for t in answer.tokens] == list(answer.token_ids)
            assert [t.logp_par for t in answer.tokens] == pytest.approx([t.logp_par for t in alone.tokens], abs=1e-3)
            rounds.add(len(kept))
            given |= {draft.name for draft in kept}
    assert max(rounds) > 2 and given == {"unmodified", "memory"}, "otherwise nothing is shown"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3"])
def test_eager_attention_is_led_back_as_the_reference_begins_anew(tiny, family, ends, monkeypatch):
    """Its masks are added numbers, over caches whose rows were dropped, repeated and filled up again."""
    model, tokenizer = tiny(family)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "eager")
    given = set()
    for control in (TURNS, SEGMENTS[2]):
        answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=14)
        assert ids(answers) == [expected(model, tokenizer, control, i, 14) for i in range(3)], control
        given |= {(draft.segment, draft.name) for answer in answers for draft in answer.drafts if draft.given}
    assert model.config._attn_implementation == "eager"
    assert {"unmodified", "memory"} <= {name for _, name in given}, "otherwise nothing is led back"
    assert max(given)[0] > 1, "nor twice"


def test_a_mixed_batch_and_a_window_that_slides(tiny, ends):
    """Whole drafts, one draft and segments side by side; the reference knows of none of the others."""
    model, tokenizer = tiny("gemma3")
    controls = [TURNS, ck.Control("dial", alpha=0.6), ck.Control("ck-plug", alpha=0.2)]
    for turn in (0, 1):
        mixed = controls[turn:] + controls[:turn]
        answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=mixed, max_new_tokens=30)
        assert ids(answers) == [expected(model, tokenizer, mixed[i], i, 30) for i in range(3)]


def test_sampled_segments_equal_reference(tiny, ends):
    model, tokenizer = tiny("llama")
    for control in (TURNS, SEGMENTS[2]):
        answers = ck.generate(
            model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=14, do_sample=True, seed=5
        )
        assert ids(answers) == [expected(model, tokenizer, control, i, 14, sample=True, seed=5) for i in range(3)]


@pytest.mark.parametrize("control", SEGMENTS, ids=repr)
def test_one_sentence_is_chosen_as_a_whole_answer_is(llama, control):
    model, tokenizer = llama
    whole = ck.Control(**{**control.to_dict(), "segments": False})
    assert all(sentence_end(text) is None for text in ("It is Lima.", "It is in the U.S. state.", "\n\n", "Lima"))
    once, each = (
        ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=c, max_new_tokens=20) for c in (whole, control)
    )
    for a, b in zip(once, each, strict=True):
        assert not any(sentence_end(draft.text) for draft in a.drafts)
        assert (a.token_ids, a.tokens, a.drafts, a.finish_reason) == (b.token_ids, b.tokens, b.drafts, b.finish_reason)


class Heard:
    """A streamer that knows how much had been said when it was told something, and how often it was ended."""

    def __init__(self):
        self.told, self.ended = [], 0

    def put(self, value):
        self.told.append(value.tolist())

    def end(self):
        self.ended += 1


def test_a_stream_hears_each_segment_once_it_is_decided(llama, ends, monkeypatch):
    model, tokenizer = llama
    heard, forwards, at = Heard(), 0, []
    own = type(model).forward

    def counted(self, *args, **keywords):
        nonlocal forwards
        forwards += 1
        return own(self, *args, **keywords)

    monkeypatch.setattr(type(model), "forward", counted)
    monkeypatch.setattr(Heard, "put", lambda self, value: (at.append(forwards), self.told.append(value.tolist())))
    answer = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=TURNS, max_new_tokens=14, streamer=heard)
    prompt, *tokens = heard.told
    assert [token for one in tokens for token in one] == list(answer.token_ids)
    assert heard.ended == 1 and prompt == [list(build_pair(tokenizer, QUESTIONS[0], PASSAGES[0]).contextual)]
    lengths = [len(draft.token_ids) for draft in answer.drafts if draft.given]
    moments = [at[1 + sum(lengths[:i])] for i in range(len(lengths))]
    assert len(moments) > 2 and sorted(set(moments)) == moments, "each segment was told before the next was decoded"


def test_an_interrupt_ends_the_stream_and_leaves_the_model_as_it_was(llama, ends):
    model, tokenizer = llama
    plain = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=TURNS, max_new_tokens=14)
    for after in (1, 2, 4):
        heard = Heard()

        def put(value, heard=heard, after=after):
            heard.told.append(value)
            if len(heard.told) > after:
                raise KeyboardInterrupt

        heard.put = put
        with pytest.raises(KeyboardInterrupt):
            ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=TURNS, max_new_tokens=14, streamer=heard)
        assert heard.ended == 1 and torch.is_grad_enabled()
        assert "ckcontrol" not in model.config._attn_implementation
    again = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=TURNS, max_new_tokens=14)
    assert again == plain


def test_stop_texts_are_found_across_segments(llama, ends):
    model, tokenizer = llama
    for control in (TURNS, SEGMENTS[2]):
        free = ck.generate(model, tokenizer, QUESTIONS[1], PASSAGES[1], control=control, max_new_tokens=14)
        first = next(draft for draft in free.drafts if draft.given)
        text = tokenizer.decode(free.token_ids, skip_special_tokens=True)
        at = len(tokenizer.decode(first.token_ids, skip_special_tokens=True))
        stop = text[max(0, at - 1) : at + 1].removesuffix("\ufffd")  # the beginning of a character that was cut off
        held = ck.generate(model, tokenizer, QUESTIONS[1], PASSAGES[1], control=control, max_new_tokens=14, stop=[stop])
        assert held.finish_reason == "stop" and stop not in held.text


def test_evaluations_give_the_answer_of_generate(llama, ends):
    model, tokenizer = llama
    controls = [TURNS, ck.Control("off"), SEGMENTS[2]]
    made = fan(
        model,
        [build_pair(tokenizer, q, p) for q, p in zip(QUESTIONS, PASSAGES, strict=True)],
        [control.policy() for control in controls],
        options=GenerateOptions(max_new_tokens=14),
        ends=sorted(eos_ids(model, tokenizer)),
        pad=tokenizer.pad_token_id or 0,
        vocab_size=len(tokenizer),
        questions=QUESTIONS,
        read=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
    )
    for arm, control in enumerate(controls):
        answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, control=control, max_new_tokens=14)
        for item, answer in enumerate(answers):
            found = made[item][arm]
            assert tuple(found.ids) == answer.token_ids
            if control.policy().neutral:
                continue  # `generate` shows a neutral row with its spare ids
            assert found.tau == pytest.approx([t.tau for t in answer.tokens], rel=1e-3, abs=1e-4)
            assert found.logp_par == pytest.approx([t.logp_par for t in answer.tokens], abs=1e-3)


def test_what_cannot_be_led_back_is_refused(llama):
    model, tokenizer = llama
    ask = {"control": SEGMENTS[0], "max_new_tokens": 4}
    for how, named in [
        ({"repetition_penalty": 1.2}, "a repetition penalty"),
        ({"processors": [lambda ids, scores: scores]}, "processors"),
        ({"criteria": [lambda ids, scores: torch.zeros(len(ids), dtype=torch.bool)]}, "stopping criteria"),
    ]:
        with pytest.raises(UnsupportedMode, match=f"{named} cannot follow"):
            ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], **ask, **how)
    pair = build_pair(tokenizer, QUESTIONS[0], PASSAGES[0])
    loop = ck.decoding_loop(SEGMENTS[0], parametric_ids=torch.tensor([pair.parametric]), tokenizer=tokenizer)
    with pytest.raises(UnsupportedMode, match="which decoding_loop cannot"):
        model.generate(torch.tensor([pair.contextual]), custom_generate=loop, max_new_tokens=4)
    single = ck.Control("dial", alpha=1.0, segments=True)  # nothing to choose, nothing to refuse
    assert ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=single, repetition_penalty=1.2)
