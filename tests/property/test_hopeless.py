"""What is said of drafts that go on is true of them in the end: no draft is stopped that would have been given."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from ckcontrol.policies import Dial, Evidence, first_sentence, idle
from ckcontrol.policies.grd import GRD
from ckcontrol.policies.idle_drafts import first_sentence_so_far, nothing_to_add, sentence_end
from ckcontrol.policies.trustmargin import TrustMargin

DIALS = [Dial(alpha) for alpha in (0.0, 0.3, 0.49, 0.51, 0.6, 0.9, 0.999)] + [Dial(adaptive=True)]
SURPRISES = st.one_of(
    st.floats(-30, 0), st.sampled_from([0.0, -0.05, -1.0, -3.0, -1e-9, -1e8, -math.inf]), st.floats(-0.1, 0)
)
PAIRS = st.lists(st.tuples(SURPRISES, SURPRISES), min_size=1, max_size=12)
WORDS = ["Lima", "lima", "Baku", "Peru", "the", "is", "As", "in", "US", "us", "7", "Oslo", "of", "capital", "la"]
PIECES = ["Li", "ma", " It", "。", ".", ". ", "\n", " ", "x", "?!", "U.S", "1", '."']
TEXTS = st.lists(st.sampled_from([*WORDS, ".", "?", ",", "\n", '"']), max_size=9).map(" ".join)


def evidence(pairs, **told) -> Evidence:
    ctx, par = zip(*pairs, strict=True) if pairs else ((), ())
    zeros = [0.0] * len(pairs)
    return Evidence(ctx, par, zeros, zeros, [0] * len(pairs), zeros, **told)


@settings(max_examples=1000, deadline=None)
@given(plain=PAIRS, other=PAIRS, data=st.data())
def test_a_hopeless_draft_of_the_dial_is_never_given(plain, other, data):
    sentence = data.draw(st.integers(1, len(other)))  # what is known of it grows on the way, and is never too much
    least = [data.draw(st.integers(1, min(t, sentence))) for t in range(1, len(other))]
    first = evidence(plain)
    for dial in DIALS:
        end = [first, evidence(other, sentence=sentence)]
        found = [
            tuple(dial.hopeless([first, evidence(other[:t], sentence=k, whole=False)])) for t, k in enumerate(least, 1)
        ]
        if any(found):
            assert dial.choose(end) == 0
        assert set(found) <= {(), (1,)} and not dial.hopeless(end)
        assert not dial.hopeless([evidence(plain, whole=False), evidence(other[:1], whole=False)])
        stopped = [first, evidence(other, sentence=sentence, whole=False)]
        assert dial.choose(stopped) == 0, "nor one that was stopped, whatever its beginning says"


def test_the_bound_is_no_empty_one():
    """Memory that surprises itself as the context's answer does is given up; one that may still win is not."""
    plain = evidence([(-1.0, -6.0)])
    grown = [evidence([(-8.0, -1.0), *[(-2.0, -2.0)] * more], sentence=1 + more, whole=False) for more in range(12)]
    at = {alpha: [Dial(alpha).hopeless([plain, one]) for one in grown].index((1,)) for alpha in (0.6, 0.9, 0.99)}
    assert at[0.6] == 0 < at[0.9] < at[0.99]
    assert not Dial(0.999).hopeless([plain, evidence([(-1.5, -0.1)], whole=False)])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), SURPRISES, st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=8))
def test_grd_decides_at_the_first_disagreement(tokens):
    def seen(steps: int, whole: bool) -> Evidence:
        ranks, best, h_par, h_ctx = zip(*tokens[:steps], strict=True)
        return Evidence(best, best, h_ctx, h_par, ranks, best, whole=whole)

    for policy in (GRD(), GRD(sure=0.01), GRD(gate_mode="ent_only")):
        given = policy.choose([seen(len(tokens), True)] * 2)
        for steps in range(1, len(tokens) + 1):
            told = policy.hopeless([seen(steps, False)] * 2)
            assert tuple(told) == ((1 - given,) if any(rank for rank, *_ in tokens[:steps]) else ())


@settings(max_examples=1000, deadline=None)
@given(question=TEXTS, passages=st.lists(TEXTS, min_size=1, max_size=2), first=TEXTS, other=TEXTS)
def test_nothing_to_add_is_nothing_whatever_is_written(question, passages, first, other):
    for known in (first, ""):
        if nothing_to_add(question, passages, known):
            assert idle(["unmodified", "context"], [first, other], question, passages)[1]


def test_nothing_can_be_added_to_a_passage_that_was_told_or_is_beside_the_point():
    question = "What is the capital of Peru?"
    assert nothing_to_add(question, ["Parcels leave from Oslo."], "")
    assert nothing_to_add(question, ["The capital of Peru is Baku."], "It is Baku.")
    assert not nothing_to_add(question, ["The capital of Peru is Baku."], "")
    assert not nothing_to_add(question, ["The capital of Peru is Baku, on the coast."], "It is Baku.")
    assert not nothing_to_add("Peru?", ["Peru: Baku."], "Baku."), "the language of the other draft may tell"
    assert not nothing_to_add(question, [], "It is Baku.")


def test_saying_what_a_passage_says_does_not_settle_it():
    """The context's draft may still say all that and more; so this must not stop it."""
    question, passages = "Who runs Tellin?", ["Tellin is run by Ms Novak from the second floor."]
    said = ["It is Ms Novak.", "It is Ms Novak on the second floor."]
    assert idle(["unmodified", "context"], said, question, passages) == [False, False]
    assert not nothing_to_add(question, passages, said[0])


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_the_first_sentence_of_a_segment_takes_no_fewer_tokens(pieces):
    """As drafts by sentences end: at the first sentence with a word, mostly one token late."""
    for tokens in range(1, len(pieces) + 1):
        if sentence_end("".join(pieces[:tokens])) is not None:
            break
    text = "".join(pieces[:tokens] if pieces else "")
    end = sentence_end(text)
    kept = tokens - 1 if end is not None and text[end:].strip() and tokens > 1 else tokens if pieces else 0
    whole = first_sentence("".join(pieces[:kept]).strip(), kept)
    for step in range(1, kept + 1):
        so_far = "".join(pieces[:step])
        if sentence_end(so_far) is None:
            assert first_sentence_so_far(so_far, step) <= whole


def test_a_policy_that_says_nothing_of_it_has_its_drafts_written():
    assert tuple(TrustMargin().hopeless([evidence([(0.0, 0.0)], whole=False)] * 2)) == ()
