"""Prompts of several sources: what each holds, what they are called, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ckcontrol.decoding.prompts import build_pair
from ckcontrol.decoding.sources import MAX_SOURCES, Source, build_sources, cache_bytes, check_room
from ckcontrol.errors import PromptError, UnsupportedMode

QUESTION = "Who?"
PASSAGES = ["The postman.", "The baker did it.", "Nobody knows."]


def test_each_passage_is_a_source_between_memory_and_all(byte):
    made = build_sources(byte, QUESTION, PASSAGES)
    assert made.names == ("memory", "passage 1", "passage 2", "passage 3", "all")
    assert made.places == ((), (0,), (1,), (2,), (0, 1, 2))
    whole = build_pair(byte, QUESTION, PASSAGES)
    assert made.pair == whole and made.ids[-1] == whole.contextual and made.ids[0] == whole.parametric
    for i, passage in enumerate(PASSAGES):
        assert made.pairs[i + 1] == build_pair(byte, QUESTION, [passage])
    assert made.several


def test_prompts_differ_in_their_passages_alone(byte):
    made = build_sources(byte, QUESTION, PASSAGES)
    first, last = made.pair.span
    size = len(made.ids[-1])
    for pair in made.pairs:
        assert pair.contextual[:first] == made.ids[-1][:first]
        assert pair.contextual[len(pair.contextual) - (size - last) :] == made.ids[-1][last:]
        assert pair.parametric == made.ids[0]


def test_groups_and_names(byte):
    made = build_sources(byte, QUESTION, PASSAGES, [[0, 2], Source([1], name="the old one")])
    assert made.names == ("memory", "passages 1+3", "the old one", "all")
    assert made.pairs[1] == build_pair(byte, QUESTION, [PASSAGES[0], PASSAGES[2]])


def test_one_passage_is_todays_pair_and_none_is_closed_book(byte):
    for sources in ("each", [[0]]):
        one = build_sources(byte, QUESTION, PASSAGES[:1], sources)
        assert one.names == ("memory", "all") and one.pair == build_pair(byte, QUESTION, PASSAGES[:1])
        assert not one.several
    none = build_sources(byte, QUESTION, [])
    assert none.names == ("memory",) and none.pair == build_pair(byte, QUESTION, [])


def test_another_model_is_a_source(llama, byte):
    other = llama[0]
    made = build_sources(byte, QUESTION, PASSAGES[:1], [[0], Source(model=other), Source([], model=other, name="base")])
    assert made.names == ("memory", "second model, all", "base", "all")
    assert made.models == (None, other, other, None) and made.places == ((), (0,), (), (0,))
    closed = build_sources(byte, QUESTION, [], [Source(model=other)])
    assert closed.names == ("memory", "second model, memory", "all") and len(set(closed.ids)) == 1


def test_scores_of_hits_are_kept(byte):
    @dataclass
    class Hit:
        text: str
        score: float

    made = build_sources(byte, QUESTION, [Hit("One.", 0.5), "Two.", Hit("Three.", float("nan"))])
    assert made.scores == (0.5, None, None)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("all", "sources='all'"),
        (3, "sources=3 is no list"),
        ([0], r"sources\[0\]=0 is no list of places"),
        ([[3]], r"sources\[0\] names passage 3, and places are 0 to 2"),
        ([[True]], "names passage True"),
        ([[0, 0]], "twice"),
        ([[]], "that is memory"),
        ([[0], [0]], r"sources\[1\] repeats"),
        ([[0], [2, 1, 0]], r"sources\[1\] has every passage"),
        ([Source([0], name="all"), [1]], "is called 'all'"),
    ],
)
def test_what_is_no_source_is_refused(byte, sources, message):
    with pytest.raises(PromptError, match=message):
        build_sources(byte, QUESTION, PASSAGES, sources)


def test_more_than_the_most_are_refused(byte):
    build_sources(byte, QUESTION, ["A."] * MAX_SOURCES)
    with pytest.raises(PromptError, match=r"17 sources, and at most 16.*sources=\[\[0, 1\]"):
        build_sources(byte, QUESTION, ["A."] * (MAX_SOURCES + 1))


def test_the_caches_are_told_beforehand(llama):
    model, tokenizer = llama
    import torch

    made = build_sources(tokenizer, QUESTION, PASSAGES)
    ids = torch.tensor([made.ids[-1]])
    cache = model(ids, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(model, ids.shape[1]) == held
    assert check_room(model, [made], 8) == cache_bytes(model, sum(map(len, made.ids)) + 8 * len(made.ids))
    with pytest.raises(UnsupportedMode, match="GiB of caches, and the device has"):
        check_room(model, [made], 10**12)


def test_truncation_cuts_each_prompt_by_itself(byte):
    whole = len(build_pair(byte, QUESTION, PASSAGES).contextual)
    made = build_sources(byte, QUESTION, PASSAGES, limit=whole - 20, truncate="passages")
    assert len(made.pair.passages[-1]) < len(PASSAGES[-1]) or len(made.pair.passages) < 3
    assert [p.passages for p in made.pairs[1:-1]] == [(p,) for p in PASSAGES]
