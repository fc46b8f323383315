"""Drafts that are stopped when they can no longer be given: the answer is that of whole drafts, for fewer forwards.

A tiny model hardly ever ends an answer, so here a share of all tokens does.
"""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.drafts import Drafts, Hopeless, _may_stop, choose
from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.errors import ControlError
from ckcontrol.models.tiny import tiny_model
from ckcontrol.policies import Dial, Evidence, idle_drafts
from ckcontrol.views.describe import draft_lines

from .test_reference import PASSAGES, QUESTIONS, ids
from .test_segments import WITH, Heard

CONTROLS = [
    ck.Control("dial", alpha=0.6),
    ck.Control("dial", alpha=0.97),
    ck.Control("dial", adaptive=True),
    ck.Control("dial", alpha=0.2),
    ck.Control("grd", sure=0.004),
]
SEGMENTS = [ck.Control("dial", alpha=alpha, segments=True) for alpha in (0.6, 0.97, 0.2)]
NEW = 14


def ends(tokenizer, seed=5):
    """Some tokens without a word, so that it does not matter whether a text has the end token."""
    wordless = [token for token in range(len(tokenizer)) if re.fullmatch(r"[\x00-\x7f]", tokenizer.decode([token]))]
    wordless = [token for token in wordless if not tokenizer.decode([token]).isalnum()]
    return random.Random(seed).sample(wordless, 48)


def both(model, tokenizer, control, questions=QUESTIONS, passages=PASSAGES, which=5, **keywords):
    """The answers with whole drafts, and without a trace."""
    keywords = {"max_new_tokens": NEW, "stop_token_ids": ends(tokenizer, which)} | keywords
    return [
        ck.generate(model, tokenizer, questions, passages, control=control, trace=trace, **keywords)
        for trace in (True, False)
    ]


def compare(whole, cut):
    """Return how many drafts were stopped, and the names of those given."""
    stopped = 0
    for one, other in zip(whole, cut, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        for draft, short in zip(one.drafts, other.drafts, strict=True):
            assert not draft.stopped
            assert (draft.name, draft.given, draft.segment) == (short.name, short.given, short.segment)
            assert short.token_ids == draft.token_ids[: len(short.token_ids)]
            if not short.stopped:
                assert (short.token_ids, short.text) == (draft.token_ids, draft.text)
                assert short.idle == (draft.idle and not other.drafts[0].stopped), "beside half an answer nobody knows"
                assert short.surprise_par == pytest.approx(draft.surprise_par, abs=1e-3)
                continue
            stopped += 1
            assert not (short.given or short.idle) and short.evidence is None
            assert 0 < short.surprise_par < draft.surprise_par + 1e-3
    return stopped, {draft.name for one in whole for draft in one.drafts if draft.given}


def expected(model, tokenizer, control, i, seed):
    pair = build_pair(tokenizer, QUESTIONS[i], PASSAGES[i])
    return ck.reference_generate(
        model, pair.contextual, pair.parametric, control, max_new_tokens=NEW, vocab_size=len(tokenizer),
        eos={*eos_ids(model, tokenizer), *ends(tokenizer, seed)}, question=QUESTIONS[i], passages=pair.passages,
        read=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
    )  # fmt: skip


def assert_equal(model, tokenizer, controls):
    stopped, given = 0, set()
    for control in controls:
        for seed in (5, 7):
            whole, cut = both(model, tokenizer, control, which=seed)
            assert ids(cut) == [expected(model, tokenizer, control, i, seed) for i in range(3)], (control, seed)
            some, names = compare(whole, cut)
            stopped, given = stopped + some, given | names
    assert stopped > 3, "otherwise nothing is shown"
    return given


@pytest.fixture
def rows(monkeypatch):
    """How many rows every forward of a model had."""
    counted = []

    def watch(model):
        own = type(model).forward

        def forward(self, *args, **keywords):
            given = keywords.get("input_ids", args[0] if args else None)
            counted.append(len(given))
            return own(self, *args, **keywords)

        monkeypatch.setattr(type(model), "forward", forward)
        return counted

    return watch


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3", "mistral", "gpt_neox"])
def test_a_ragged_batch_equals_reference_and_whole_drafts(tiny, family):
    model, tokenizer = tiny(family)
    assert len(assert_equal(model, tokenizer, CONTROLS)) > 1, "other drafts are given, too"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3"])
def test_segments_equal_reference_and_whole_drafts(tiny, family, monkeypatch):
    model, tokenizer = tiny(family)
    monkeypatch.setattr(idle_drafts, "_END", re.compile("[a-m](?=.)", re.DOTALL))
    assert_equal(model, tokenizer, SEGMENTS)


def test_a_mixed_batch_sampled(tiny):
    model, tokenizer = tiny("llama")
    how = {"do_sample": True, "seed": 7, "temperature": 1.5}
    stopped = 0
    for turn in range(len(CONTROLS)):
        mixed = [*CONTROLS[turn:], *CONTROLS[:turn]][:3]
        whole, cut = both(model, tokenizer, mixed, **how)
        stopped += compare(whole, cut)[0]
    assert stopped > 3


def test_forwards_are_saved(tiny, rows):
    model, tokenizer = tiny("llama")
    counted, made = rows(model), []
    for trace in (True, False):
        counted.clear()
        ck.generate(
            model, tokenizer, QUESTIONS[2], PASSAGES[2], control=CONTROLS[0], max_new_tokens=NEW, trace=trace,
            stop_token_ids=ends(tokenizer),
        )  # fmt: skip
        made.append((len(counted), sum(counted)))
    (steps, all_rows), (fewer, fewer_rows) = made
    assert fewer < steps and fewer_rows < all_rows


def test_passages_beside_the_point_leave_nothing_to_amplify(tiny):
    """No draft of the context's follows them, so it is given up at once and costs the prompts' first token."""
    model, tokenizer = tiny("llama")
    question, passages = ["Where is the harbour of Vess?"], [["Parcels go by the train."]]
    (cut,) = both(model, tokenizer, CONTROLS[3], question, passages, stop_token_ids=())[1]
    plain, context = cut.drafts
    assert plain.given and context.stopped and len(context.token_ids) == 1
    passages = [["The harbour of Vess is in the north."]]
    (cut,) = both(model, tokenizer, CONTROLS[3], question, passages, stop_token_ids=())[1]
    assert not cut.drafts[1].stopped and len(cut.drafts[1].token_ids) == NEW


def test_a_stream_hears_the_same_and_an_interrupt_leaves_the_model_as_it_was(tiny, monkeypatch):
    model, tokenizer = tiny("llama")
    monkeypatch.setattr(idle_drafts, "_END", re.compile(WITH, re.DOTALL))
    for control in (CONTROLS[0], SEGMENTS[0]):
        how = {"control": control, "max_new_tokens": NEW, "stop_token_ids": ends(tokenizer), "trace": False}
        heard = Heard()
        answer = ck.generate(model, tokenizer, QUESTIONS[2], PASSAGES[2], streamer=heard, **how)
        assert any(draft.stopped for draft in answer.drafts)
        assert [token for one in heard.told[1:] for token in one] == list(answer.token_ids) and heard.ended == 1
        own = Hopeless.__call__

        def interrupted(self, unfinished, own=own):
            after = own(self, unfinished)
            if bool((after != unfinished).any()):
                raise KeyboardInterrupt
            return after

        with monkeypatch.context() as patched:
            patched.setattr(Hopeless, "__call__", interrupted)
            heard = Heard()
            with pytest.raises(KeyboardInterrupt):
                ck.generate(model, tokenizer, QUESTIONS[2], PASSAGES[2], streamer=heard, **how)
        assert heard.ended == 1 and torch.is_grad_enabled() and "ckcontrol" not in model.config._attn_implementation
        assert ck.generate(model, tokenizer, QUESTIONS[2], PASSAGES[2], **how) == answer


def test_answers_with_stopped_drafts_are_read_back_and_shown(tiny):
    model, tokenizer = tiny("llama")
    cut = both(model, tokenizer, CONTROLS[0])[1][2]
    assert json.loads(cut.to_json())["drafts"][1]["stopped"] is True
    assert ck.Answer.from_dict(cut.to_dict()) == cut
    old = cut.to_dict()
    old["drafts"] = [{name: value for name, value in draft.items() if name != "stopped"} for draft in old["drafts"]]
    assert not ck.Answer.from_dict(old).drafts[1].stopped
    assert [line[2].startswith("stopped") for line in draft_lines(cut)] == [False, True]


def test_what_a_method_calls_hopeless_it_must_not_give():
    class Fickle(Dial):
        def choose(self, drafts):
            return 1

    one = Evidence([-1.0], [-1.0], [0.0], [0.0], [0], [0.0])
    with pytest.raises(ControlError, match=r"'dial' gives the draft 'memory'.*hopeless"):
        choose(Fickle(0.7), ["unmodified", "memory"], [[1], [2]], [one, replace(one, whole=False)])


def test_whole_answers_beside_answers_by_sentences(monkeypatch):
    """One batch of both: a whole draft is not cut where its first sentence ends, nor judged by it."""
    monkeypatch.setattr(idle_drafts, "_END", re.compile(r"[a-m](?=.)", re.DOTALL))
    seen = 0
    for seed in range(24):
        model, tokenizer = tiny_model(("llama", "gpt2", "qwen3")[seed % 3], seed=seed)
        draw = random.Random(seed)
        asked, told = (["".join(draw.choices("abcdefgh stuvw", k=12)) for _ in range(8)] for _ in range(2))
        how = {"max_new_tokens": 20, "stop_token_ids": draw.sample(range(256), 70)}
        asked, told = [text.capitalize() + "?" for text in asked], [[text] for text in told]
        firm = ck.generate(model, tokenizer, asked, told, control=ck.Control("dial", alpha=0.97), **how)
        for i, answer in enumerate(firm):
            plain, memory = answer.drafts
            if not memory.evidence or memory.evidence <= 0 or len(memory.token_ids) <= len(plain.token_ids):
                continue
            for share in (0.9995, 0.95):  # just enough for memory's draft
                control = ck.Control("dial", alpha=(1 + math.exp(-memory.evidence * share)) / 2)
                beside = [control, ck.Control("dial", alpha=0.6, segments=True)]
                pair = [asked[i], asked[i - 1]], [told[i], told[i - 1]]
                given = [
                    ck.generate(model, tokenizer, *pair, control=beside, trace=trace, **how) for trace in (True, False)
                ]
                alone = ck.generate(model, tokenizer, asked[i], told[i], control=control, trace=False, **how)
                assert given[1][0].token_ids == given[0][0].token_ids == alone.token_ids
                assert given[1][1].token_ids == given[0][1].token_ids
                seen += 1
    assert seen > 30


@pytest.mark.parametrize("segments", [False, True])
def test_torchs_own_generator_is_left_as_it_would_be(segments, monkeypatch):
    """Drawn without a seed, neither the answer nor what is drawn next depends on whether there is a trace."""
    monkeypatch.setattr(idle_drafts, "_END", re.compile(r"[a-m](?=.)", re.DOTALL))
    model, tokenizer = tiny_model("llama")
    control = ck.Control("dial", alpha=0.6, segments=segments)
    for seed in range(12):
        made = []
        for trace in (True, False):
            torch.manual_seed(seed)
            answer = ck.generate(
                model, tokenizer, QUESTIONS[0], PASSAGES[0], control=control, trace=trace, do_sample=True,
                temperature=1.5, max_new_tokens=24, stop_token_ids=ends(tokenizer),
            )  # fmt: skip
            made.append((answer.token_ids, torch.rand(1).item()))
        assert made[0] == made[1]


class Longer(Dial):
    """dial's drafts and dial's `hopeless`, and a choice that has nothing to do with them."""

    def choose(self, drafts):
        return int(len(drafts) > 1 and len(drafts[1].logp_ctx) > len(drafts[0].logp_ctx))


def test_a_choice_of_ones_own_does_not_inherit_what_is_hopeless():
    assert not _may_stop(Longer(0.6))
    assert _may_stop(Dial(0.6))


class Odd(Dial):
    def choose(self, drafts):
        return 0

    def hopeless(self, drafts):
        return self.places


@pytest.mark.parametrize(("places", "stopped"), [((0,), []), ((1,), [1]), ((0, 1), [1]), ((2,), None), ((-1,), None)])
def test_only_drafts_that_go_on_are_stopped(places, stopped):
    """One that is whole stays whole, whatever a policy says of it; one that is not there is refused."""
    policy = Odd(0.6)
    object.__setattr__(policy, "places", places)
    whole, goes = (Evidence((-1.0,), (-1.0,), (), (), (), (), whole=w) for w in (True, False))
    drafts = Drafts([policy])
    if stopped is None:
        with pytest.raises(ControlError, match=re.escape(str(list(places)))):
            drafts.hopeless(0, [[1], [2]], [whole, goes])
    else:
        assert drafts.hopeless(0, [[1], [2]], [whole, goes]) == stopped
