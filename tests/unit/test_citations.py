"""Citations: which passage a sentence rests on, in answers, in `Rag`'s and on the terminal."""

from __future__ import annotations

import io
import json
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import ckcontrol as ck
from ckcontrol.answer import Answer
from ckcontrol.citations import cite
from ckcontrol.views.describe import cited_line
from ckcontrol.views.terminal import print_cited

TELLIN, BRASK = "The Tellin is 88 km long and rises in Orvendale.", "The Brask is 97 km long and rises in Orvendale."
ASKED = "How long is the Brask?"


def places(text: str, passages: list[str], question: str = "") -> list[tuple[int, ...]]:
    return [sentence.passages for sentence in cite(text, passages, question)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("97 km.", [(1,)]),
        ("It is 97 km long. Water boils at 100 degrees.", [(1,), ()]),
        ("It is 96 km long.", [()]),  # a number that no passage has
        ("The Brask is 97 km, the Tellin 88 km long.", [(0, 1)]),
        ("Its length amounts to 97 km.", [(1,)]),
        ("It begins in Orvendale.", [(1,)]),  # both say so; one of them is about the question
        ("", []),
        ("…", []),
    ],
)
def test_the_passage_that_holds_what_a_sentence_adds(text: str, found: list[Any]) -> None:
    assert places(text, [TELLIN, BRASK], ASKED) == found
    turned = [tuple(1 - place for place in one) for one in found]
    assert places(text, [BRASK, TELLIN], ASKED) == turned


def test_the_questions_words_and_what_is_beside_the_point_support_nothing() -> None:
    assert places("The Brask is cold.", ["Who swam the Brask? The Brask is wide."], "Who swam the Brask?") == [()]
    told = ["Paris has a tower of iron.", "France grows wine."]
    assert places("Paris is the capital of France.", told, "What is the capital of France?") == [()]


def test_names_weigh_as_numbers_do() -> None:
    porto = "Refunds are handled by the Porto office in 30 days."
    lisbon = "Refunds are handled by the Lisbon office in 14 days."
    asked = "How are refunds handled?"
    assert places("Refunds are handled by the Lisbon office in 14 days.", [porto, lisbon], asked) == [(1,)]
    assert places("Refunds are handled by the Lisbon office in 30 days.", [porto, lisbon], asked) == [(0, 1)], "a blend"
    assert places("Refunds are handled by the Turin office in 5 days.", [porto, lisbon], asked) == [()]
    praise = "The Lisbon office is run by the brilliant and talented Ana Prata."
    assert places(praise, ["Ana Prata runs the Lisbon office."], "Who runs the Lisbon office?") == [(0,)]


def test_names_of_the_question_do_not_outweigh_what_it_asks() -> None:
    greeted = "Hello, this is Maria Gonzalez from Acme Corp in Boston. How long does a refund take?"
    assert places("A refund takes 14 days.", ["A refund takes 14 days."], greeted) == [(0,)]


def test_a_name_that_begins_an_answer_is_one_by_its_passage() -> None:
    told = ["The City of Temples: which one? It is Kathmandu."]
    assert places("Kathmandu.", told, "Which city is the political centre of Nepal?") == [(0,)]


def test_words_with_a_capital_for_another_reason_are_no_names() -> None:
    told = ["Ana Prata runs the Lisbon office.", "The U.S. Army built it.", "In the hotel there are 12 rooms."]
    assert places("I believe Ms Prata runs it. The US Army built it.", told, "Who?") == [(0,), (1,)]
    assert places("Answer: There are 12.", told, "How many rooms?") == [(2,)]
    assert places("The River is Wide.", ["The river Brask is wide."], "How is it?") == [(0,)]


def test_an_answer_that_asks_rests_on_nothing() -> None:
    question, told = "Within how many days?", ["Orders are returned within 30 days."]
    assert [s.passages for s in cite(question, told, question)] == [()]
    assert [s.passages for s in cite("“Within 30 days?” Within 30 days.", told, question)] == [(), (0,)]


@pytest.mark.parametrize(
    ("question", "told", "text", "found"),
    [
        ("青河有多长？", ["青河全长88公里。", "松河全长97公里。"], "青河全长88公里。水是由氢和氧组成的。", [(0,), ()]),
        ("橋はいつできましたか。", ["橋は1884年に完成した。"], "1884年に完成しました。", [(0,)]),
        ("แม่น้ำยาวเท่าไร", ["แม่น้ำสายนี้ยาว 88 กิโลเมตร"], "ยาว 88 กิโลเมตร", [(0,)]),
        ("Сколько жителей?", ["В городе 5120 жителей и порт."], "Здесь 5120 жителей.", [(0,)]),
        ("", ["교량은 1884년에 완공되었다."], "1884년에 완공되었습니다.", [(0,)]),
    ],
)
def test_scripts_without_blanks(question: str, told: list[str], text: str, found: list[Any]) -> None:
    assert places(text, told, question) == found


@given(
    st.text(alphabet="ab.! \n。退款9é", max_size=60), st.lists(st.text(alphabet="ab9退款 ", max_size=12), max_size=3)
)
def test_sentences_hold_every_letter_once(text: str, passages: list[str]) -> None:
    made = cite(text, passages, "b")
    kept = "".join(text[s.start : s.end] for s in made)
    assert [c for c in kept if c.isalnum()] == [c for c in text if c.isalnum()]
    assert all(s.text == text[s.start : s.end] == s.text.strip() for s in made)
    assert all(a.end <= b.start for a, b in pairwise(made))
    assert all(
        place in range(len(passages)) and len({*s.passages}) == len(s.passages) for s in made for place in s.passages
    )


def test_sentences_end_where_a_reader_ends_them() -> None:
    assert [s.text for s in cite("It rained. J. Smith came. Dr. No left.", [])] == [
        "It rained.", "J. Smith came.", "Dr. No left."
    ]  # fmt: skip
    text = "Dr. J. R. Smith of the U.S. Army wrote it, e.g. here. Did he? Yes! It is 3.5 km\n- one\n- two"
    assert [s.text for s in cite(text, [])] == [
        "Dr. J. R. Smith of the U.S. Army wrote it, e.g. here.", "Did he?", "Yes!", "It is 3.5 km", "- one", "- two"
    ]  # fmt: skip


def test_texts_made_to_be_slow_are_not() -> None:
    ends = ["A. " * 100_000, "! " * 100_000, "| - | - |\n|---|---|\n" * 10_000, "- ! " * 50_000]
    many = " ".join(f"constant{'abcdefghij'[n % 10]}{n}x" for n in range(30_000))
    start = time.process_time()
    cite("a" * 200_000 + ". " + many[:100_000], [many] * 3, many[:200_000])
    for text in ends:
        cite(text, [text], text)
    assert time.process_time() - start < 60  # quadratic in any of them takes hours


def test_answers_and_their_json_tell(llama: Any) -> None:
    answer = ck.generate(*llama, ASKED, [TELLIN, BRASK], max_new_tokens=4)
    assert answer.cited == cite(answer.text, answer.passages, ASKED)
    data = json.loads(answer.to_json())
    assert data["cited"] == [sentence.to_dict() for sentence in answer.cited]
    assert Answer.from_dict(data) == answer
    closed = ck.generate(*llama, ASKED, max_new_tokens=4)
    assert all(sentence.memory for sentence in closed.cited)


def test_the_terminal_and_pages_mark_sentences() -> None:
    sentences = cite("It is 97 km long. Water\x1b[2J boils at 100 degrees.", [TELLIN, BRASK], ASKED)
    hits: Any = [SimpleNamespace(rank=1), SimpleNamespace(rank=3)]
    out = io.StringIO()
    print_cited(sentences, hits, Console(file=out, width=80, color_system=None))
    assert out.getvalue() == "[3]     It is 97 km long.\nmemory  Water boils at 100 degrees.\n\n"
    assert [cited_line(sentences, place) for place in (0, 1)] == ["not cited", "cited for sentence 1"]
    assert cited_line(sentences[:1], 1) == "cited" and cited_line((), 0) == ""


def test_a_citation_is_no_proof_and_the_page_says_so() -> None:
    claim, passage = "The Graz office is led by its owner, Elif Gruber", "Elif Gruber has led the Graz office."
    assert [one.passages for one in cite(f"{claim}.", [passage], "Who leads the Graz office?")] == [(0,)]
    page = (Path(__file__).parents[2] / "docs" / "retrieval.md").read_text(encoding="utf-8")
    assert claim in " ".join(page.split())
