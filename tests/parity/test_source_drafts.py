"""Whole answers of several sources: as the naive twin writes and reads them, in batches, and in any order."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.decoding.reference import reference_drafts
from ckcontrol.decoding.refusals import check_tokenizer, eos_ids
from ckcontrol.decoding.source_drafts import canonical, through, writing
from ckcontrol.decoding.sources import build_sources
from ckcontrol.errors import ControlError, UnsupportedMode
from ckcontrol.models.tiny import tiny_tokenizer
from tests.kinds import build

QUESTIONS = ["Who came to Tellin?", "Where did the longest river of them all begin?"]
PASSAGES = [
    ["It was the postman.", "The baker came to Tellin. " * 4, "Nobody."],
    ["In Tellin.", "The river began in Oslo."],
]
NEW = 6
CONTROLS = [ck.Control(alpha=alpha) for alpha in (0, 0.3, 0.45, 0.6, 0.9, 1)] + [ck.Control(adaptive=True)]


@pytest.fixture(params=["llama", "gemma3", "gpt2", "opt", "mamba"])
def any_model(request, tiny):
    outside = ("opt", "mamba")
    return (build(request.param), tiny_tokenizer()) if request.param in outside else tiny(request.param)


def prompts_of(tokenizer):
    return [build_sources(tokenizer, q, p) for q, p in zip(QUESTIONS, PASSAGES, strict=True)]


def test_drafts_and_readings_are_those_of_full_forwards(any_model):
    model, tokenizer = any_model
    ends, known = eos_ids(model, tokenizer), check_tokenizer(model, tokenizer)
    options = GenerateOptions(max_new_tokens=NEW)
    prompts = prompts_of(tokenizer)
    batch = through(writing(model, tokenizer, prompts, options, ends=sorted(ends), vocab_size=known))
    for one, found in zip(prompts, batch, strict=True):
        drafts, read = reference_drafts(model, one.ids, max_new_tokens=NEW, eos=ends, vocab_size=known)
        assert [list(ids) for ids in found.ids] == drafts
        for source, wanted in zip(found.readings, read, strict=True):
            for reading, logp in zip(source, wanted, strict=True):
                assert list(reading.logp) == pytest.approx(logp, abs=2e-3)
        own = [reading[place].logp for place, reading in enumerate(found.readings)]
        for finals, logp in zip(found.finals, own, strict=True):
            assert list(finals) == pytest.approx(list(logp), abs=2e-3)


@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_a_batch_is_its_questions(llama, control):
    batch = ck.generate(*llama, QUESTIONS, PASSAGES, control=control, sources="each", max_new_tokens=NEW)
    for question, passages, answer in zip(QUESTIONS, PASSAGES, batch, strict=True):
        alone = ck.generate(*llama, question, passages, control=control, sources="each", max_new_tokens=NEW)
        assert answer.token_ids == alone.token_ids
        assert [s.stance for s in answer.sources] == [s.stance for s in alone.sources]
        assert answer.disputed == alone.disputed


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("control", [ck.Control(alpha=0.2), ck.Control(alpha=0.8), ck.Control(adaptive=True)], ids=str)
def test_the_order_of_passages_does_not_matter(tiny, family, control):
    def asked(passages):
        return ck.generate(*tiny(family), QUESTIONS[0], passages, control=control, sources="each", max_new_tokens=NEW)

    first = asked(PASSAGES[0])
    for order in itertools.permutations(range(3)):
        other = asked([PASSAGES[0][place] for place in order])
        assert other.token_ids == first.token_ids
        assert other.tokens == first.tokens
        for place, was in enumerate(order):
            assert other.passages[place] == first.passages[was]
            here, there = other.sources[1 + place], first.sources[1 + was]
            assert (here.name, here.passages) == (f"passage {place + 1}", (place,))
            assert (here.stance, here.text, here.surprise) == (there.stance, there.text, there.surprise)


@pytest.mark.parametrize("alpha", [0.5, 1])
def test_the_plain_answer_and_memory_are_what_they_are_without_sources(tiny, alpha):
    model = tiny("llama")
    order = PASSAGES[0][::-1]  # as the caller put them
    plain = ck.generate(*model, QUESTIONS[0], order, control=ck.Control(alpha=alpha), max_new_tokens=NEW)
    told = ck.generate(*model, QUESTIONS[0], order, control=ck.Control(alpha=alpha), sources="each", max_new_tokens=NEW)
    assert told.token_ids == plain.token_ids
    assert told.tokens == plain.tokens
    assert [source.name for source in told.sources] == ["memory", "passage 1", "passage 2", "passage 3", "all"]


@pytest.mark.parametrize("passages", [[], ["Only one."]])
@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_one_passage_or_none_is_the_pair(llama, passages, control):
    with_sources, without = (
        ck.generate(*llama, QUESTIONS[0], passages, control=control, max_new_tokens=NEW, **more)
        for more in ({"sources": "each"}, {})
    )
    assert replace(with_sources, sources=()) == without
    assert [source.passages for source in with_sources.sources] == ([(), (0,)] if passages else [])
    for source in with_sources.sources if {"memory", "unmodified"} == {d.name for d in without.drafts} else ():
        wrote = "memory" if source.name == "memory" else "unmodified"
        draft = next(d for d in without.drafts if d.name == wrote)
        assert (source.text, source.stance in ("supports", "contradicts", "silent")) == (draft.text, True)
        assert source.surprise_own == (draft.surprise_par if source.name == "memory" else draft.surprise_ctx)


def test_groups_are_sources(llama):
    answer = ck.generate(
        *llama, QUESTIONS[0], PASSAGES[0], control=ck.Control(alpha=0.2), sources=[[2, 0], [1]], max_new_tokens=NEW
    )
    assert [source.passages for source in answer.sources] == [(), (0, 2), (1,), (0, 1, 2)]


def test_stop_texts_and_samples(llama):
    how = {"control": ck.Control(alpha=0.2), "sources": "each", "max_new_tokens": NEW}
    whole = ck.generate(*llama, QUESTIONS[0], PASSAGES[0], **how)
    letter = next(c for c in whole.drafts[1].text if c.isprintable())
    cut = ck.generate(*llama, QUESTIONS[0], PASSAGES[0], stop=letter, **how)
    assert letter not in cut.drafts[1].text
    how |= {"do_sample": True, "temperature": 3.0, "seed": 5}
    drawn, again = (ck.generate(*llama, QUESTIONS[0], PASSAGES[0], **how) for _ in range(2))
    assert drawn == again
    assert [d.token_ids for d in drawn.drafts] != [d.token_ids for d in whole.drafts]
    turned = ck.generate(*llama, QUESTIONS[0], PASSAGES[0][::-1], **how)
    assert turned.token_ids == drawn.token_ids


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"control": ck.Control("trustmargin")}, "trustmargin"),
        ({"control": ck.Control(alpha=0.2, segments=True)}, "segments=True"),
        ({"processors": [lambda ids, scores: scores]}, "processors"),
        ({"criteria": [lambda ids, scores: torch.tensor([False])]}, "criteria"),
        ({"regex": "[a-z]+"}, "regex"),
        ({"compile": True}, "compile"),
        ({"sources": "every"}, "every"),
        ({"sources": [[7]]}, "passage 7"),
    ],
)
def test_what_cannot_be_done_is_refused(llama, more, words):
    how = {"control": ck.Control(alpha=0.2), "sources": "each", "max_new_tokens": NEW, **more}
    with pytest.raises((UnsupportedMode, ControlError, ck.errors.PromptError), match=words):
        ck.generate(*llama, QUESTIONS[0], PASSAGES[0], **how)


def test_a_source_that_breaks_is_named(llama):
    model, tokenizer = llama

    def forward(module, args, kwargs, output):
        if kwargs["input_ids"].shape[1] == len(bad):
            output.logits[:] = float("nan")

    bad = build_sources(tokenizer, QUESTIONS[0], PASSAGES[0]).ids[2]
    hook = model.register_forward_hook(forward, with_kwargs=True)
    try:
        with pytest.raises(ck.errors.NonFiniteLogits, match="passage 2") as caught:
            ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=CONTROLS[0], sources="each")
    finally:
        hook.remove()
    assert (caught.value.row, caught.value.step) == (0, 0)


def test_streamed_tokens_are_the_answer(llama):
    class Kept:
        def __init__(self):
            self.got, self.ends = [], 0

        def put(self, value):
            self.got.append(value.tolist())

        def end(self):
            self.ends += 1

    kept = Kept()
    answer = ck.generate(
        *llama, QUESTIONS[0], PASSAGES[0], control=CONTROLS[0], sources="each", max_new_tokens=NEW, streamer=kept
    )
    assert [ids[0] for ids in kept.got[1:]] == list(answer.token_ids)
    assert kept.ends == 1


def test_what_does_not_fit_is_cut_in_the_order_of_the_caller(llama):
    passages = [*PASSAGES[0], "x" * 400, "Never in the prompt."]
    template = ck.PromptTemplate()
    room = len(ck.build_pair(llama[1], QUESTIONS[0], passages[:3], template=template).contextual) + 40
    limit = llama[0].config.max_position_embeddings
    llama[0].config.max_position_embeddings = room + NEW
    try:
        answer, plain = (
            ck.generate(
                *llama, QUESTIONS[0], passages, control=CONTROLS[1], truncate="passages", max_new_tokens=NEW, **more
            )
            for more in ({"sources": "each"}, {})
        )
    finally:
        llama[0].config.max_position_embeddings = limit
    assert answer.passages == plain.passages
    assert answer.context_tokens == plain.context_tokens
    assert answer.sources[-1].passages == (0, 1, 2, 3)
    assert [source.name for source in answer.sources][5] == "passage 5"


@pytest.mark.real
def test_the_real_model_says_who_says_what(real):
    passages = [
        "Since 2021, Ines Novak has been the mayor of Tellin.",
        "Tellin lies on a river.",
        "The mayor of Tellin, Ines Novak, opened the bridge.",
        "Carl Brandt is the mayor of Tellin, a visitor wrote.",
    ]
    for order in ([0, 1, 2, 3], [3, 2, 0, 1]):
        answer = ck.generate(
            *real,
            "Who is the mayor of Tellin?",
            [passages[place] for place in order],
            control=ck.Control(alpha=0),
            sources="each",
            max_new_tokens=12,
        )
        assert "Novak" in answer.text
        assert answer.disputed
        told = {passages[order[source.passages[0]]]: source.stance for source in answer.sources[1:-1]}
        assert (told[passages[0]], told[passages[2]], told[passages[3]]) == ("supports", "supports", "contradicts")


def test_a_second_model_reads_its_own_rows(tiny):
    """In a batch whose other questions have more sources, none of which may be read by it."""
    from ckcontrol.decoding.sources import Source
    from ckcontrol.models.tiny import tiny_model

    model, other = tiny("llama"), tiny_model("llama", seed=3)[0]
    how = {"control": CONTROLS[1], "sources": [[0], [1], Source(model=other)], "max_new_tokens": NEW}
    batch = ck.generate(*model, QUESTIONS, [PASSAGES[0], [*PASSAGES[1], "More."]], **how)
    for question, passages, answer in zip(QUESTIONS, [PASSAGES[0], [*PASSAGES[1], "More."]], batch, strict=True):
        alone = ck.generate(*model, question, passages, **how)
        assert answer == alone
        prompts = build_sources(model[1], question, [passages[p] for p in canonical(passages)], [Source(model=other)])
        ids, _ = reference_drafts(other, [prompts.ids[1]], max_new_tokens=NEW, eos=eos_ids(*model), vocab_size=260)
        assert list(next(d for d in answer.drafts if "second" in d.name).token_ids) == ids[0]
