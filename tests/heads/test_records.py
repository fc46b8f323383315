"""Facts become records whose prompts say what they should and nothing that would leak the answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckcontrol.errors import EvalError, HeadsError
from ckcontrol.eval.items.states import StateFact
from ckcontrol.eval.tasks.facts import load_facts
from ckcontrol.heads.finding.conflict_prompts import SPLITS, ConflictRecord, answer_token, build_records
from ckcontrol.heads.finding.facts import Fact, contains, read_facts

from .known import ANSWERS, SUBJECTS, Known, known_model


@pytest.fixture(scope="module")
def known() -> Known:
    return known_model()


def records(
    known: Known, facts: list[Fact] | None = None, **options: Any
) -> tuple[list[ConflictRecord], dict[str, int]]:
    return build_records(known.model, known.tokenizer, known.facts if facts is None else facts, **options)


def test_the_prompts_of_a_record(known: Known) -> None:
    made, left_out = records(known)
    assert len(made) == 12 and left_out == {}
    for record in made:
        subject, false = record.subject, record.context
        assert record.memory == ANSWERS[SUBJECTS.index(subject)] != false
        assert record.clean == f"the tree of {subject} is"
        assert record.gold == f"the tree of {subject} is {record.memory} . {record.clean}"
        assert record.conflict == {"substitution": f"the tree of {subject} is {false} . {record.clean}"}
        other = record.other_answer["substitution"]
        third = other.removeprefix(f"the tree of {subject} is ").split()[0]
        assert other == f"the tree of {subject} is {third} . {record.clean}" and third not in (record.memory, false)
        swapped = record.other_subject["substitution"]
        name = swapped.split()[3]
        assert swapped == f"the tree of {name} is {false} . the tree of {name} is" and name != subject
        assert ANSWERS[SUBJECTS.index(name)] not in (record.memory, false), "the other subject remembers neither"
        assert not contains(record.irrelevant, [record.memory])


def test_records_depend_on_seed_and_fact_alone(known: Known) -> None:
    first, again, other = records(known)[0], records(known, batch_size=5)[0], records(known, seed=1)[0]
    assert first == again != other
    assert {r.split for r in first} <= set(SPLITS)
    two = [replace(fact, relation="bush") for fact in known.facts]
    both = records(known, [*known.facts, *two])[0]
    splits: dict[str, set[str]] = {}
    for record in both:
        splits.setdefault(record.subject, set()).add(record.split)
    assert all(len(found) == 1 for found in splits.values()), "a subject is in one split under all its relations"
    assert [r.context for r in both[:12]] == [r.context for r in first], "other relations change no draw"
    assert all(r.irrelevant.split()[3] != r.subject for r in both)


def test_a_record_survives_json(known: Known) -> None:
    for record in records(known)[0]:
        assert ConflictRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    with pytest.raises(HeadsError, match=r"missing or unknown keys \['split', 'splits'"):
        data = records(known)[0][0].to_dict()
        ConflictRecord.from_dict({**{k: v for k, v in data.items() if k != "split"}, "splits": "dev"})


def test_what_leaks_is_left_out(known: Known) -> None:
    """An answer, or the word it begins with, that stands in the prompt could be copied instead of recalled."""
    facts = list(known.facts)
    facts[0] = replace(facts[0], cloze="the ash tree of Arle is")
    facts[1] = replace(facts[1], answer="tree bay", aliases=("bay",))
    made, left_out = records(known, facts)
    assert left_out == {"leak": 1} and "tree/Arle" not in [r.id for r in made]
    assert next(r for r in made if r.subject == "Bont").memory == "bay", "the spelling the model itself says"


def test_answers_that_share_their_first_token_are_no_pair(known: Known) -> None:
    facts = [replace(fact, answer=f"ash {fact.answer}") for fact in known.facts]
    made, left_out = records(known, facts)
    assert made == [] and left_out == {"no pair": 12}


def test_what_the_model_knows(known: Known) -> None:
    """Greedy: it says so. Ranked: it says something else, but of all answers of the relation this one comes first."""
    facts = list(known.facts)
    facts[2] = replace(facts[2], answer="dew")  # it says cob
    facts[3] = replace(facts[3], answer="cob")
    made = {r.subject: r.known for r in records(known, facts)[0]}
    assert made["Cade"] == made["Dorn"] == ""
    assert {made[s] for s in SUBJECTS[4:]} == {"greedy"}
    without = [f for f in known.facts if f.subject != "Cade"]
    without.append(replace(known.facts[2], answer="hay", aliases=("kip",)))
    assert {r.subject: r.known for r in records(known, without)[0]}["Cade"] in ("", "ranked")


def test_ranked_needs_a_first_token_of_its_own(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    import ckcontrol.heads.forward as forward

    monkeypatch.setattr(forward, "greedy", lambda model, tokenizer, batch, n: ["?"] * len(batch.ids))
    assert {r.known for r in records(known)[0]} == {"ranked"}
    shared = [*known.facts, replace(known.facts[0], subject="Bont", cloze="the tree of Bont is", answer="ash lot")]
    made = {r.id: r.known for r in records(known, shared)[0]}
    assert made["tree/Arle"] == "", "another answer begins with the same token: its rank proves nothing"


def test_facts_in_formats() -> None:
    fact = Fact(
        "symbol",
        "Hydrogen",
        "H",
        "The symbol of hydrogen is",
        context_template="The symbol of {subject} is {answer}.",
        question="What is the symbol of hydrogen?",
    )
    assert fact.surface == "hydrogen" and fact.id == "symbol/Hydrogen"
    assert fact.prompt("substitution", "Fe") == "The symbol of hydrogen is Fe. The symbol of hydrogen is"
    assert fact.prompt("qa", "Fe") == (
        "The symbol of hydrogen is Fe.\nQuestion: What is the symbol of hydrogen?\nAnswer:"
    )
    coherent = fact.prompt("coherent", "Fe")
    assert coherent.count("Fe") == 3 and coherent.endswith("\nAnswer: The symbol of hydrogen is")
    assert replace(fact, context_template="").states("Fe") == "The symbol of hydrogen is Fe."
    assert fact.spellings == ("H", "h")
    with pytest.raises(HeadsError, match="Did you mean 'coherent'"):
        fact.prompt("coherant", "Fe")


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("It is Washington, D.C. now", ["washington, d.c."], True),
        ("Bern", ["Berne"], False),
        ("Berne", ["Bern"], False),
        ("a (CFA) franc", ["CFA"], True),
        ("São Tomé.", ["São Tomé"], True),
        ("anything", [], False),
    ],
)
def test_whole_words_count(text: str, words: list[str], found: bool) -> None:
    assert contains(text, words) is found


def test_the_first_token_of_an_answer(tiny: Any) -> None:
    _, tokenizer = tiny("llama")
    prompt = "The capital of France is"
    assert tokenizer.decode(answer_token(tokenizer, prompt, "Paris")) == " "
    assert answer_token(tokenizer, "", "") == tokenizer(" ").input_ids[0]


def test_a_facts_file_is_checked_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    good = {"relation": "r", "subject": "S", "answer": "A", "cloze": "of s is", "aliases": ["B"], "source": "kept out"}
    file.write_text(json.dumps(good) + "\n\n" + json.dumps({**good, "relation": "q"}) + "\n", encoding="utf-8")
    facts = read_facts(file)
    assert [f.relation for f in facts] == ["r", "q"] and facts[0].aliases == ("B",) and facts[0].surface == "s"
    assert [f.relation for f in read_facts(file, ["q"])] == ["q"]
    with pytest.raises(HeadsError, match=r"no relation 'z'.*Known: q, r"):
        read_facts(file, ["z"])
    for line, words in (
        ("{", "line 2 is not JSON"),
        ("[]", "line 2: list is not a fact"),
        (json.dumps({**good, "answer": " "}), "line 2: field 'answer' is missing"),
        (json.dumps({**good, "cloze": "", "context_template": "{answer}"}), "line 2: field 'cloze' is missing"),
        (json.dumps({**good, "context_template": "no place"}), "line 2: context_template='no place' has no .answer"),
        (json.dumps({**good, "cloze": "of it is"}), "line 2: the cloze does not name 'S'"),
        (json.dumps({**good, "aliases": [["B"]]}), "line 2: aliases"),
        (json.dumps({**good, "question": 3}), "line 2: field 'question' is 3, not a text"),
    ):
        file.write_text(json.dumps(good) + "\n" + line + "\n", encoding="utf-8")
        with pytest.raises(HeadsError, match=words):
            read_facts(file)
    with pytest.raises(HeadsError, match="cannot be read"):
        read_facts(tmp_path / "none.jsonl")


@pytest.mark.parametrize("change", [{"answer": " "}, {"question": 3}, {"aliases": [["B"]]}, {"context_template": "x"}])
def test_both_doors_say_the_same_of_a_row(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "facts.jsonl"
    row = {"relation": "r", "subject": "S", "answer": "A", "cloze": "of s is"} | change
    file.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(HeadsError) as here:
        read_facts(file)
    with pytest.raises(EvalError) as there:
        StateFact.from_dict(row)
    assert str(here.value) == f"{file}, line 1: {there.value}"


def test_a_facts_file_may_be_any_table_and_both_doors_read_it_alike(tmp_path: Path) -> None:
    rows = [
        {"relation": "r", "subject": subject, "answer": answer, "cloze": f"of {subject} is", "aliases": "B\u2028C"}
        for subject, answer in (("S", "A"), ("T", "Ü"))
    ]
    table = "relation,subject,answer,cloze,aliases\n"
    table += "".join(",".join(row[key] for key in table.strip().split(",")) + "\n" for row in rows)
    texts = {
        "lines.jsonl": "\ufeff" + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "list.json": json.dumps(rows, indent=1),
        "table.csv": table,
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
        facts = read_facts(tmp_path / name)
        assert [(f.subject, f.answer, f.aliases) for f in facts] == [
            (s, a, ("B\u2028C",)) for s, a in (("S", "A"), ("T", "Ü"))
        ]
        stated, rejected, _ = load_facts(tmp_path / name)
        assert rejected == []
        assert [(f.id, f.told("X"), f.aliases) for f in stated] == [(f.id, f.states("X"), f.aliases) for f in facts]
    (tmp_path / "table.csv").write_text(table.replace("of T is", ""), encoding="utf-8")
    with pytest.raises(HeadsError, match=r"table.csv, row 2: context_template='' has no \{answer\}"):
        read_facts(tmp_path / "table.csv")
