"""`generate(..., sources=)` with methods of tokens against separate forwards, for every family and one kind outside."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as lp

import ckcontrol as ck
from ckcontrol.answer import Answer
from ckcontrol.decoding.reference import reference_sources
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.decoding.sources import Source, build_sources
from ckcontrol.errors import ControlError, NonFiniteLogits, PromptError, TokenizerMismatch, UnsupportedMode
from ckcontrol.models.tiny import FAMILIES, tiny_model, tiny_tokenizer
from ckcontrol.policies.sources import combination, shares_of
from tests.kinds import build

QUESTIONS = ["Who?", "What is the name of the longest river of all?", "Where did it begin?", "How old?"]
PASSAGES = [["It was the postman.", "The baker. " * 8, "Nobody."], ["Short."], [], ["Ten years.", "Twelve."]]
WAYS = [
    {"control": ck.Control("cad", alpha=0.3)},
    {"control": ck.Control("ck-plug", alpha=0.8, gate=3.0)},
    {"control": ck.Control("ck-plug-repo", alpha=0.2)},
    {"control": ck.Control("coiecd")},
    {"control": ck.Control("arr")},
    {"combine": "replug"},
    {"combine": "min-entropy"},
    {"combine": "avg-entropy"},
]
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 7}


def ids(answers):
    return [list(a.token_ids) for a in answers]


def expected(model, tokenizer, question, passages, sources="each", control=None, combine=None, **more):
    one = build_sources(tokenizer, question, passages, sources)
    policy = combination(combine, (control or ck.Control("off")).policy(), [one.names])
    if not passages:
        policy = combination(None, ck.Control("off").policy(), [one.names])
    names, places, prompts, models = (list(x) for x in (one.names, one.places, one.ids, one.models))
    if len(names) == 2 and combine not in ("min-entropy", "avg-entropy"):  # all there is, beside others with several
        names, places, prompts, models = (
            names[:1] + names[1:] * 2,
            places[1:] * 3,
            prompts[:1] + prompts[1:] * 2,
            [0] * 3,
        )
    inner = [shares_of(places[1:-1], [None] * len(passages))] if len(names) > 2 else [[]]
    return reference_sources(
        [other or model for other in models], prompts, policy, [0.0, *inner[0], 0.0][-len(names) :],
        eos=eos_ids(model, tokenizer), vocab_size=len(tokenizer), **{"max_new_tokens": 8} | more,
    )  # fmt: skip


@pytest.mark.parametrize("family", [*FAMILIES, "opt"])
def test_a_ragged_batch_is_separate_forwards(tiny, family):
    model, tokenizer = tiny(family) if family in FAMILIES else (build(family), tiny_tokenizer())
    for way in WAYS if family == "llama" else random.Random(family).sample(WAYS, 3):
        answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, sources="each", max_new_tokens=8, **way)
        wanted = [expected(model, tokenizer, q, p, **way) for q, p in zip(QUESTIONS, PASSAGES, strict=True)]
        assert ids(answers) == wanted, way


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_sampling_and_penalties_are_those_of_one_question(tiny, family):
    model, tokenizer = tiny(family)
    warpers = LogitsProcessorList([lp.TemperatureLogitsWarper(0.8), lp.TopKLogitsWarper(40), lp.TopPLogitsWarper(0.95)])
    for way in (WAYS[0], WAYS[5]):
        answers = ck.generate(
            model, tokenizer, QUESTIONS[::3], PASSAGES[::3], sources="each", max_new_tokens=8, **way, **SAMPLED
        )
        wanted = [
            expected(model, tokenizer, QUESTIONS[i], PASSAGES[i], **way, processors=warpers, sample=True, seed=7)
            for i in (0, 3)
        ]
        assert ids(answers) == wanted
    penalty = LogitsProcessorList([lp.RepetitionPenaltyLogitsProcessor(1.3)])
    answer = ck.generate(
        model, tokenizer, QUESTIONS[0], PASSAGES[0], sources="each", repetition_penalty=1.3, max_new_tokens=8, **WAYS[0]
    )
    assert ids([answer])[0] == expected(model, tokenizer, QUESTIONS[0], PASSAGES[0], **WAYS[0], processors=penalty)


def test_rows_end_by_themselves(llama):
    model, tokenizer = llama
    how = {"sources": "each", "control": ck.Control("cad", alpha=0.3)}
    free = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, max_new_tokens=8, **how)
    stops = (free[0].token_ids[2], free[3].token_ids[5])
    answers = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, max_new_tokens=8, stop_token_ids=stops, **how)
    for answer, before in zip(answers, free, strict=True):
        end = next((i + 1 for i, token in enumerate(before.token_ids) if token in stops), 8)
        assert answer.token_ids == before.token_ids[:end]
    assert len({len(a.token_ids) for a in answers}) > 1


def test_one_passage_is_todays_pair_and_none_closed_book(llama):
    model, tokenizer = llama
    for control in (ck.Control("cad", alpha=0.3), ck.Control("ck-plug", alpha=0.8, gate=3.0), ck.Control("off")):
        for i in (1, 2):
            how = {"control": control, "max_new_tokens": 8}
            pair = ck.generate(model, tokenizer, QUESTIONS[i], PASSAGES[i], **how)
            made = ck.generate(model, tokenizer, QUESTIONS[i], PASSAGES[i], sources="each", **how)
            assert replace(made, sources=()) == pair
            assert [source.passages for source in made.sources] == ([(), (0,)] if PASSAGES[i] else [])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_middle_is_the_unmodified_model_and_the_end_memory(tiny, family):
    model, tokenizer = tiny(family)
    for sampled in ({}, SAMPLED):
        how = {"max_new_tokens": 8, **sampled}
        plain = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=ck.Control("off"), **how)
        for control in (ck.Control("off"), ck.Control("cad", alpha=0.5)):
            made = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], sources="each", control=control, **how)
            assert made.token_ids == plain.token_ids
            assert [t.logp_final for t in made.tokens] == [t.logp_final for t in plain.tokens]
        control = ck.Control("cad", alpha=1.0)
        memory = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=control, **how)
        made = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], sources="each", control=control, **how)
        assert made.token_ids == memory.token_ids


def test_weights_on_memory_and_all_are_cad(llama):
    model, tokenizer = llama
    cad = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=ck.Control("cad", cad_alpha=1.0))
    made = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], sources="each", combine={"memory": -1, "all": 2})
    assert made.token_ids == cad.token_ids
    assert [s.weight for s in made.tokens[0].sources] == [-1, 0, 0, 0, 2] and made.tokens[0].tau == 2


def test_the_order_of_passages_does_not_matter_to_single_sources(llama):
    """REPLUG's sources are the passages one by one; the prompt with all of them does depend on their order."""
    model, tokenizer = llama
    order = [2, 0, 1]
    first, second = (
        ck.generate(model, tokenizer, QUESTIONS[0], p, sources="each", combine="replug", max_new_tokens=8)
        for p in (PASSAGES[0], [PASSAGES[0][i] for i in order])
    )
    assert first.token_ids == second.token_ids
    for a, b in zip(first.tokens, second.tokens, strict=True):
        assert [s.h for s in b.sources[1:-1]] == pytest.approx([a.sources[1 + i].h for i in order], abs=1e-3)


def test_the_trace_tells_of_every_source(llama):
    model, tokenizer = llama
    how = {"sources": [[0, 2], [1]], "max_new_tokens": 5}
    answer = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=ck.Control("cad", alpha=0.3), **how)
    assert [s.name for s in answer.sources] == ["memory", "passages 1+3", "passage 2", "all"]
    assert [s.passages for s in answer.sources] == [(), (0, 2), (1,), (0, 1, 2)]
    prompts = build_sources(tokenizer, QUESTIONS[0], PASSAGES[0], [[0, 2], [1]])
    for step, token in enumerate(answer.tokens):
        h_par = token.sources[0].h
        for source, prompt in zip(token.sources, prompts.ids, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *answer.token_ids[:step]]])).logits[0, -1, : len(tokenizer)]
            logp = logits.log_softmax(-1)
            assert source.h == pytest.approx(float(-(logp.exp() * logp).sum()), abs=2e-3)
            assert source.gain == pytest.approx(h_par - source.h, abs=1e-5)
            assert source.logp == pytest.approx(float(logp[token.id]), abs=5e-3)
            assert source.rank == int((logp > logp[token.id]).sum())
        assert sum(s.weight for s in token.sources) == pytest.approx(1, abs=1e-5)
        assert token.h_ctx == pytest.approx(token.sources[-1].h) and token.tau == 1 - token.sources[0].weight
    assert Answer.from_dict(answer.to_dict()) == answer
    bare = ck.generate(
        model, tokenizer, QUESTIONS[0], PASSAGES[0], control=ck.Control("cad", alpha=0.3), trace=False, **how
    )
    assert bare.token_ids == answer.token_ids and bare.tokens == ()


def test_broken_numbers_name_source_row_and_step(llama, monkeypatch):
    from ckcontrol.decoding import source_streams

    model, tokenizer = llama
    real, calls = source_streams.SourceStreams.step, []

    def broken(self, tokens):
        logits = real(self, tokens)
        calls.append(1)
        if len(calls) == 2:
            logits[2, 3] = float("nan")
        return logits

    monkeypatch.setattr(source_streams.SourceStreams, "step", broken)
    with pytest.raises(NonFiniteLogits, match="row 3, step 2, passage 2 stream") as caught:
        ck.generate(
            model,
            tokenizer,
            QUESTIONS,
            PASSAGES,
            sources="each",
            control=ck.Control("cad", alpha=0.3),
            max_new_tokens=6,
        )
    assert [len(a.token_ids) for a in caught.value.partial] == [3] * 4


def test_another_model_is_one_more_source(llama):
    model, tokenizer = llama
    other = tiny_model("gpt2", seed=3)[0]
    for combine in ("min-entropy", "avg-entropy", {"memory": 0.2, "second model, all": 0.8}):
        sources = [Source(model=other), [0]]
        answer = ck.generate(
            model, tokenizer, QUESTIONS[3], PASSAGES[3], sources=sources, combine=combine, max_new_tokens=6
        )
        wanted = expected(model, tokenizer, QUESTIONS[3], PASSAGES[3], sources, combine=combine, max_new_tokens=6)
        assert list(answer.token_ids) == wanted
    alone = ck.generate(
        other, tokenizer, QUESTIONS[3], PASSAGES[3], sources="each", combine={"all": 1}, max_new_tokens=6
    )
    made = ck.generate(
        model, tokenizer, QUESTIONS[3], PASSAGES[3], sources=[Source(model=other, name="it")], combine={"it": 1},
        max_new_tokens=6,
    )  # fmt: skip
    assert made.token_ids == alone.token_ids


def test_what_cannot_be_put_together_is_refused(llama):
    model, tokenizer = llama
    other = tiny_model("llama", seed=1)[0]
    wide = build("opt")
    wide.resize_token_embeddings(400)
    question, passages = QUESTIONS[0], PASSAGES[0]
    cad, dial = ck.Control("cad", alpha=0.3), ck.Control("dial", alpha=0.7)

    def ask(**how):
        return ck.generate(model, tokenizer, question, passages, max_new_tokens=2, **how)

    for error, message, how in [
        (ControlError, "combine='replug' without sources", {"combine": "replug"}),
        (ControlError, "combine='mean'.*avg-entropy", {"sources": "each", "combine": "mean"}),
        (ControlError, "sum to 1.5", {"sources": "each", "combine": {"all": 1.5}}),
        (ControlError, "source 'some'.*passage 1", {"sources": "each", "combine": {"all": 0.5, "some": 0.5}}),
        (ControlError, "is no weight", {"sources": "each", "combine": {"all": "1"}}),
        (ControlError, "combine=3 says no way", {"sources": "each", "combine": 3}),
        (ControlError, "control would be ignored", {"sources": "each", "combine": "replug", "control": cad}),
        (PromptError, "names passage 7", {"sources": [[7]], "control": cad}),
        (ControlError, "is another model", {"sources": [Source(model=other)], "control": cad}),
        (TokenizerMismatch, "400 tokens.*has 320", {"sources": [Source(model=wide)], "combine": "min-entropy"}),
        (UnsupportedMode, "compile=True", {"sources": "each", "combine": "replug", "compile": True}),
        (UnsupportedMode, "trustmargin", {"sources": "each", "control": ck.Control("trustmargin")}),
        (UnsupportedMode, "chooses between whole answers", {"sources": "each", "combine": "scores", "control": dial}),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            ask(**how)


def test_scores_of_a_search_count_where_asked(llama):
    model, tokenizer = llama

    class Hit:
        def __init__(self, text, score):
            self.text, self.score = text, score

    hits = [Hit(p, s) for p, s in zip(PASSAGES[0], (2.0, 1.0, 0.0), strict=True)]
    made = ck.generate(model, tokenizer, QUESTIONS[0], hits, sources="each", combine="replug", max_new_tokens=2)
    wanted = torch.tensor([2.0, 1.0, 0.0]).softmax(0).tolist()
    assert [s.weight for s in made.tokens[0].sources] == pytest.approx([0, *wanted, 0])
    for combine, shares in (("scores", wanted), (None, [1 / 3] * 3)):
        made = ck.generate(
            model, tokenizer, QUESTIONS[0], hits, sources="each", combine=combine, max_new_tokens=2,
            control=ck.Control("cad", cad_alpha=1.0),
        )  # fmt: skip
        assert [s.weight for s in made.tokens[0].sources] == pytest.approx([-1, *shares, 1])


def test_masks_of_heads_act_on_their_streams(llama):
    from ckcontrol.heads import HeadMask, pruned

    model, tokenizer = llama
    mask = HeadMask.of(model, [(0, 1), (1, 2)])
    how = {"sources": "each", "control": ck.Control("cad", alpha=0.3), "max_new_tokens": 3}
    plain = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, **how)
    with pruned(model, contextual=mask):
        masked = ck.generate(model, tokenizer, QUESTIONS, PASSAGES, **how)
    first, before = masked[0].tokens[0].sources, plain[0].tokens[0].sources
    assert first[0].h == pytest.approx(before[0].h, abs=1e-4)
    assert all(abs(a.h - b.h) > 1e-4 for a, b in zip(first[1:], before[1:], strict=True))
