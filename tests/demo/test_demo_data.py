"""The demo's corpus and questions: consistent with each other, and retrievable."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest

from ckcontrol.eval import mentions


def read(name: str) -> list[dict[str, Any]]:
    lines = files("ckcontrol.demo").joinpath(name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


CORPUS = read("corpus.jsonl")
QUESTIONS = read("questions.jsonl")
BY_ID = {passage["id"]: passage for passage in CORPUS}


def test_the_corpus_is_well_formed() -> None:
    assert len(BY_ID) == len({passage["text"] for passage in CORPUS}) == len(CORPUS) == 40
    assert sum(passage["false"] for passage in CORPUS) == 13
    for passage in CORPUS:
        assert set(passage) == {"id", "title", "text", "false", "truth"}
        assert passage["false"] == (passage["truth"] is not None)
        assert passage["text"].endswith(".")
        if passage["false"]:
            assert not mentions(passage["text"], passage["truth"]), passage["id"]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["passage_id"])
def test_a_question_fits_its_passage(question: dict[str, Any]) -> None:
    passage = BY_ID[question["passage_id"]]
    truths = [question["truth"], *question["truth_aliases"]]
    claims = [question["claim"], *question["claim_aliases"]]
    assert mentions(passage["text"], question["claim"])
    assert not mentions(question["question"], truths + claims), "the question gives it away"
    if passage["false"]:
        assert passage["truth"] == question["truth"]
        assert not mentions(passage["title"] + " " + passage["text"], truths)
        for truth in truths:
            assert not any(mentions(claim, truth) or mentions(truth, claim) for claim in claims)
    else:
        assert claims == truths


def test_the_mix() -> None:
    false = [question for question in QUESTIONS if BY_ID[question["passage_id"]]["false"]]
    fiction = [question for question in QUESTIONS if "Orvendale" in question["question"]]
    assert (len(QUESTIONS), len(false), len(fiction)) == (12, 8, 2)
    assert len({question["passage_id"] for question in QUESTIONS}) == 12


@pytest.mark.real
def test_each_question_retrieves_its_passage_first() -> None:
    from ckcontrol.errors import ModelUnavailable
    from ckcontrol.models.load import embedder_path
    from ckcontrol.retrieval import Embedder, Index, Passage

    try:
        embedder = Embedder(embedder_path(), device="cpu")
    except ModelUnavailable as error:
        pytest.skip(f"demo embedder unavailable: {error}")
    index = Index.build([Passage(p["id"], p["text"], p["title"]) for p in CORPUS], embedder)
    hits = index.search([question["question"] for question in QUESTIONS], k=1)
    assert [hit[0].passage.id for hit in hits] == [question["passage_id"] for question in QUESTIONS]


@pytest.mark.real
def test_the_model_knows_what_the_false_passages_deny(real: Any) -> None:
    """Without passages: the eight truths and the two true facts, but not the fiction."""
    model, tokenizer = real
    ask = "Answer the question in a few words.\n\nQuestion: "
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": ask + q["question"]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for q in QUESTIONS
    ]
    ids = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
    new = model.generate(**ids, max_new_tokens=16, do_sample=False)[:, ids["input_ids"].shape[1] :]
    known = {
        q["passage_id"]
        for q, row in zip(QUESTIONS, new, strict=True)
        if mentions(tokenizer.decode(row), [q["truth"], *q["truth_aliases"]])
    }
    assert known == {q["passage_id"] for q in QUESTIONS if "Orvendale" not in q["question"]}
