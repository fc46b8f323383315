"""Rag: retrieval and steering in one call, on the tiny model with an index of hashed words."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import ckcontrol as ck
from ckcontrol.errors import CKError, ControlError, PromptError, PromptTooLong, RetrievalError, TokenizerMismatch
from ckcontrol.rag import both
from ckcontrol.views.describe import excerpt
from ckcontrol.views.terminal import print_hits

pytest.importorskip("faiss")
from ckcontrol.retrieval import Hit, Index, Passage

TEXTS = {
    "bridge": "The stone bridge of Orvendale was finished in 1884.",
    "ferry": "The ferry of Orvendale crosses the river every twenty minutes.",
    "library": "The town library keeps three thousand maps.",
}
YEARS = {"bridge": 1884, "ferry": 1990, "library": 2001}
QUESTION = "When was the stone bridge finished?"


class Words:
    """An encoder without a model: hashed words."""

    dim = 128
    name = "words"

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> Any:
        vectors = np.full((len(texts), self.dim), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().replace("?", "").replace(".", "").split():
                vectors[row, sum(word.encode()) * 7 % self.dim] += len(word)
        return vectors


@pytest.fixture(scope="module")
def index() -> Index:
    return Index.build([Passage(n, t, f"{n}.md", {"year": YEARS[n], "lang": "en"}) for n, t in TEXTS.items()], Words())


@pytest.fixture(scope="module")
def rag(llama: Any, index: Index) -> ck.Rag:
    return ck.Rag(llama, index, k=2, max_new_tokens=6)


class Found:
    """Anything with a search will do; this one finds what it was told to and remembers how it was asked."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = texts, {}

    def search(self, queries: list[str], k: int = 5, **how: Any) -> list[list[Hit]]:
        self.asked = {"k": k, **how}
        hits = [Hit(Passage(str(i), text), 1 / i, i) for i, text in enumerate(self.texts[:k], 1)]
        return [hits for _ in queries]


# --- what an answer is made of --------------------------------------------------------------------


def test_an_answer_is_generate_over_what_search_found(rag: ck.Rag, llama: Any, index: Index) -> None:
    control = ck.Control("cad", 0.2)
    answer = rag.ask(QUESTION, control=control)
    hits = index.search(QUESTION, 2)
    assert hits[0].passage.id == "bridge"
    assert list(answer.hits) == list(answer.prompted) == hits
    passages = [hit.passage.text for hit in hits]
    assert answer.answer == ck.generate(*llama, QUESTION, passages, control=control, max_new_tokens=6)
    assert answer.text == answer.answer.text and answer.answer.tokens
    assert answer.notice is None and not answer.closed_book


def test_a_batch_equals_singles_and_may_have_its_own_controls(rag: ck.Rag) -> None:
    questions = [QUESTION, "How often does the ferry cross?", "What does the library keep?"]
    controls = [ck.Control(alpha=alpha) for alpha in (0.0, 0.5, 1.0)]
    batch = rag.ask(questions, control=controls)
    singles = [rag.ask(q, control=c) for q, c in zip(questions, controls, strict=True)]
    assert [a.answer.token_ids for a in batch] == [a.answer.token_ids for a in singles]
    assert [a.hits for a in batch] == [a.hits for a in singles]
    assert [a.answer.control for a in batch] == controls
    assert isinstance(rag.ask([QUESTION]), list) and isinstance(rag.ask(QUESTION), ck.RagAnswer)


def test_options_of_a_call_override_those_of_the_object(rag: ck.Rag) -> None:
    assert len(rag.ask(QUESTION, max_new_tokens=2, trace=False).answer.token_ids) == 2
    assert len(rag.ask(QUESTION, k=3).hits) == 3 and len(rag.ask(QUESTION).hits) == 2
    assert [hit.passage.id for hit in rag.ask("ferry", mode="bm25").hits] == ["ferry"]


def test_a_streamer_is_handed_on(rag: ck.Rag) -> None:
    class Counter:
        def __init__(self) -> None:
            self.puts, self.ends = 0, 0

        def put(self, value: Any) -> None:
            self.puts += 1

        def end(self) -> None:
            self.ends += 1

    counter = Counter()
    rag.ask(QUESTION, streamer=counter)
    assert counter.ends == 1 and counter.puts > 1
    for question, more in (("", {}), (QUESTION, {"k": 0}), (QUESTION, {"control": "dial"})):
        refused = Counter()
        with pytest.raises(CKError):
            rag.ask(question, streamer=refused, **more)
        assert (refused.puts, refused.ends) == (0, 1)


# --- what is not as asked for is said -------------------------------------------------------------


def test_nothing_found_is_answered_closed_book_and_said(rag: ck.Rag, llama: Any) -> None:
    answer = rag.ask(QUESTION, where={"year": 3000}, control=ck.Control(alpha=0.0))
    assert answer.hits == answer.prompted == () and answer.closed_book
    assert "closed book" in str(answer.notice)
    assert answer.text == ck.generate(*llama, QUESTION, max_new_tokens=6).text
    mixed = rag.ask([QUESTION, "zebra"], mode="bm25")
    assert [a.closed_book for a in mixed] == [False, True]


def test_a_passage_that_does_not_fit_is_cut_and_said(llama: Any) -> None:
    long = "word " * 3000
    rag = ck.Rag(llama, Found("A short one.", long, "Another."), k=3, max_new_tokens=4)
    answer = rag.ask("Who?")
    assert [hit.passage.id for hit in answer.prompted] == ["1", "2"] and len(answer.hits) == 3
    assert answer.notice == "Not everything fitted the prompt: passage 2 was cut, passage 3 was left out."
    records = answer.to_dict()["hits"]
    assert [(r["prompted"], r["cut"]) for r in records] == [(True, False), (True, True), (False, False)]
    assert answer.answer.passages[1] in long
    with pytest.raises(PromptTooLong):
        ck.Rag(llama, Found(long), truncate=None).ask("Who?")


def test_blank_documents_are_left_out_and_said(llama: Any) -> None:
    found = Found("A short one.", " \n", "Another.", "")
    answer = ck.Rag(llama, found, k=4, max_new_tokens=2).ask("Who?")
    assert answer.answer.passages == ("A short one.", "Another.") and [h.passage.id for h in answer.prompted] == [
        "1",
        "3",
    ]
    assert answer.notice == "2 documents without text were left out." and answer.blank == 2
    closed = ck.Rag(llama, Found(" "), max_new_tokens=2).ask("Who?")
    assert closed.closed_book and str(closed.notice).endswith("memory alone. 1 document without text was left out.")


def test_a_blank_document_of_a_store_does_not_fail_the_question(llama: Any) -> None:
    from ckcontrol.retrieval.adapt import from_retriever

    class Store:
        def invoke(self, query: str) -> list[Any]:
            return [SimpleNamespace(page_content=text, id=None, metadata={}) for text in ("", "It was Ann.")]

    answer = ck.Rag(llama, from_retriever(Store()), max_new_tokens=2).ask("Who?")
    assert answer.answer.passages == ("It was Ann.",) and answer.notice == "1 document without text was left out."


def test_folded_white_space_is_no_cut(llama: Any) -> None:
    answer = ck.Rag(llama, Found("One\n\n  two."), max_new_tokens=2).ask("Who?")
    assert answer.answer.passages == ("One two.",) and answer.notice is None


# --- filters --------------------------------------------------------------------------------------


def test_a_filter_of_the_object_can_only_be_narrowed(llama: Any, index: Index) -> None:
    rag = ck.Rag(llama, index, where={"year": {"$lt": 2000}}, max_new_tokens=2)
    assert {hit.passage.id for hit in rag.ask(QUESTION).hits} == {"bridge", "ferry"}
    assert [hit.passage.id for hit in rag.ask(QUESTION, where={"source": "ferry.md"}).hits] == ["ferry"]
    assert (
        rag.ask(QUESTION, where={"source": "nobody.md"}).notice
        == "Nothing was found: answered closed book, from memory alone."
    )
    assert "No passage has 'len' to filter by. Known: " in (rag.ask(QUESTION, where={"len": "de"}).notice or "")
    with pytest.raises(RetrievalError, match="'year' is filtered by the Rag object already"):
        rag.ask(QUESTION, where={"year": 2001})


def test_both() -> None:
    assert both(None, None) is None
    assert both({"a": 1}, None) == both(None, {"a": 1}) == both({}, {"a": 1}) == {"a": 1}
    assert both({"a": 1}, {"b": 2}) == {"a": 1, "b": 2}


# --- any index, any model -------------------------------------------------------------------------


def test_a_search_is_told_only_what_was_chosen(llama: Any) -> None:
    found = Found("It was Ann.")
    ck.Rag(llama, found, max_new_tokens=2).ask("Who?")
    assert found.asked == {"k": 4}
    ck.Rag(llama, found, mode="hybrid", where={"a": 1}, reranker=found, max_new_tokens=2).ask("Who?", k=1)
    assert found.asked == {"k": 1, "mode": "hybrid", "where": {"a": 1}, "reranker": found}


def test_another_frameworks_retriever(llama: Any) -> None:
    from ckcontrol.retrieval.adapt import from_retriever

    class Document:
        page_content, metadata, id = "It was Ann.", {"source": "a.md"}, "a"

    class Retriever:
        def invoke(self, query: str) -> list[Document]:
            return [Document()]

    answer = ck.Rag(llama, from_retriever(Retriever()), max_new_tokens=2).ask("Who?")
    assert [hit.passage.source for hit in answer.prompted] == ["a.md"]


def test_models_by_name_pair_and_parts(llama: Any) -> None:
    found, (model, tokenizer) = Found("It was Ann."), llama
    texts = {
        ck.Rag(given, found, tokenizer=apart, max_new_tokens=4).ask("Who?").text
        for given, apart in (((model, tokenizer), None), ([model, tokenizer], None), (model, tokenizer))
    }
    assert len(texts) == 1
    assert ck.Rag("tiny", found, max_new_tokens=4).ask("Who?").answer.token_ids


def test_what_cannot_work_is_refused_when_the_object_is_made(llama: Any, tiny: Any) -> None:
    model, tokenizer = llama
    with pytest.raises(RetrievalError, match=r"has no search.*Index\.open"):
        ck.Rag(llama, "idx/")
    with pytest.raises(ControlError, match="without its tokenizer"):
        ck.Rag(model, Found())
    with pytest.raises(ControlError, match=r"not a pair.*ckcontrol\.load"):
        ck.Rag((model,), Found())
    with pytest.raises(ControlError, match="brings its own"):
        ck.Rag("tiny", Found(), tokenizer=tokenizer)
    with pytest.raises(TokenizerMismatch):
        ck.Rag(model, Found(), tokenizer=SimpleNamespace(vocab_size=10**6))
    for wrong in ({"k": 0}, {"k": True}, {"truncate": "question"}, {"max_new_tokens": 0}, {"max_tokens": 5}):
        with pytest.raises(ControlError):
            ck.Rag(llama, Found(), **wrong)


@pytest.mark.parametrize("question", ["", " \n", [], ["Who?", " "], [1], None, b"Who?", 7, {"Who?": 1}, [None]])
def test_a_question_that_asks_nothing_is_refused_before_the_search(llama: Any, question: Any) -> None:
    found = Found("It was Ann.")
    with pytest.raises(PromptError):
        ck.Rag(llama, found).ask(question)
    assert found.asked == {}


def test_a_floor_keeps_what_is_far_out_of_the_prompt(llama: Any, index: Index) -> None:
    best = index.search(QUESTION, 3)
    floor = (best[0].score + best[1].score) / 2
    for answer in (
        ck.Rag(llama, index, k=3, min_score=floor, max_new_tokens=2).ask(QUESTION),
        ck.Rag(llama, index, k=3, max_new_tokens=2).ask(QUESTION, min_score=floor),
        ck.Rag(llama, index, k=3, mode="hybrid", max_new_tokens=2).ask(QUESTION, min_score=floor),
    ):
        assert [hit.passage.id for hit in answer.hits] == [best[0].passage.id]
        assert answer.answer.passages == (best[0].passage.text,)
    nothing = ck.Rag(llama, index, min_score=2.0, max_new_tokens=2).ask(QUESTION)
    assert nothing.closed_book and nothing.notice


def test_a_passage_is_switched_off_by_its_id(llama: Any, index: Index) -> None:
    rag = ck.Rag(llama, index, k=3, max_new_tokens=2)
    off = rag.ask(QUESTION).hits[0].passage.id
    assert off not in [hit.passage.id for hit in rag.ask(QUESTION, where={"id": {"$nin": [off]}}).hits]


# --- views ----------------------------------------------------------------------------------------


def test_json_holds_answer_and_passages(rag: ck.Rag) -> None:
    answer = rag.ask(QUESTION)
    data = json.loads(answer.to_json())
    assert data["question"] == QUESTION and data["text"] == answer.text and data["notice"] is None
    assert data["answer"] == json.loads(answer.answer.to_json())
    first = data["hits"][0]
    assert (first["id"], first["source"], first["rank"], first["prompted"]) == ("bridge", "bridge.md", 1, True)
    assert first["metadata"] == {"year": 1884, "lang": "en"} and first["text"] == TEXTS["bridge"]


def test_show_and_pages_name_the_passages(rag: ck.Rag, capsys: pytest.CaptureFixture[str]) -> None:
    answer = rag.ask(QUESTION)
    answer.show()
    out = capsys.readouterr().out
    assert "[1]" in out and "bridge.md" in out and "year=1884" in out and "finished in 1884" in out
    for html in (answer.to_page(), answer._repr_html_()):
        assert "bridge.md" in html and "finished in 1884" in html and "<script" not in html
    empty = rag.ask(QUESTION, where={"year": 3000})
    assert "Nothing was found" in empty.to_page()


def test_hostile_passages_are_shown_as_text(llama: Any) -> None:
    hit = Hit(Passage("x", "It was \x1b[31mAnn</script><b>.", "a\x1b]0;t\x07\nb<i>", {"k\x1b[2J": "v\u202e"}), 1.0, 1)
    out = io.StringIO()
    print_hits([hit], "Ann", Console(file=out, width=80, color_system=None), notice="n")
    assert "\x1b" not in out.getvalue() and "\u202e" not in out.getvalue() and "a b<i>" in out.getvalue()

    class One:
        def search(self, queries: list[str], k: int = 5) -> list[list[Hit]]:
            return [[hit] for _ in queries]

    page = ck.Rag(llama, One(), max_new_tokens=2).ask("Who?").to_page()
    assert "</script" not in page and "<b>" not in page and "<i>" not in page and "\x1b" not in page


def test_excerpts_show_the_words_that_were_asked_for() -> None:
    text = "Nothing here. " * 20 + "The stone bridge was finished in 1884. " + "More follows. " * 20
    line = excerpt(text, QUESTION, 60)
    assert "stone bridge was finished" in line and len(line) <= 60
    assert line.startswith("…") and line.endswith("…") and "\n" not in line
    assert excerpt("Short\ntext.", QUESTION, 60) == "Short text."
    start = excerpt("The bridge. " + "word " * 50, "bridge", 40)
    assert start.startswith("The bridge.") and len(start) <= 40
    assert len(excerpt("x" * 500, "y", 40)) <= 40 and len(excerpt("wordy " * 99, "", 5)) <= 5


# --- conversations ----------------------------------------------------------------------------------


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_a_conversation_is_searched_by_what_the_user_said_last(rag: ck.Rag, llama: Any, index: Index) -> None:
    talk = said("What stands in Orvendale?", "A bridge.", QUESTION)
    answer = rag.ask(messages=talk, control=ck.Control("cad", 0.2))
    passages = [hit.passage.text for hit in index.search(QUESTION, 2)]
    alone = ck.generate(*llama, messages=talk, passages=passages, control=ck.Control("cad", 0.2), max_new_tokens=6)
    assert answer.answer == alone and answer.answer.question == QUESTION and answer.hits[0].passage.id == "bridge"
    batch = rag.ask(messages=[talk, said("How often does the ferry cross?")], control=ck.Control("cad", 0.2))
    assert batch[0].answer.token_ids == answer.answer.token_ids and batch[1].hits[0].passage.id == "ferry"


def test_another_query_searches_and_the_question_is_asked(rag: ck.Rag) -> None:
    talk = said("How often does the ferry cross the river?", "Often.", "How often exactly?")
    by_first = rag.ask(messages=talk, query=lambda messages: messages[0]["content"], max_new_tokens=2)
    assert by_first.hits[0].passage.id == "ferry" and by_first.answer.question == "How often exactly?"
    assert rag.ask(messages=talk, query="library maps", max_new_tokens=2).hits[0].passage.id == "library"
    both = rag.ask(["Which?", "When?"], query=["ferry", "bridge"], max_new_tokens=2)
    assert [a.hits[0].passage.id for a in both] == ["ferry", "bridge"]


def test_processors_and_the_like_are_handed_on(rag: ck.Rag) -> None:
    def only_b(ids: Any, scores: Any) -> Any:
        scores[:, 66] = 1e9
        return scores

    free = ck.Control("off")
    assert set(rag.ask(QUESTION, processors=[only_b], control=free).answer.token_ids) == {66}
    with pytest.raises(PromptError, match="no variable 'tools'"):
        rag.ask(QUESTION, tools=[{"type": "function"}])


@pytest.mark.parametrize(
    "given",
    [
        {"question": "x", "messages": said("x")},
        {"messages": []},
        {"messages": said("x", "y")},
        {"messages": "x"},
        {"messages": said("x"), "query": ""},
        {"messages": said("x"), "query": lambda messages: None},
        {"question": ["x", "y"], "query": ["x"]},
        {"question": ["x", "y"], "query": "x"},
    ],
)
def test_a_conversation_that_asks_nothing_is_refused_before_the_search(llama: Any, given: dict[str, Any]) -> None:
    found = Found("It was Ann.")
    with pytest.raises(PromptError):
        ck.Rag(llama, found).ask(**given)
    assert found.asked == {}
