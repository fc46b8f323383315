"""The five states: what each passage says, where false answers come from, and that nothing depends on order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from ckcontrol.errors import EvalError
from ckcontrol.eval import mentions
from ckcontrol.eval.items.readers import read
from ckcontrol.eval.items.states import FIVE, StateFact, build_states, completed
from ckcontrol.eval.tasks.facts import read_facts
from ckcontrol.eval.tasks.load import load_task

from .data import fixture

FACTS = read_facts(read(fixture("facts.jsonl")).rows)[0]
SHIPPED = load_task("facts").facts


def test_the_facts_file() -> None:
    facts, rejected = read_facts(read(fixture("facts.jsonl")).rows)
    assert [fact.id for fact in facts][-3:] == ["boat/Ada", "boat/Bo", "boat/Cy"]
    assert facts[0].answers == ("Norway", "Norge") and facts[0].told("Mars") == "Ada lives in Mars."
    assert facts[5].question == "Ada's boat is the" and facts[5].told("Tern") == "Ada's boat is the Tern."
    assert [item.reason for item in rejected] == ["malformed", "malformed", "id given twice"]
    assert "'Peru' is in the question or passage of 'Peru Smith'" in rejected[0].detail
    assert "'answer' is missing" in rejected[1].detail


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"relation": ""}, "field 'relation' is missing"),
        ({"answer": 3}, "field 'answer' is 3, not a text"),
        ({"cloze": "", "context_template": ""}, "has no {answer}"),
        ({"context_template": "no place for it"}, "has no {answer}"),
        ({"aliases": [["x"]]}, "aliases"),
        ({"question": "Is it Norway?"}, "'Norway' is in the question"),
    ],
)
def test_what_is_no_fact(change: dict, words: str) -> None:
    line = {"relation": "r", "subject": "Ada", "answer": "Norway", "cloze": "The home of Ada is"}
    with pytest.raises(EvalError) as caught:
        StateFact.from_dict({**line, **change})
    assert words in str(caught.value)
    with pytest.raises(EvalError, match="str is not a fact"):
        StateFact.from_dict("line")  # type: ignore[arg-type]


def test_the_subject_is_written_as_in_the_cloze() -> None:
    line = {"relation": "r", "subject": "Iron", "answer": "Fe", "cloze": "The symbol of iron is"}
    fact = StateFact.from_dict({**line, "context_template": "For {subject} write {answer}."})
    assert fact.passage == "For iron write {answer}."


def test_known_facts_make_four_states_and_unknown_ones_make_helpful() -> None:
    known = {fact.id: number % 2 == 0 for number, fact in enumerate(SHIPPED)}
    states = {}
    for record in build_states(SHIPPED, known):
        states.setdefault(record.meta["fact"], []).append(record.state)
        assert record.meta["known"] is known[record.meta["fact"]]
    for name, knows in known.items():
        assert states[name] == (["conflict", "agree", "irrelevant", "noisy"] if knows else ["helpful"])


def test_facts_that_nobody_probed_make_all_five() -> None:
    records = build_states(FACTS, {"home/Ada": False})
    assert Counter(record.state for record in records) == {state: 8 if state == "helpful" else 7 for state in FIVE}
    assert {record.meta["known"] for record in records if record.meta["fact"] != "home/Ada"} == {None}


def test_only_the_states_asked_for() -> None:
    assert {record.state for record in build_states(FACTS, None, ("agree", "noisy"))} == {"agree", "noisy"}
    with pytest.raises(EvalError, match="Did you mean 'agree'"):
        build_states(FACTS, None, ("agreed",))


@pytest.mark.parametrize("seed", [0, 1])
def test_what_each_state_says(seed: int) -> None:
    facts = {fact.id: fact for fact in SHIPPED}
    for record in build_states(SHIPPED, seed=seed):
        fact = facts[record.meta["fact"]]
        assert record.par_answers == fact.answers and record.group
        right, wrong = mentions(record.context, fact.answers), mentions(record.context, record.ctx_answers)
        if record.state in ("agree", "helpful"):
            assert right and record.ctx_answers == record.par_answers
        elif record.state == "conflict":
            assert wrong and not right
        elif record.state == "irrelevant":
            assert wrong and not right and not mentions(record.context, [fact.subject])
            assert record.meta["about"] != fact.id
        else:
            assert right and wrong and len(record.passages) == 2
        assert not mentions(record.question, (*record.par_answers, *record.ctx_answers))
    assert len({record.id for record in build_states(SHIPPED, seed=seed)}) == 5 * len(SHIPPED)


def test_noisy_passages_come_in_both_orders() -> None:
    noisy = build_states(SHIPPED, None, ("noisy",))
    first = sum(mentions(record.passages[0], record.par_answers) for record in noisy)
    assert 0.4 < first / len(noisy) < 0.6


def test_a_false_answer_is_of_the_relation_and_pool_and_no_part_of_the_truth() -> None:
    for seed in range(20):
        done = {fact.id: fact for fact in completed(FACTS, seed)}
        assert done["home/Ada"].false_answers[0] in ("Peru", "Chile"), "the pool of Ada"
        assert done["home/Di"].false_answers == ("Kenya",)
        assert done["boat/Bo"].false_answers == ("Tern",), "Grey Gull holds Gull"
        assert done["boat/Ada"].false_answers == ("Tern",)
    assert len({completed(FACTS, seed)[0].false_answers for seed in range(20)}) == 2
    outside = [replace(FACTS[0], pool="alone"), *FACTS[1:]]
    assert completed(outside)[0].false_answers[0] in ("Peru", "Chile", "Ghana", "Kenya"), "an empty pool is widened"


def test_aliases_of_a_false_answer_count_where_they_belong_to_it() -> None:
    facts = [replace(fact, pool="") for fact in FACTS[:2]]
    bo = completed(facts)[1]
    assert bo.false_answers == ("Norway", "Norge")
    other = replace(facts[0], id="home/Zed", subject="Zed", aliases=("Noreg",))
    assert completed([*facts, other])[1].false_answers == ("Norway",), "not an alias for all"


def test_a_given_false_answer_stays() -> None:
    fact = replace(FACTS[0], false_answers=("Mars",))
    assert completed([fact])[0].false_answers == ("Mars",)


def test_draws_depend_on_the_seed_and_not_on_the_order() -> None:
    there = {record.id: record for record in build_states(SHIPPED, seed=5)}
    back = {record.id: record for record in build_states(tuple(reversed(SHIPPED)), seed=5)}
    assert there == back
    plain = [replace(fact, false_answers=(), other=None) for fact in SHIPPED]
    assert build_states(plain, seed=1) != build_states(plain, seed=2)
    assert build_states(plain, seed=1) == build_states(iter_once(plain), seed=1)


def iter_once(facts: list[StateFact]) -> tuple[StateFact, ...]:
    return tuple(completed((fact for fact in facts), 1))


def test_what_cannot_be_had_is_said() -> None:
    with pytest.raises(EvalError, match="relation 'home' has no answer that is false for 'Ada'"):
        build_states(FACTS[:1])
    alone = replace(FACTS[0], false_answers=("Mars",))
    assert len(build_states([alone], None, ("conflict", "agree", "noisy"))) == 3
    with pytest.raises(EvalError, match="no passage is irrelevant to 'home/Ada'"):
        build_states([alone], None, ("irrelevant",))


def test_clozes_are_asked_where_there_are_any() -> None:
    records = build_states([replace(FACTS[0], cloze=""), *FACTS[1:]], None, ("agree",), cloze=True)
    assert [record.cloze for record in records] == [False] + [True] * 7
    plain = build_states(FACTS, None, ("agree",))
    assert [record.cloze for record in plain] == [False] * 5 + [True] * 3, "boats have no question"
    assert records[1].question == "The home of Bo is"


def test_the_record_that_probes() -> None:
    asked = FACTS[0].asked()
    assert (asked.id, asked.question, asked.state) == ("home/Ada", "Where does Ada live?", "closed")
    assert asked.passages == asked.ctx_answers == () and asked.par_answers == ("Norway", "Norge")
    assert FACTS[0].asked(cloze=True).question == "The home of Ada is" and FACTS[0].asked(cloze=True).cloze
    assert FACTS[5].asked().cloze
