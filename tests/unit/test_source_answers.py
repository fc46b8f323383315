"""Which answer sources support: equal answers, who bears, the dial's order and its figures, from plain numbers."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

import ckcontrol as ck
from ckcontrol.policies import Evidence, SourceDraft, read_drafts, weigh
from ckcontrol.policies.source_answers import CONTRADICTS, SILENT, SUPPORTS, merged

QUESTION = "Who is the mayor of Tellin?"
ADAPTIVE = ck.Control(adaptive=True)
DIAL = [ck.Control(alpha=step / 20) for step in range(21)]


def sources(*told, memory="Paul Munz", all_="Ines Novak", own=2.0, far=9.0, near=0.3):
    """Return sources that find their own answer near and others far; `told` are texts and passages of the passages."""
    texts = [memory, *(text for text, _ in told), all_]
    passages = [(), *((passage,) for _, passage in told), tuple(passage for _, passage in told)]
    rows = [[near if other == text else far for other in texts] for text in texts]
    rows[0] = [own if other == memory else far for other in texts]
    return [
        SourceDraft(text, row, own if place == 0 else near, read)
        for place, (text, row, read) in enumerate(zip(texts, rows, passages, strict=True))
    ]


NOVAK = ("Ines Novak", "Ines Novak is the mayor of Tellin.")
ALSO = ("It is Ines Novak.", "The mayor of Tellin, Ines Novak, spoke.")
BRANDT = ("Carl Brandt", "Carl Brandt is the mayor of Tellin.")
BESIDE = ("Erik Sandberg", "Erik Sandberg painted a bridge.")
MEMORY = ("Paul Munz", "A bridge lies on the river at Tellin.")


def given(told, control, **how):
    some = sources(*told, **how)
    return some[weigh(some, QUESTION, control.policy()).given].text


@pytest.mark.parametrize(
    ("texts", "question", "answers"),
    [
        (["Lima.", "The capital of Peru is Lima", "lima"], "What is the capital of Peru?", [0, 0, 0]),
        (["3,559 people", "3559", "There were 3,559."], "What is the population?", [0, 0, 0]),
        (["March 3, 1990", "3 March 1990"], "When?", [0, 0]),
        (["Lima. It lies on the coast.", "Lima"], "Where?", [0, 0]),
        (["York", "New York", "New Orleans"], "Where?", [0, 0, 2]),
        (["Lima", "Cusco", "Lima and Cusco"], "Where?", [0, 1, 2]),
        (["France", "Germany", "It is France"], "France or Germany?", [0, 1, 0]),
        (["", "Lima", ""], "Where?", [0, 1, 0]),
        # a function word is one in the question's language only, and none that is written as a name
        (["The note La.", "La", "Do", "It is the note Re."], "Which syllable is the sixth note?", [0, 0, 2, 3]),
        (["la capitale è Lima", "Lima"], "Qual è la capitale?", [0, 0]),
        (["It is As.", "As", "It is Am.", "The symbol is As."], "What is the symbol of arsenic?", [0, 0, 2, 0]),
        (["It's Con.", "Con", "It's Der."], "Who painted it?", [0, 0, 2]),
        (["Es ist Lima", "Lima"], "Peru?", [0, 0]),
    ],
)
def test_drafts_that_say_the_same_are_one_answer(texts, question, answers):
    assert merged(texts, question) == answers
    for order in itertools.permutations(range(len(texts))):
        other = merged([texts[place] for place in order], question)
        pairs = itertools.combinations(range(len(texts)), 2)
        assert all((other[i] == other[j]) == (answers[order[i]] == answers[order[j]]) for i, j in pairs)


def test_no_two_passages_outvote_the_answer_to_all_and_three_do():
    assert given([NOVAK, ALSO], ck.Control(alpha=0), all_="Carl Brandt") == "Carl Brandt"
    told = [NOVAK, ALSO, ("Ines Novak.", "Ines Novak, mayor of Tellin, left.")]
    assert given(told, ck.Control(alpha=0), all_="Carl Brandt").strip(".").endswith("Ines Novak")
    assert given(told, ADAPTIVE, all_="Carl Brandt").strip(".").endswith("Ines Novak")
    assert given([*told, BRANDT], ck.Control(alpha=0.1), all_="Carl Brandt") == "Carl Brandt"


def test_the_same_passage_twice_is_one():
    weighed = weigh(sources(NOVAK, BRANDT, BRANDT), QUESTION, ck.Control(alpha=0).policy())
    assert weighed.support[1] == pytest.approx(weighed.support[2] + 2, abs=1e-2)  # all reads Novak


def test_memory_decides_between_equals():
    for memory, other in (("Carl Brandt", "Ines Novak"), ("Ines Novak", "Carl Brandt")):
        some = sources(NOVAK, BRANDT, memory=memory, all_=other)
        some[-1] = replace(some[-1], surprises=[1.0] * len(some))  # all finds both as likely
        assert some[weigh(some, QUESTION, ck.Control(alpha=0.2).policy()).given].text == memory


def test_beside_the_point_is_silent_and_who_says_what_is_told():
    some = sources(NOVAK, BRANDT, BESIDE, MEMORY, ("I don't know.", "Tellin is a town."))
    weighed = weigh(some, QUESTION, ck.Control(alpha=0.2).policy())
    assert weighed.stances == [CONTRADICTS, SUPPORTS, CONTRADICTS, SILENT, SILENT, SILENT, SUPPORTS]
    assert weighed.disputed
    assert weighed.answers[5] is None
    agreed = weigh(sources(NOVAK, ALSO), QUESTION, ck.Control(alpha=0.2).policy())
    assert not agreed.disputed


def test_memory_that_knows_disputes_what_passages_agree_on():
    sure = weigh(sources(NOVAK, ALSO, own=0.1, far=9.0), QUESTION, ADAPTIVE.policy())
    assert (sure.given, sure.disputed, sure.stances[1]) == (0, True, CONTRADICTS)
    guesses = weigh(sources(NOVAK, ALSO, own=6.0, far=9.0), QUESTION, ADAPTIVE.policy())
    assert guesses.given
    assert not guesses.disputed


def test_ends_of_the_dial():
    told = [NOVAK, ALSO, BRANDT]
    assert given(told, ck.Control(alpha=1), own=30.0) == "Paul Munz"
    assert given(told, ck.Control(alpha=0.5), all_="Carl Brandt") == "Carl Brandt"
    assert given([BESIDE, MEMORY], ck.Control(alpha=0), all_="Somebody else") == "Somebody else"


NAMES = ["Ines Novak", "Carl Brandt", "Mara Ortega", "It is Ines Novak.", "Who is the mayor of Tellin?"]


def drawn(rng):
    count = rng.randint(2, 5)
    texts = [rng.choice(NAMES) for _ in range(count + 2)]
    passages = [
        rng.choice([f"{rng.choice(NAMES)} is the mayor of Tellin.", f"{rng.choice(NAMES)} left Oslo."]) for _ in texts
    ]
    read = [(), *((passage,) for passage in passages[1:-1]), tuple(passages[1:-1])]
    surprises = [[rng.expovariate(0.3) for _ in texts] for _ in texts]
    if rng.random() < 0.1:
        surprises[rng.randrange(len(texts))][rng.randrange(len(texts))] = float("inf")
    return [SourceDraft(*row) for row in zip(texts, surprises, [rng.expovariate(1) for _ in texts], read, strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_monotone_finite_and_blind_to_order(seed):
    rng = random.Random(seed)
    some = drawn(rng)
    inner = list(range(1, len(some) - 1))
    rng.shuffle(inner)
    order = [0, *inner, len(some) - 1]
    turned = [
        SourceDraft(some[i].text, [some[i].surprises[j] for j in order], some[i].own, some[i].passages) for i in order
    ]
    dial = [weigh(some, QUESTION, control.policy()) for control in DIAL]
    for weighed, other in zip(
        [*dial, weigh(some, QUESTION, ADAPTIVE.policy())],
        [weigh(turned, QUESTION, control.policy()) for control in [*DIAL, ADAPTIVE]],
        strict=True,
    ):
        assert turned[other.given].text == some[weighed.given].text
        assert [other.stances[order.index(i)] for i in range(len(order))] == list(weighed.stances)
        assert other.disputed == weighed.disputed
    backing = [weighed.backing[weighed.given] for weighed in dial[:11]]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(backing))
    lean = [some[-1].surprises[w.given] - some[0].surprises[w.given] for w in dial[10:-1]]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(lean))
    below, above = dial[:10], dial[11:-1]
    for side in (below, above):
        texts = [some[w.given].text for w in side]
        assert len([1 for a, b in itertools.pairwise(texts) if a != b]) <= 1


@pytest.mark.parametrize("seed", range(40))
def test_towards_memory_it_is_dial(seed):
    some = drawn(random.Random(seed))
    pair = []
    for place in (-1, 0):
        read = [[one.surprises[place]] for one in (some[-1], some[0])]
        pair.append(Evidence(read[0], read[1], (), (), (), (), sentence=1))
    pair[1] = replace(pair[1], logp_par=[some[0].surprises[0]])
    texts = [some[-1].text, some[0].text]
    own = [replace(one, own=some[0].surprises[0]) for one in some]  # one token: its first sentence is all of it
    pair = read_drafts(pair, ["unmodified", "memory"], texts, QUESTION, some[-1].passages)
    for control in [*DIAL[11:], ADAPTIVE]:
        chosen = control.policy().choose(pair)
        weighed = weigh(own, QUESTION, control.policy())
        assert (weighed.given == 0) == (chosen == 1)


def test_a_passage_that_bears_and_contradicts_the_answer_disputes_it():
    """The one that stands beside the point supports what is given; the only one that bears says otherwise."""
    some = sources(NOVAK, BESIDE, all_="Carl Brandt")
    weighed = weigh(some, QUESTION, ck.Control(alpha=0.5).policy())
    assert some[weighed.given].text == "Carl Brandt" and weighed.stances[1] == CONTRADICTS
    assert weighed.disputed
    assert not weigh(sources(BESIDE, all_="Carl Brandt"), QUESTION, ck.Control(alpha=0.5).policy()).disputed
