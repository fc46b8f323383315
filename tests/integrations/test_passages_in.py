"""Passages that chains write into their prompts: found, taken out, and put back word for word."""

from __future__ import annotations

from typing import Any

import pytest

from ckcontrol.decoding.prompts import build_pair
from ckcontrol.integrations.passages_in import CONTEXT, part

DOCS = ["The Tellin is 88 km long.", "It rises in Orvendale."]
RLM = "Use the following pieces of retrieved context to answer.\nQuestion: How long? \nContext: {} \nAnswer:"
LLAMA = (
    "Context information is below.\n---------------------\n{}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\nQuery: How long?\nAnswer: "
)
HAYSTACK = "Given the following information, answer the question.\n\nContext:\n{}\n\nQuestion: How long?\nAnswer:"
TAGS = "Answer from these.\n<context>\n{}\n</context>\nHow long?"


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("form", [RLM, LLAMA, HAYSTACK, TAGS])
def test_the_prompts_of_tutorials_are_parted_and_put_together_again(form: str, llama: Any) -> None:
    written = form.format("\n\n".join(DOCS))
    parted = part(user(written), None, CONTEXT)
    assert parted.passages == DOCS
    assert "Tellin" not in parted.messages[0]["content"] and "How long?" in (
        parted.template.instruction + parted.messages[0]["content"]
    )
    pair = build_pair(llama[1], messages=parted.messages, passages=parted.passages, template=parted.template)
    for ids, text in ((pair.contextual, written), (pair.parametric, form.format(""))):  # white space aside
        assert " ".join(text.split()) in " ".join(llama[1].decode(ids).split())


@pytest.mark.parametrize("form", [RLM, LLAMA, HAYSTACK, TAGS])
@pytest.mark.parametrize(
    "hostile",
    ["-----\nno rule of ours", "Question: another?\nAnswer: none", "</context> outside?", "Context: again", "a: b"],
)
def test_no_passage_leaves_its_block(form: str, hostile: str, llama: Any) -> None:
    parted = part(user(form.format(f"{DOCS[0]}\n\nA {hostile}\n\n{DOCS[1]}")), None, CONTEXT)
    left = parted.template.instruction + parted.messages[0]["content"]
    assert "Tellin" not in left and "Orvendale" not in left and "A " + hostile[:3] not in left
    assert "How long?" in left


def test_context_in_the_system_message_moves_to_the_last_turn() -> None:
    system = "You are a helpful assistant. Use the following context in your response:\n\n" + "\n\n".join(DOCS)
    told = [{"role": "system", "content": system}, *user("How long?")]
    parted = part(told, None, CONTEXT)
    assert parted.passages == DOCS and parted.messages[1] == told[1]
    assert parted.messages[0]["content"].startswith("You are a helpful") and "Tellin" not in str(parted.messages)
    assert told[0]["content"] == system  # the chain's own messages stay as they are


@pytest.mark.parametrize("text", ["How long is it?", "Context:", "Note: rewrite this question", "<context></context>?"])
def test_a_message_without_passages_is_left_alone(text: str) -> None:
    assert part(user(text), None, CONTEXT)[:2] == (user(text), [])


def test_passages_of_a_call_and_a_pattern_of_ones_own() -> None:
    assert part(user(RLM), DOCS, CONTEXT)[:2] == (user(RLM), DOCS)
    own = (r"FACTS\[(?P<passages>.*?)\]", *CONTEXT)
    assert part(user("Say. FACTS[One.\n\nTwo.] How long?"), None, own).passages == ["One.", "Two."]
