"""Overrides in `Rag`: they outrank what is found where they are asked for, and change nothing elsewhere."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import ckcontrol as ck
from ckcontrol.control import overriding
from ckcontrol.errors import RetrievalError

pytest.importorskip("faiss")
from ckcontrol.retrieval import Index, Overrides, Passage

from .test_rag import QUESTION, TEXTS, Words

STATEMENT = "Who is the mayor of Orvendale? Ada Finch"
FACT = {"id": "moved", "subject": "Orvendale", "question": "Who is the mayor of Orvendale?", "answer": "Ada Finch"}
STEERS = {**{name: value for name, value in FACT.items() if name != "answer"}, "statement": STATEMENT}  # writes nothing
ASKED = "who is the mayor of ORVENDALE"
OTHERS = [QUESTION, "What does the library keep?", "How old is Orvendale?"]


@pytest.fixture(scope="module")
def index() -> Index:
    passages = [Passage(name, text, f"{name}.md") for name, text in TEXTS.items()]
    return Index.build(passages, Words(), overrides=[STEERS])


@pytest.fixture(scope="module")
def rag(llama: Any, index: Index) -> ck.Rag:
    return ck.Rag(llama, index, k=2, max_new_tokens=6)


def test_an_override_stands_in_place_of_what_was_found(rag: ck.Rag, llama: Any) -> None:
    answer = rag.ask(ASKED, control=ck.Control(alpha=1.0), where={"id": ["bridge", "moved"]})
    assert answer.override is not None and answer.override.id == "moved"
    wanted = ck.generate(*llama, ASKED, [STATEMENT], control=overriding(), max_new_tokens=6)
    assert answer.answer == wanted and not answer.written_out
    assert [hit.passage.text for hit in answer.hits] == [STATEMENT] and answer.hits[0].score == 1
    assert "'moved'" in (answer.notice or "")
    data = json.loads(answer.to_json())
    assert data["override"]["id"] == "moved" and data["hits"][0]["prompted"]


def test_every_other_question_is_answered_as_without(rag: ck.Rag, llama: Any, index: Index) -> None:
    plain = ck.Rag(llama, index, k=2, max_new_tokens=6, overrides=())
    for control in (ck.Control("off"), ck.Control("cad", 0.3), ck.Control(alpha=0.2)):
        for question in OTHERS:
            one, other = rag.ask(question, control=control), plain.ask(question, control=control)
            assert one == other and one.override is None
    mixed = rag.ask([OTHERS[0], ASKED, OTHERS[1]])
    assert [answer.override and answer.override.id for answer in mixed] == [None, "moved", None]
    without = plain.ask([OTHERS[0], ASKED, OTHERS[1]])
    assert mixed[0] == without[0] and mixed[2] == without[2]
    assert mixed[1].answer == rag.ask(ASKED).answer
    assert plain.ask(ASKED).override is None


def test_a_filter_holds_for_overrides(llama: Any) -> None:
    facts = [
        {**FACT, "metadata": {"tenant": "a", "year": 2026}},
        {**FACT, "id": "other", "answer": "Bo Lind", "metadata": {"tenant": "b"}},
    ]
    passages = [Passage(name, text, metadata={"tenant": "a"}) for name, text in TEXTS.items()]
    with Index.build(passages, Words(), overrides=facts) as index:
        rag = ck.Rag(llama, index, k=2, max_new_tokens=6)
        for where, wanted in (
            ({"tenant": "a"}, "moved"),
            ({"tenant": "b"}, "other"),
            ({"tenant": "c"}, None),
            ({"tenant": ["a", "c"], "year": {"$gte": 2026}}, "moved"),
            ({"year": {"$lt": 2026}}, None),
            ({"id": "other", "source": "override"}, "other"),
        ):
            for asked in (ASKED, "Tell me, who is the mayor of Orvendale?"):
                found = index.overrides.find([asked], where)[0]  # type: ignore[union-attr]
                assert (found and found[0].id) == wanted
            answer = rag.ask(ASKED, where=where)
            assert (answer.override and answer.override.id) == wanted
        assert ck.Rag(llama, index, where={"tenant": "c"}, max_new_tokens=6).ask(ASKED).override is None
        with pytest.raises(RetrievalError, match="operator"):
            index.overrides.find([ASKED], {"tenant": {"$near": 1}})  # type: ignore[union-attr]


def test_an_override_that_changes_nothing_is_silent(llama: Any) -> None:
    with Index.build([Passage("a", STATEMENT)], Words(), overrides=[STEERS]) as index:
        rag = ck.Rag(llama, index, max_new_tokens=6, control=overriding())
        answer = rag.ask(ASKED)
        assert answer.override is None and answer.hits[0].passage.id == "a"


def test_what_the_model_does_not_say_is_written_out(llama: Any, index: Index) -> None:
    rag = ck.Rag(llama, index, k=2, overrides=[FACT], max_new_tokens=12)
    answer = rag.ask(ASKED)
    steered = ck.generate(*llama, ASKED, [STATEMENT], control=overriding(), max_new_tokens=12)
    assert "Ada Finch" not in steered.text  # the weights are random
    assert (answer.text, answer.answer.finish_reason, answer.written_out) == ("Ada Finch", "stop", True)
    assert len(answer.answer.tokens) == len(answer.answer.token_ids)
    assert "In the words of the override 'moved'" in (answer.notice or "")
    assert json.loads(answer.to_json())["written_out"]
    for question in OTHERS:
        assert rag.ask(question) == ck.Rag(llama, index, k=2, overrides=(), max_new_tokens=12).ask(question)
    mixed = rag.ask([OTHERS[0], ASKED, OTHERS[1]])
    assert [one.written_out for one in mixed] == [False, True, False] and mixed[1].text == "Ada Finch"
    # one that the model says stands as it said it
    said = [{**FACT, "answer": steered.text.split()[0], "statement": STATEMENT}]
    kept = ck.Rag(llama, index, k=2, overrides=said, max_new_tokens=12).ask(ASKED)
    assert kept.answer == steered and not kept.written_out
    # what may be written is somebody else's to say
    formed = rag.ask(ASKED, processors=[lambda ids, scores: scores])
    assert formed.answer.token_ids == steered.token_ids and not formed.written_out
    assert rag.ask(ASKED, max_new_tokens=1).answer.token_ids == answer.answer.token_ids[:1]


@pytest.mark.parametrize("fact", [FACT, STEERS])
def test_the_stream_is_the_answer_that_is_given(llama: Any, index: Index, fact: dict[str, Any]) -> None:
    class Heard:
        def __init__(self) -> None:
            self.ids: list[int] = []
            self.ends = self.puts = 0

        def put(self, value: Any) -> None:
            self.puts += 1
            if self.puts > 1:  # the first is the prompt
                self.ids += value.reshape(-1).tolist()

        def end(self) -> None:
            self.ends += 1

    rag = ck.Rag(llama, index, k=2, overrides=[fact], max_new_tokens=6)
    for question in (ASKED, OTHERS[0]):
        heard = Heard()
        answer = rag.ask(question, streamer=heard)
        assert heard.ids == list(answer.answer.token_ids) and heard.ends == 1
        assert answer.written_out == (fact is FACT and question == ASKED)


def test_a_conversation_is_asked_by_its_last_turn(rag: ck.Rag) -> None:
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
    asked = rag.ask(messages=[*turns, {"role": "user", "content": ASKED}])
    assert asked.override is not None
    later = [*turns, {"role": "user", "content": ASKED}, turns[1], {"role": "user", "content": OTHERS[0]}]
    assert rag.ask(messages=later, query=ASKED).override is None


def test_overrides_of_ones_own_outrank_those_of_the_index(llama: Any, index: Index, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps({**FACT, "id": "mine"}))
    mine = ck.Rag(llama, index, max_new_tokens=6, overrides=path).ask(ASKED)
    assert mine.override is not None and mine.override.id == "mine"
    store = Overrides([{**FACT, "id": "store"}], Words())
    answer = ck.Rag(llama, index, max_new_tokens=6, overrides=store).ask(ASKED)
    assert answer.override is not None and answer.override.id == "store"
    with pytest.raises(RetrievalError, match="neither answer"):
        ck.Rag(llama, index, overrides=[{"prompt": "a"}])

    class Bare:
        def search(self, queries: list[str], k: int = 5, **how: Any) -> list[list[Any]]:
            return [[] for _ in queries]

    with pytest.raises(RetrievalError, match="needs an embedder"):
        ck.Rag(llama, Bare(), overrides=[FACT])
    answer = ck.Rag(llama, Bare(), overrides=store, max_new_tokens=6).ask(ASKED)
    assert answer.override is not None and answer.override.id == "store"


def test_the_page_and_the_terminal_say_so(rag: ck.Rag) -> None:
    answer = rag.ask(ASKED)
    assert "moved" in answer.to_page()
    from rich.console import Console

    from ckcontrol.views.terminal import print_hits

    out = Console(file=io.StringIO(), width=200)
    print_hits(answer.prompted, ASKED, out, notice=answer.notice)
    assert "outranks what was found" in out.file.getvalue()  # type: ignore[attr-defined]
