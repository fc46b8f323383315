"""Records: what they accept, their canonical form, and which conflicts cannot be scored."""

from __future__ import annotations

import doctest
import importlib
import json
from dataclasses import replace

import pytest

from ckcontrol.errors import EvalError
from ckcontrol.eval.records import Record, Rejected, squad, texts, unclean

CONFLICT = Record("1", "Where is Oslo?", ("Oslo is in Chile.",), ("Chile",), ("Norway", "Norge"))


@pytest.mark.parametrize(
    "name", ["records", "items.states", "tasks.load", "tasks.base", "tasks.mquake", "tasks.nq_swap"]
)
def test_examples_in_docstrings_are_true(name: str) -> None:
    module = importlib.import_module(f"ckcontrol.eval.{name}")
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_the_group_is_the_normalised_question_and_never_empty() -> None:
    assert CONFLICT.group == "where is oslo"
    assert Record("7", "???", state="closed").group == "7"
    assert replace(CONFLICT, group="mine").group == "mine"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": ""}, "id='' is not a text"),
        ({"id": 3}, "id=3 is not a text"),
        ({"question": " "}, "question=' '"),
        ({"passages": "one text"}, "passages='one text' is not a list"),
        ({"passages": ("a", " ")}, "None of them may be empty"),
        ({"ctx_answers": ({"no": "text"},)}, "ctx_answers: {'no': 'text'}"),
        ({"state": "conflikt"}, "Did you mean 'conflict'"),
        ({"choices": (" a", " b"), "answer_index": 2}, "answer_index=2 is not one of 2 choices"),
        ({"choices": (" a", " b"), "answer_index": True}, "answer_index=True is not a whole number"),
        ({"answer_index": 0}, "answer_index=0 is not one of 0 choices"),
        ({"meta": ["list"]}, "is not a mapping"),
    ],
)
def test_what_a_record_refuses(change: dict, words: str) -> None:
    with pytest.raises(EvalError) as caught:
        replace(CONFLICT, **change)
    assert words in str(caught.value)


def test_the_same_passage_twice_is_two_passages_and_choices_stay_raw() -> None:
    record = Record("1", "Q", ("same", "same"), choices=(" a", "a"), answer_index=1)
    assert record.passages == ("same", "same")
    assert record.choices == (" a", "a")
    assert record.context == "same\n\nsame"


@pytest.mark.parametrize(
    "record",
    [
        CONFLICT,
        Record("2", "Q?", ("one\n\nwith a gap",), ("a",), ("b",)),
        Record("3", "Q?", ("one", "two\u2028three"), ("a",), ("b",), "noisy", meta={"known": None, "n": 1}),
        Record("4", "Q?", (), (), ("b",), "closed"),
        Record("5", "go on", ("say: ",), (" x.",), (" y.",), choices=(" x.", " y."), answer_index=0, cloze=True),
        Record("6", "Q?", ("p",), ("a",), ("a",), "agree", group="case 6"),
    ],
)
def test_canonical_form_is_read_back_as_it_was(record: Record) -> None:
    line = json.dumps(record.to_dict())
    assert Record.from_dict(json.loads(line)) == record
    assert list(record.to_dict()) == ["id", "question", "context", "ctx_answers", "par_answers", "meta"]


def test_canonical_form_names_docs_choices_and_cloze_as_the_format_does() -> None:
    record = Record("3", "Q", ("one", "two"), ("a",), ("b",), choices=("x", "y"), answer_index=1, cloze=True)
    said = record.to_dict()
    assert said["context"] == "one\n\ntwo"
    assert said["meta"] == {
        "state": "conflict",
        "docs": ["one", "two"],
        "choices": ["x", "y"],
        "answer_index": 1,
        "cloze": True,
    }


def test_reading_is_lenient_where_nothing_is_lost() -> None:
    record = Record.from_dict({"id": 5, "question": "Q", "ctx_answers": "a", "par_answers": None, "extra": 1})
    assert (record.id, record.ctx_answers, record.par_answers, record.state) == ("5", ("a",), (), "closed")
    told = {"id": "1", "question": "Q", "context": "c", "ctx_answers": ["a"]}
    assert Record.from_dict(told).state == "plain"
    assert Record.from_dict({**told, "par_answers": ["b"]}).state == "conflict"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "list is not a record"),
        ({"id": "1"}, "question=None"),
        ({"id": "1", "question": "Q", "meta": [1]}, "meta=[1] is not an object"),
        ({"id": "1", "question": "Q", "context": ["a"]}, "Lists of documents go to meta.docs"),
        ({"id": "1", "question": "Q", "context": "x", "meta": {"docs": ["y", "z"]}}, "context is not meta.docs"),
        ({"id": "1", "question": "Q", "meta": {"docs": "y"}}, "not a list of texts"),
        ({"id": "1", "question": "Q", "ctx_answers": [["deep"]]}, "['deep'] is not a text"),
        ({"id": True, "question": "Q", "meta": {"state": 3}}, "no state 3"),
    ],
)
def test_reading_refuses_what_it_would_have_to_guess(data: object, words: str) -> None:
    with pytest.raises(EvalError) as caught:
        Record.from_dict(data)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_texts() -> None:
    assert texts([" a ", "", " ", None, "a", 2.5]) == (" a ", "a", "2.5")
    with pytest.raises(EvalError, match="True is not a text"):
        texts(True)


def test_squad_keeps_diacritics_and_joins_what_punctuation_parted() -> None:
    assert squad("An Port-au-Prince, 1,000 Café!") == "portauprince 1000 café"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"ctx_answers": ("Norway's north",)}, "answers overlap"),
        ({"par_answers": ("Norway", "the Chile")}, "answers overlap"),
        ({"passages": ("Oslo is in Chile, not Norge.",)}, "parametric answer in context"),
        ({"passages": ("Oslo is far.",)}, "contextual answer not in context"),
        ({"ctx_answers": ()}, "no contextual answer"),
        ({"par_answers": ()}, "no parametric answer"),
        ({"ctx_answers": ("Norway",), "state": "agree", "passages": ("In Norway.",)}, None),
        ({"state": "noisy", "passages": ("In Norway.", "In Chile.")}, None),
        ({"state": "irrelevant", "passages": ("Bergen is in Norway.",)}, "parametric answer in context"),
        ({"state": "irrelevant", "passages": ("Lima is in Peru.",)}, None),
        ({"ctx_answers": ("Norway.",), "choices": (" a", " b")}, None),
    ],
)
def test_unclean(change: dict, reason: str | None) -> None:
    found = unclean(replace(CONFLICT, **change))
    assert (found and found[0]) == reason


def test_short_answers_are_compared_as_words_or_not_at_all() -> None:
    symbol = Record("1", "Symbol of iron?", ("The symbol of iron is Ag.",), ("Ag",), ("Fe",))
    wide = replace(symbol, passages=("The ferry calls it Ag.",))
    assert unclean(wide) == ("parametric answer in context", "'Fe'")
    assert unclean(wide, by="words") is None
    with pytest.raises(EvalError, match="Did you mean 'words'"):
        unclean(symbol, by="word")


def test_a_context_may_lead_to_an_answer_it_does_not_state() -> None:
    record = replace(CONFLICT, passages=("Oslo is where Ada lives.",))
    assert unclean(record, supported=False) is None


def test_rejections_are_plain_values() -> None:
    assert Rejected("1", "malformed") == Rejected("1", "malformed", "")
