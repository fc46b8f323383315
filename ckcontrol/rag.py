"""The whole pipeline in one object: retrieve, pair, answer between passages and memory.

Knows the search of an `Index` (or of anything shaped like one) and the front door `generate`; what either does is
theirs. Nothing here is stored: an answer brings the passages it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from .answer import Answer
from .arguments import check_integer
from .control import Control, check_control, controls_for, overriding
from .decoding.conversation import conversations, question_of, read_turns
from .decoding.endings import ends_streamer
from .decoding.options import GenerateOptions
from .decoding.plain_text import check_text
from .decoding.prompts import missing, shortened
from .decoding.refusals import check_model, check_tokenizer, eos_ids
from .errors import ControlError, PromptError, RetrievalError, did_you_mean
from .retrieval.overrides import Override, Overrides, hit_of, read_overrides

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

    from .citations import Sentence
    from .decoding.prompts import PromptTemplate
    from .retrieval import Hit

__all__ = ["Rag", "RagAnswer"]

_FORMS = ("processors", "json_schema", "grammar", "regex")  # what `generate` takes that says what answers look like
_BESIDE = (*_FORMS, "tools", "criteria", "sources")  # what it takes, not options


@dataclass(frozen=True)
class RagAnswer:
    """An answer and the passages that were found for it.

    Attributes:
        answer: The `Answer`, with its token trace. ``answer.passages`` are the texts as they stood in the prompt.
        hits: What was found, best first; empty when nothing was.
        blank: How many more documents were found that hold no text, and were left out.
        override: The fact that the question asked for and that changed the answer; `hits` is its statement alone.
        written_out: The model, steered, did not say the override's answer: it was written out instead, word for word.
        unmet: Where nothing was found: what the filter asks for and no passage has, see `Index.unmet`.
    """

    answer: Answer
    hits: tuple[Hit, ...]
    blank: int = 0
    override: Override | None = None
    written_out: bool = False
    unmet: str = ""

    @property
    def text(self) -> str:
        """The generated text."""
        return self.answer.text

    @property
    def thinking(self) -> str | None:
        """What the model thought before it answered; None where it did not think."""
        return self.answer.thinking

    @property
    def cited(self) -> tuple[Sentence, ...]:
        """The sentences of the answer, each with the places in `hits` of those that support it; none is memory."""
        return self.answer.cited

    @property
    def prompted(self) -> tuple[Hit, ...]:
        """The hits whose passages stood in the prompt, in its order; fewer than `hits` when not all fitted."""
        return self.hits[: len(self.answer.passages)]  # a prompt is cut from its end, see `build_pair`

    @property
    def closed_book(self) -> bool:
        """Whether no passage stood in the prompt: the answer is the model's memory."""
        return not self.answer.passages

    @property
    def notice(self) -> str | None:
        """A sentence or two when the prompt did not hold everything that was found; None when it did."""
        without = "1 document without text was" if self.blank == 1 else f"{self.blank} documents without text were"
        fact = self.override
        how = "In the words of" if self.written_out else "Answered from"
        given = f"{how} the override {fact.id!r}, which outranks what was found." if fact else None
        parts = [given, self._missing(), self.unmet, f"{without} left out." if self.blank else None]
        return " ".join(filter(None, parts)) or None

    def _missing(self) -> str | None:
        return missing([(hit.rank, hit.passage.text) for hit in self.hits], self.answer.passages)

    def _cut(self) -> list[int]:
        """Places of the hits whose passages stood in the prompt shortened."""
        return shortened([hit.passage.text for hit in self.prompted], self.answer.passages)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        prompted, cut = len(self.prompted), self._cut()
        sentences = self.cited
        cited = {place for sentence in sentences for place in sentence.passages}
        return {
            "question": self.answer.question,
            "text": self.text,
            "closed_book": self.closed_book,
            "notice": self.notice,
            "override": None if self.override is None else self.override.to_dict(),
            "written_out": self.written_out,
            "cited": [sentence.to_dict() for sentence in sentences],
            "hits": [
                {**hit.to_dict(), "prompted": place < prompted, "cited": place in cited, "cut": place in cut}
                for place, hit in enumerate(self.hits)
            ],
            "answer": self.answer.to_dict(),
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """Return everything as one JSON object, on one line unless `indent` is given.

        Raises:
            TypeError, ValueError: A foreign retriever's metadata that JSON cannot hold.
        """
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent, allow_nan=False)

    def show(self) -> None:
        """Print the answer token by token, then the passages it was made from."""
        from rich.console import Console

        from .views.terminal import print_answer, print_cited, print_hits

        console = Console()
        print_answer(self.answer, console)
        console.print()
        print_cited(self.cited, self.hits, console)
        print_hits(self.prompted, self.answer.question, console, notice=self.notice)

    def to_page(self) -> str:
        """Return a self-contained HTML page: the answer token by token, its passages, every recorded figure."""
        from .views.html import answer_page

        return answer_page(self.answer, self._captions(), notice=self.notice)

    def _captions(self) -> list[str]:
        from .views.describe import cited_line, hit_label

        sentences = self.cited
        return [
            " · ".join(filter(None, (hit_label(hit), cited_line(sentences, place))))
            for place, hit in enumerate(self.prompted)
        ]

    def _repr_html_(self) -> str:
        from .views.html import answer_html, passages_html

        passages = passages_html(self.answer, self._captions(), notice=self.notice)
        return f'{answer_html(self.answer)}\n<div class="ck ck-alone">{passages}</div>'


class Rag:
    """A model and an index that answer together.

    Args:
        model: A name ("demo", a folder, a Hugging Face id), the pair `ckcontrol.load` returns, or a model.
        index: An `Index`, a `MilvusIndex`, what `from_retriever` returns, or anything with their ``search``.
        tokenizer: The tokenizer, when `model` is a model alone.
        template: Wording of the prompts.
        template_kwargs: Variables of the chat template, e.g. ``{"enable_thinking": False}``; beside the template's own.
        control: Which policy and how far, for every answer; None is ``Control()``, the unmodified model.
        k: Passages per question.
        mode: How to search, e.g. "hybrid"; None leaves it to the index ("dense" for an `Index`).
        min_score: Leave out passages that score less, so that they are neither cited nor amplified; see `Index.search`.
        where: A filter that every search keeps to; the one `ask` gets can only narrow it.
        reranker: Puts what was found in a new order; see `Index.search`.
        overrides: Facts that outrank what is found where a question asks for them, whatever `control` says:
            an `Overrides`, or what `read_overrides` takes; None: those of the index; ``()``: none.
        truncate: "passages": a passage that does not fit the model's window is cut, or left out with those after it,
            and `RagAnswer.notice` says so. None: such a question raises `PromptTooLong`.
        options: How tokens are drawn and when to stop, as one value.
        **keywords: The same as single fields of `GenerateOptions`, instead of `options`, e.g. ``max_new_tokens``.

    Raises:
        ControlError: A bad option, keywords beside `options`, or a model without its tokenizer.
        ModelUnavailable: `model` is a name that cannot be loaded.
        RetrievalError: `index` has no ``search``.
        TokenizerMismatch, UnsupportedMode: The model and the tokenizer do not fit, or cannot be steered.

    Example:
        >>> rag = Rag("demo", Index.open("idx/"), control=Control(alpha=0.3))  # doctest: +SKIP
        >>> answer = rag.ask("When was the bridge finished?")                  # doctest: +SKIP
        >>> [(s.text, [answer.hits[p].passage.source for p in s.passages]) for s in answer.cited]  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        index: Any,
        *,
        tokenizer: Any = None,
        template: PromptTemplate | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        control: Control | None = None,
        k: int = 4,
        mode: str | None = None,
        min_score: float | None = None,
        where: Mapping[str, Any] | None = None,
        reranker: Any = None,
        overrides: Any = None,
        truncate: str | None = "passages",
        options: GenerateOptions | None = None,
        **keywords: Any,
    ) -> None:
        check_integer("k", k, 1, 10_000)
        self.control = check_control(control)
        self.options = GenerateOptions.one_of(options, keywords)
        if truncate not in (None, "passages"):
            raise ControlError(f"truncate={truncate!r}.", did_you_mean(str(truncate), ["passages"]) + " None refuses.")
        if not callable(getattr(index, "search", None)):
            raise RetrievalError(
                f"{index!r:.80} has no search.",
                "Open an index with Index.open(path), or adapt another framework's retriever with from_retriever.",
            )
        self.model, self.tokenizer = _pair(model, tokenizer)
        check_model(self.model)
        check_tokenizer(self.model, self.tokenizer)
        self.index = index
        self.template, self.template_kwargs, self.truncate = template, template_kwargs, truncate
        self.min_score = min_score
        self.k, self.mode, self.where, self.reranker = k, mode, where, reranker
        self._overrides = _store(overrides, index)

    @overload
    def ask(
        self,
        question: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        query: str | Callable[[Any], str] | None = None,
        control: Control | None = None,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
        mode: str | None = None,
        min_score: float | None = None,
        streamer: BaseStreamer | None = None,
        **options: Any,
    ) -> RagAnswer: ...

    @overload
    def ask(
        self,
        question: list[str] | tuple[str, ...],
        *,
        query: Sequence[str] | Callable[[Any], str] | None = None,
        control: Control | Sequence[Control] | None = None,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
        mode: str | None = None,
        min_score: float | None = None,
        streamer: BaseStreamer | None = None,
        **options: Any,
    ) -> list[RagAnswer]: ...

    @overload
    def ask(
        self,
        *,
        messages: Sequence[Sequence[Mapping[str, Any]]],
        query: Sequence[str] | Callable[[Any], str] | None = None,
        control: Control | Sequence[Control] | None = None,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
        mode: str | None = None,
        min_score: float | None = None,
        streamer: BaseStreamer | None = None,
        **options: Any,
    ) -> list[RagAnswer]: ...

    @ends_streamer
    def ask(
        self,
        question: str | list[str] | tuple[str, ...] | None = None,
        *,
        messages: Sequence[Any] | None = None,
        query: str | Sequence[str] | Callable[[Any], str] | None = None,
        control: Control | Sequence[Control] | None = None,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
        mode: str | None = None,
        min_score: float | None = None,
        streamer: BaseStreamer | None = None,
        **options: Any,
    ) -> RagAnswer | list[RagAnswer]:
        """Retrieve passages and answer from them, from memory, or anywhere between.

        A question for which nothing is found is answered closed book; `RagAnswer.notice` says so. One that asks for an
        override is answered twice, without it and from its statement alone, amplified; where that makes no difference
        the override is silent. Where neither the answer that is steered so says what the override does, its `answer` is
        written out, unless `processors` or a grammar says what may be written, or the model thinks. Every other
        question is answered as if there were none, token for token.

        Args:
            question: One question, or a list of them: one search and one batch.
            messages: Instead: a conversation, or a list of them, as `generate` takes it. Passages are searched by its
                last user turn, and stand in it.
            query: What to search by instead: a text (for a list one each), or a function that is given a question or
                the messages of a conversation and returns one, e.g. the user's turns joined.
            control: As for the object, or one control per question of a list.
            k: As for the object.
            where: A further filter: what is found meets this one and the object's.
            mode: As for the object.
            min_score: As for the object.
            streamer: transformers streamer; gets the prompt and every token, then ``end()`` exactly once.
            **options: Fields of `GenerateOptions` that replace the object's; and what `generate` takes beside them:
                ``tools``, ``processors``, ``criteria``, ``json_schema``, ``grammar``, ``regex``, ``sources``.

        Raises:
            ControlError, PromptError, RetrievalError: A bad option, question or filter; before anything slow.
            CKError: Whatever `Index.search` and `generate` raise.
        """
        from .decoding.generate import generate

        beside = {name: options.pop(name) for name in _BESIDE if name in options}
        chosen = GenerateOptions.from_kwargs(options, self.options)
        asked, single = _asked(question, messages)
        controls_for(self.control if control is None else control, len(asked))
        queries = _queries(asked, query, single, "question" if messages is None else "messages")
        how = {"where": both(self.where, where), "mode": mode or self.mode, "reranker": self.reranker}
        how["min_score"] = self.min_score if min_score is None else min_score
        count = self.k if k is None else check_integer("k", k, 1, 10_000)
        found = self.index.search(queries, count, **{name: value for name, value in how.items() if value is not None})
        told = [[hit for hit in hits if hit.passage.text.strip()] for hits in found]
        words = _queries(asked, None, single, "question" if messages is None else "messages")
        facts = self._asked_for(words, how["where"])

        def answer(asked: list[Any], told: list[list[Hit]], control: Any, streamer: Any, **more: Any) -> list[Answer]:
            what: Any = {"question" if messages is None else "messages": asked}
            answers: list[Answer] = generate(
                self.model,
                self.tokenizer,
                **what,
                passages=[[hit.passage.text for hit in hits] for hits in told],
                control=control,
                template=self.template,
                template_kwargs=self.template_kwargs,
                truncate=self.truncate,
                streamer=streamer,
                **{"options": chosen, **beside, **more},
            )
            return answers

        answers = answer(asked, told, self.control if control is None else control, None if facts else streamer)
        blank = [len(hits) - len(kept) + getattr(hits, "blank", 0) for hits, kept in zip(found, told, strict=True)]
        unmet = getattr(self.index, "unmet", None) if how["where"] and not all(found) else None
        said = unmet(how["where"]) if unmet else ""
        made = [
            RagAnswer(answer, tuple(hits), b, unmet="" if hits else said)
            for answer, hits, b in zip(answers, told, blank, strict=True)
        ]
        if facts:
            stated = [[hit_of(fact, score)] for fact, score in facts.values()]
            held = None if streamer is None else _Held()  # a stream waits until it is known which answer is given
            others = answer([asked[place] for place in facts], stated, overriding(), held)
            free = not any(beside.get(name) for name in _FORMS)
            for (place, (fact, _)), hits, other in zip(facts.items(), stated, others, strict=True):
                out = free and other.thinking is None and not fact.said_in(other.text)
                if out:
                    ids = self.tokenizer(fact.answer, add_special_tokens=False)["input_ids"]
                    only = _Only(ids, eos_ids(self.model, self.tokenizer))
                    count = min(chosen.max_new_tokens, len(ids) + bool(only.ends))
                    options = {"options": replace(chosen, max_new_tokens=count), "processors": [only], "sources": None}
                    (other,) = answer([asked[place]], [hits], overriding(), streamer, **options)
                elif held is not None:
                    held.hand_on(streamer)
                if other.token_ids != made[place].answer.token_ids:
                    made[place] = RagAnswer(other, tuple(hits), 0, fact, out)
        return made[0] if single else made

    def _asked_for(self, questions: list[str], where: Mapping[str, Any] | None) -> dict[int, tuple[Override, float]]:
        """Return the override that each question asks for and the filter lets through, by its place."""
        store = self._overrides if self._overrides is not None else getattr(self.index, "overrides", None)
        found = store.find(questions, where) if isinstance(store, Overrides) else []
        return {place: fact for place, fact in enumerate(found) if fact is not None}


class _Held:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self._values: list[Any] = []

    def put(self, value: Any) -> None:
        self._values.append(value)

    def end(self) -> None:
        """Nothing has been given yet."""

    def hand_on(self, streamer: Any) -> None:
        """Give it all."""
        for value in self._values:
            streamer.put(value)


class _Only:
    """A processor of one row that lets it write these tokens alone, then an end token."""

    def __init__(self, ids: Sequence[int], ends: Sequence[int]) -> None:
        self.ids, self.ends = [*ids, *ends[:1]], ends
        self._done = 0

    def __call__(self, ids: Any, scores: Any) -> Any:
        """Return scores [1, V] of which one is finite."""
        kept = scores.new_full(scores.shape, float("-inf"))
        kept[:, self.ids[min(self._done, len(self.ids) - 1)]] = 0
        self._done += 1
        return kept


def _store(overrides: Any, index: Any) -> Overrides | None:
    if overrides is None or isinstance(overrides, Overrides):
        return overrides
    facts = read_overrides(overrides)
    embedder: Any = getattr(index, "embedder", None) if facts else None
    if facts and embedder is None:
        raise RetrievalError(
            "overrides= needs an embedder, and the index has none.", "Pass Overrides(facts, embedder)."
        )
    return Overrides(facts, embedder)


def _asked(question: Any, messages: Any) -> tuple[list[Any], bool]:
    """Return the questions or conversations, and whether it was a single one."""
    if messages is not None:
        if question is not None:
            raise PromptError("question and messages were both given.", "The question is the last user's message.")
        return conversations(messages)
    if not isinstance(question, (str, list, tuple)):
        what = "missing" if question is None else f"{type(question).__name__}, not text"
        raise PromptError(f"question is {what}.", "Pass a string, or a list of them.")
    questions = [question] if isinstance(question, str) else list(question)
    if not questions:
        raise PromptError("the list of questions is empty.", "Pass at least one question.")
    for number, text in enumerate(questions):
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"question {number + 1} is {text!r}, which asks nothing.", "Give it some text.")
    return questions, isinstance(question, str)


def _queries(asked: list[Any], query: Any, single: bool, kind: str) -> list[str]:
    """Return what to search by, one text each."""
    last = asked if kind == "question" else [question_of(read_turns(one)) for one in asked]
    if query is None:
        return last
    texts = [query(one) for one in asked] if callable(query) else [query] if single else query
    if not isinstance(texts, (list, tuple)) or len(texts) != len(asked):
        raise PromptError(f"query={query!r:.60} is not one text per {kind}.", f"Give {len(asked)}, or a function.")
    for text in texts:
        check_text("query", text)
    return list(texts)


def both(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the filter that lets through what both let through.

    Raises:
        RetrievalError: Both test the same name: which of them was meant to count cannot be told.
    """
    if not one or not other:
        return one or other
    shared = sorted(set(one) & set(other))
    if shared:
        raise RetrievalError(f"where: {shared[0]!r} is filtered by the Rag object already.", "Filter on other names.")
    return {**one, **other}


def _pair(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    if isinstance(model, str):
        if tokenizer is not None:
            raise ControlError(f"model={model!r} is a name, and a tokenizer was given.", "A name brings its own.")
        from .models.load import load

        return load(model)
    if isinstance(model, (tuple, list)):
        if len(model) != 2 or tokenizer is not None:
            raise ControlError("model is not a pair of a model and its tokenizer.", "Pass what ckcontrol.load returns.")
        return model[0], model[1]
    if tokenizer is None:
        raise ControlError(f"a {type(model).__name__} came without its tokenizer.", "Pass tokenizer=.")
    return model, tokenizer
