"""The demo's logic: retrieve a passage per question, answer on both sides of the dial, read off every setting.

`dial` writes at most three drafts of an answer and its evidence does not depend on alpha: two passes tell all settings.
Knows models, retrieval and metrics by their public names; draws nothing (`view.py` does) and prints nothing:
a callback reports slow steps. Everything heavy is imported inside the functions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..answer import Answer
from ..control import Control
from ..decoding.options import GenerateOptions
from ..errors import require
from ..rates import count
from .result import ALPHAS, DemoResult, DemoRow, Item, judge

__all__ = ["load_items", "run_demo", "settings"]

# stage, done, total; a total of 0: length unknown
Progress = Callable[[str, int, int], None]


def settings() -> dict[str, Control]:
    """Return the demo's columns: the two ends of the dial, its middle, and the adaptive mode."""
    dial = {f"alpha {alpha:g}": Control(alpha=alpha) for alpha in (0.0, 0.5, 1.0)}
    return {**dial, "adaptive": Control(adaptive=True)}


def load_items() -> list[Item]:
    """Read the questions that ship with the package."""
    return [
        Item(
            question=line["question"],
            passage_id=line["passage_id"],
            truth=line["truth"],
            claim=line["claim"],
            truth_aliases=tuple(line.get("truth_aliases", ())),
            claim_aliases=tuple(line.get("claim_aliases", ())),
        )
        for line in _read("questions.jsonl")
    ]


def _read(name: str) -> list[dict[str, Any]]:
    text = files("ckcontrol.demo").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def run_demo(
    model: str = "demo",
    embedder: Any = "demo",
    *,
    items: Sequence[Item] | None = None,
    max_new_tokens: int = 24,
    device: str | None = None,
    on_progress: Progress | None = None,
) -> DemoResult:
    """Run the demo and return what it found; nothing is printed or written.

    Args:
        model: A name that `ckcontrol.load` resolves.
        embedder: A name that `ckcontrol.models.load.embedder_path` resolves, or an embedder object.
        items: Questions to ask instead of the shipped ones.
        max_new_tokens: Longest answer, in tokens.
        device: Where the model runs; None chooses.
        on_progress: Called with (stage, done, total) as work proceeds; a total of 0 means that the length is unknown.

    Raises:
        CKError: A model could not be obtained, or an extra is missing.
    """
    if embedder == "demo":
        require("demo", faiss="faiss-cpu", sentence_transformers="sentence-transformers")
    report = on_progress or (lambda stage, done, total: None)
    items = list(load_items() if items is None else items)
    seconds: dict[str, float] = {}
    with _timed(seconds, "retrieval"):
        hits, corpus_size = _retrieve([item.question for item in items], embedder, report)
    with _timed(seconds, "loading"):
        from ..models.load import load

        if model != "demo":  # which reports its loading itself
            report(f"Loading {model} ...", 0, 0)
        loaded = load(model, device=device, on_status=lambda text: report(text, 0, 0))
    with _timed(seconds, "answering"):
        columns = settings()
        sides = _answer(loaded, items, hits, max_new_tokens, report)
    rows = []
    for item, hit, below, above in zip(items, hits, *sides, strict=True):
        answers = tuple(_at(below, above, control, max_new_tokens) for control in columns.values())
        dial = tuple(_at(below, above, Control(alpha=alpha), max_new_tokens) for alpha in ALPHAS)
        rows.append(
            DemoRow(
                item=item,
                passage=hit.text,
                expected=hit.id == item.passage_id,
                closed_book=dial[-1],
                knows=judge(dial[-1].text, item) in ("memory", "agrees"),
                answers=answers,
                verdicts=tuple(judge(answer.text, item) for answer in answers),
                dial=tuple(judge(answer.text, item) for answer in dial),
            )
        )
    return DemoResult(tuple(rows), tuple(columns), _title(model), corpus_size, seconds)


def _title(model: str) -> str:
    """Return a model's name for people: of a folder the last part, never the machine's path."""
    from ..models.load import DEMO_MODEL

    return DEMO_MODEL.name if model == "demo" else Path(model).name if Path(model).is_dir() else model


def _retrieve(questions: Sequence[str], embedder: Any, report: Progress) -> tuple[list[Any], int]:
    """Return the best passage per question and the size of the corpus."""
    from ..models.load import embedder_path
    from ..retrieval import Embedder, Index, Passage

    report("Embedding the passages", 0, 0)
    if isinstance(embedder, str):
        embedder = Embedder(embedder_path(embedder, on_status=lambda text: report(text, 0, 0)))
    passages = [
        Passage(id=line["id"], text=line["text"], source=line["title"], metadata={"false": line["false"]})
        for line in _read("corpus.jsonl")
    ]
    report("Embedding the passages", 0, len(passages))
    index = Index.build(passages, embedder)
    best = [hits[0].passage for hits in index.search(list(questions), 1)]
    report("Embedding the passages", len(passages), len(passages))
    return best, len(passages)


def _answer(
    loaded: tuple[Any, Any],
    items: Sequence[Item],
    passages: Sequence[Any],
    max_new_tokens: int,
    report: Progress,
) -> tuple[list[Answer], list[Answer]]:
    """Answer every question at alpha 0 and adaptively, whose drafts are those of every setting; one list each."""
    from .. import generate

    questions, given = [item.question for item in items], [[passage.text] for passage in passages]
    sides = (Control(alpha=0.0), Control(adaptive=True))
    steps = _Steps(report, max_new_tokens * len(sides), f"Answering {count(len(items), 'question')}, in token steps")
    answers = []
    for number, control in enumerate(sides):
        steps.start = number * max_new_tokens
        options = GenerateOptions(max_new_tokens=max_new_tokens)
        answers.append(generate(*loaded, questions, given, control=control, options=options, streamer=steps))
    report(steps.stage, steps.total, steps.total)
    return answers[0], answers[1]


def _at(below: Answer, above: Answer, control: Control, max_new_tokens: int) -> Answer:
    """Return the answer at a setting, from the drafts on its side of 0.5; traced where that draft was given there."""
    dial: Any = control.policy()
    side = above if dial.adaptive or dial.position >= 0.5 else below
    plain, other = side.drafts
    draft = other if dial.takes(other.evidence, other.idle) else plain
    traced = [one for one in (below, above) if any(each.given and each.name == draft.name for each in one.drafts)]
    chosen = len(dial.drafts) > 1
    return replace(
        side,
        text=draft.text,
        tokens=traced[0].tokens if traced else (),
        token_ids=draft.token_ids,
        control=control,
        finish_reason="stop" if len(draft.token_ids) < max_new_tokens else "length",
        drafts=tuple(replace(each, given=each is draft) for each in side.drafts) if chosen else (),
    )


class _Steps:
    """A streamer that counts the tokens of a batch for the progress bar; the first `put` is the prompt."""

    def __init__(self, report: Progress, total: int, stage: str) -> None:
        self.start = 0
        self.total = total
        self.stage = stage
        self._report = report
        self._done = -1
        report(stage, 0, total)

    def put(self, value: Any) -> None:
        """Count one token of every row."""
        self._done += 1
        self._report(self.stage, self.start + self._done, self.total)

    def end(self) -> None:
        """Expect the next batch."""
        self._done = -1


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
