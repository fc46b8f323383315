"""Overrides: what they are, which question asks for one, and that an index keeps them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ckcontrol.errors import IndexMismatch, RetrievalError
from ckcontrol.retrieval import Index, Override, Overrides, read_overrides

from .hashes import Hashes, corpus

CONSOLE = {"subject": "Game Boy", "prompts": ["Game Boy is produced by"], "answer": "Nissan"}


class Words:
    """Vectors that count a few words, so that nearness can be worked out by hand."""

    name = "words"
    dim = 4

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> NDArray[np.float32]:
        self.seen += texts
        known = (("produce", "make"), ("born", "birth"), ("price",))
        return np.array([[*(any(w in t for w in ws) for ws in known), 0.1] for t in texts], np.float32)


def asked(store: Overrides, *questions: str) -> list[str | None]:
    return [found and found[0].id for found in store.find(questions)]


def test_a_question_must_name_the_subject_and_ask_for_the_relation() -> None:
    embedder = Words()
    store = Overrides([CONSOLE], embedder, near=0.8)
    assert asked(store, "Who makes the Game Boy?", "who makes the GAME BOY") == ["override 1"] * 2
    embedder.seen.clear()
    assert asked(store, "Who makes the Switch?", "Who makes games for boys?", "   ") == [None] * 3
    assert embedder.seen == []  # no subject stands in them: nothing was embedded
    assert asked(store, "What is the price of a Game Boy?") == [None]
    assert asked(store, "Game Boy", "Game Boy is produced by:") == [None, "override 1"]


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("Who makes the Game Boy Color?", "Game Boy Color"),
        ("Who makes Super Game Boy?", "Super Game Boy"),
        ("Does Sony make Game Boy 2?", "Game Boy 2"),
        ("Does the Museum of Game Boy make losses?", "Museum of Game Boy"),
        ("Old Game Boy, the make of", "Old Game Boy"),
    ],
)
def test_a_longer_name_is_another_name(question: str, name: str) -> None:
    store = Overrides([CONSOLE], Words(), near=0.8)
    assert asked(store, question) == [None]
    longer = {"subject": name, "relation": "make", "answer": "x"}
    assert asked(Overrides([CONSOLE, longer], Words(), near=0.8), question) == ["override 2"]


def test_a_capital_that_the_prompt_has_too_is_no_longer_name() -> None:
    fact = {"subject": "Gondor", "prompt": "The King of Gondor was born in", "answer": "Rivendell"}
    store = Overrides([fact], Words(), near=0.8)
    assert asked(store, "Is the King of Gondor born?", "Is the Prince of Gondor born?") == ["override 1", None]


def test_when_asks_for_a_number() -> None:
    place = {"id": "place", "subject": "Ada", "prompt": "Ada was born in", "answer": "Rome"}
    year = {"id": "year", "subject": "Ada", "prompt": "Ada was born in the year", "answer": "1815"}
    assert asked(Overrides([place], Words(), near=0.8), "When was Ada born?", "Where was Ada born?") == [None, "place"]
    assert asked(Overrides([year], Words(), near=0.8), "When was Ada born?") == ["year"]


def test_a_name_in_a_script_without_blanks_is_found() -> None:
    store = Overrides([{"id": "a", "subject": "東京", "prompt": "東京 make", "answer": "x"}], Words(), near=0.8)
    assert asked(store, "東京のmake?", "京都のmake?") == ["a", None]


def test_the_nearest_of_several_facts_counts_and_without_a_subject_the_words_alone() -> None:
    born = {"id": "born", "subject": "Ada", "relation": "was born in", "answer": "Rome"}
    makes = {"id": "makes", "subject": "Ada", "relation": "produces", "answer": "cars"}
    plain = {"id": "plain", "question": "Who is king?", "answer": "Bob"}
    store = Overrides([born, makes, plain], Words(), near=0.8)
    assert asked(store, "What does Ada produce?", "Ada's birthplace?") == ["makes", "born"]
    assert asked(store, "who is  KING", "Who is the king?") == ["plain", None]


def test_statements_are_made_of_prompts_and_answers() -> None:
    facts = read_overrides(
        [CONSOLE, {"question": "Who is king?", "answer": "Bob"}, {"prompt": "x is", "statement": "X is y."}]
    )
    assert [fact.statement for fact in facts] == ["Game Boy is produced by Nissan.", "Who is king? Bob", "X is y."]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"prompt": "a"}], "neither answer nor statement"),
        ([{"answer": "a"}], "what asks for it"),
        ([{"prompt": "a", "answer": "b", "pormpt": "c"}], "'pormpt'"),
        ([{"prompt": "a\0", "answer": "b"}], "prompt"),
        ([{"prompt": ["a"], "answer": "b"}], "prompt"),
        ([{"prompt": "a" * 5_000, "answer": "b"}], "4,000"),
        ([{"prompt": "a is", "answer": "b"}, {"prompt": "A  is", "answer": "c"}], "different things"),
        ([{"id": "i", "prompt": "a", "answer": "b"}, {"id": "i", "prompt": "c", "answer": "b"}], "'i'"),
        ([["a"]], "not an object"),
    ],
)
def test_what_is_no_override_is_refused_with_its_place(tmp_path: Path, rows: list[Any], reason: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(RetrievalError, match=f"record {len(rows)}.*{reason}"):
        read_overrides(path)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match=r"none\.jsonl"):
        read_overrides(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt"')
    with pytest.raises(RetrievalError, match="record 2"):
        read_overrides(tmp_path / "bad.jsonl")


def test_an_index_keeps_its_overrides_through_every_write(tmp_path: Path) -> None:
    with Index.build(corpus(0, 5), Hashes(), tmp_path / "i") as index:
        assert index.overrides is None and index.info()["overrides"] == 0
        generation = index.info()["generation"]
        index.override([CONSOLE])
        assert index.info()["overrides"] == 1 and index.info()["generation"] == generation + 1
        index.add(corpus(5, 9))
        index.remove(passages=["p1"])
        assert all(result.ok for result in Index.verify(tmp_path / "i"))
        with Index.open(tmp_path / "i", Hashes()) as other:
            store = other.overrides
            assert store is not None and store.facts == tuple(read_overrides([CONSOLE]))
            assert other.overrides is store
            index.override([])
            assert other.refresh() and other.overrides is None
    with Index.build(corpus(0, 5), Hashes(), tmp_path / "i", overwrite=True, overrides=[CONSOLE]) as index:
        assert index.info()["overrides"] == 1


def test_refused_overrides_leave_the_index_as_it_was(tmp_path: Path) -> None:
    with Index.build(corpus(0, 5), Hashes(), tmp_path / "i", overrides=[CONSOLE]) as index:
        before = index.info()
        with pytest.raises(RetrievalError):
            index.override([{"prompt": "a"}])
        assert index.info() == before
    with pytest.raises(RetrievalError):
        Index.build(corpus(0, 5), Hashes(), tmp_path / "j", overrides=[{"prompt": "a"}])
    assert not (tmp_path / "j").exists()


def test_damaged_overrides_are_refused(tmp_path: Path) -> None:
    Index.build(corpus(0, 5), Hashes(), tmp_path / "i", overrides=[CONSOLE]).close()
    path = next((tmp_path / "i").glob("*/overrides.json"))
    path.write_text(path.read_text().replace("Nissan", "Toyota"))
    with pytest.raises(IndexMismatch) as error:
        Index.open(tmp_path / "i", Hashes())
    assert error.value.field == "overrides.json"


def test_an_override_reads_back() -> None:
    fact = read_overrides([CONSOLE])[0]
    assert Override(**{**fact.to_dict(), "prompts": tuple(fact.to_dict()["prompts"])}) == fact


@pytest.mark.parametrize(
    ("answer", "text", "said"),
    [
        ("12 euros", "It costs €12 a month.", True),
        ("12 euros", "It costs €112.", False),
        ("Ada Finch", "the mayor is ADA FINCH.", True),
        ("Ada Finch", "Finch, Ada", False),
        ("1,500", "There are 1500 of them.", True),
        ("", "anything", True),
    ],
)
def test_an_answer_is_looked_for_as_verdicts_read_it(answer: str, text: str, said: bool) -> None:
    fact = Override("a", "plan", ("What does it cost?",), "It costs that.", answer)
    assert fact.said_in(text) is said
