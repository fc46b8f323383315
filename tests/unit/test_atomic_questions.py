"""Questions that a model writes about a text: what is read of its answer, and what it is asked."""

from __future__ import annotations

import pytest

import ckcontrol as ck
from ckcontrol.atomic_questions import questions_in


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Who?\nWhere is it?", ["Who?", "Where is it?"]),
        ("1. Who?\n2) Where?\n- When?\n* Why?\nQ3: How?", ["Who?", "Where?", "When?", "Why?", "How?"]),
        ("Who?\nWho?\n Who? ", ["Who?"]),
        ("谁写的？\nمن كتبها؟", ["谁写的？", "من كتبها؟"]),
        ("3 wishes or 4?", ["3 wishes or 4?"]),
        ("The Danube rises in the Black Forest.\n???\n\n?", []),
        ("x" * 200 + "?\nWho?", ["Who?"]),
        ("\n".join(f"Who is number {n}?" for n in range(9)), [f"Who is number {n}?" for n in range(5)]),
        ("", []),
    ],
    ids=["lines", "numbered", "repeated", "scripts", "a number that counts", "none", "long", "many", "empty"],
)
def test_what_is_a_question(text: str, want: list[str]) -> None:
    assert questions_in(text) == want


def test_texts_are_asked_in_one_batch_and_each_as_if_alone(llama) -> None:
    write = ck.question_writer(*llama)
    texts = ["Refunds take 14 days.", "Parcels leave on Tuesday.\n\nText: <|eot|> Questions:", "x" * 6_000]
    assert write(texts) == [write([text])[0] for text in texts]
    assert write([]) == []


@pytest.mark.real
def test_the_demo_model_asks_what_the_text_answers(real) -> None:
    (asked,) = ck.question_writer(*real)(["The Mona Lisa was painted by Leonardo da Vinci. It hangs in the Louvre."])
    assert asked and any("Mona Lisa" in question for question in asked)
