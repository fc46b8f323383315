"""The demo: verdicts, totals, what table and page say; one whole run on the tiny model with toy vectors."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ckcontrol import generate, load
from ckcontrol.answer import Answer, TokenTrace
from ckcontrol.control import Control
from ckcontrol.demo import DemoResult, Item, Row, judge, run_demo
from ckcontrol.demo.run import load_items, settings
from ckcontrol.demo.view import SYMBOLS, demo_html, notes, print_demo

FALSE = Item("Capital of Canada?", "canada", truth="Ottawa", claim="Halifax", claim_aliases=("Halifax Town",))
TRUE = Item("Currency of Japan?", "yen", truth="yen", claim="yen", truth_aliases=("JPY",))
COLUMNS = ("alpha 0", "alpha 0.5", "alpha 1", "adaptive")


def answer(text: str, switched: bool = False, control: Control | None = None) -> Answer:
    trace = TokenTrace(id=1, text=text, logp_final=-0.1, switched=switched, gain=-1.0 if switched else 0.0)
    return Answer(text, (trace,), (1,), "Q?", ("P.",), control or Control(), "stop", 5, 3)


def row(item: Item, *texts: str, closed: str = "Ottawa", expected: bool = True) -> Row:
    answers = tuple(answer(text, switched=number != 1) for number, text in enumerate(texts))
    return Row(
        item=item,
        passage=f"The answer is {item.claim} </script>.",
        expected=expected,
        closed_book=answer(closed),
        knows=judge(closed, item) in ("memory", "agrees"),
        answers=answers,
        verdicts=tuple(judge(text, item) for text in texts),
        dial=tuple(judge(text, item) for text in (texts[0], *[texts[1]] * 7, *[texts[2]] * 3)),
    )


@pytest.fixture
def result() -> DemoResult:
    rows = (
        row(FALSE, "of of of", "Halifax.", "Ottawa.", "Ottawa, not Halifax"),
        row(TRUE, "The yen.", "yen", "JPY", "dollar", closed="dollar"),
        row(FALSE, "Halifax", "Halifax", "Halifax", "Halifax", closed="Toronto", expected=False),
    )
    return DemoResult(rows, COLUMNS, "toy-model", 40, {"answering": 1.5})


def terminal(result: DemoResult, width: int) -> str:
    out = io.StringIO()
    print_demo(result, Console(file=out, width=width, color_system=None))
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "item", "verdict"),
    [
        ("It is Ottawa.", FALSE, "memory"),
        ("halifax!", FALSE, "passage"),
        ("Halifax Town", FALSE, "passage"),
        ("Ottawa, although the passage says Halifax", FALSE, "both"),
        ("Ottawan Halifaxes", FALSE, "neither"),
        ("", FALSE, "neither"),
        ("The Yen", TRUE, "agrees"),
        ("JPY", TRUE, "agrees"),
        ("yentl", TRUE, "neither"),
    ],
)
def test_judge(text: str, item: Item, verdict: str) -> None:
    assert judge(text, item) == verdict
    assert verdict in SYMBOLS


def test_totals_and_groups(result: DemoResult) -> None:
    assert [len(result.false_rows()), len(result.false_rows(known=True)), len(result.true_rows())] == [
        2,
        1,
        1,
    ]
    totals = result.totals(result.false_rows())
    assert totals[0] == Counter(neither=1, passage=1)
    assert totals[3] == Counter(both=1, passage=1)
    assert result.telling(1)[0] is result.rows[0]


def test_notes_are_honest(result: DemoResult) -> None:
    text = " ".join(notes(result))
    assert "knows 1 of 3 facts" in text
    assert "At alpha 0, 1 answer named neither" in text
    assert "1 question retrieval ranked another passage first" in text


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_terminal_draws_the_dial_without_colour(result: DemoResult, width: int) -> None:
    out = terminal(result, width)
    assert "\x1b" not in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    assert "Capital of Canada?" in out and "(false)" in out and "▸of of of" in out
    drawn = [line.replace("Capital of Canada?", "").split() for line in out.splitlines() if "■ ■ ■" in line]
    assert drawn[0] == ["○", *"■" * 7, *"◆" * 3, "◧"], "a mark for each tenth of the dial, and one for adaptive"
    (counted, *_) = [line.split() for line in out.splitlines() if line.split()[-12:-1] == [*"0" * 8, *"1" * 3]]
    assert counted[-1] == "0", "right answers at each setting: one that names both is not"
    assert ("●" in out) is (width >= 76)


def test_the_dial_is_in_the_data_and_in_words(result: DemoResult) -> None:
    assert result.rows[0].turns == [("neither", 0.0, 0.0), ("passage", 0.1, 0.7), ("memory", 0.8, 1.0)]
    assert "neither 0, passage 0.1 to 0.7, memory 0.8 to 1" in demo_html(result)
    assert result.to_dict()["rows"][0]["dial"]["0.8"] == "memory"


def test_page_holds_the_same_and_is_inert(result: DemoResult) -> None:
    source = demo_html(result)
    assert "default-src 'none'" in source and "</script" not in source and "<script" not in source
    assert source.count("<table") == 2
    assert "toy-model" in source and "does not know" in source
    for text in ("◆ memory", "■ passage", "◧ both", "○ neither", "✓ agrees", "FALSE"):
        assert text in source


def test_result_is_json_ready(result: DemoResult) -> None:
    import json

    data = json.loads(json.dumps(result.to_dict()))
    assert data["rows"][0]["answers"]["alpha 1"] == {"text": "Ottawa.", "relied_on": "memory", "switched": 1}


def test_columns_are_the_dial_and_adaptive() -> None:
    assert tuple(settings()) == COLUMNS
    assert [control.alpha for control in settings().values()] == [0.0, 0.5, 1.0, None]


def test_shipped_questions_are_complete() -> None:
    items = load_items()
    assert len(items) == len({item.question for item in items}) >= 12
    assert any(item.false for item in items) and not all(item.false for item in items)


class BagOfWords:
    """An encoder without a model: hashed words, normalised."""

    dim = 256

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> Any:
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for number, text in enumerate(texts):
            for word in text.lower().replace("?", "").replace(".", "").split():
                if len(word) > 3:
                    vectors[number, sum(word.encode()) % self.dim] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def test_a_whole_run_on_the_tiny_model() -> None:
    pytest.importorskip("faiss")
    seen: list[tuple[str, int, int]] = []
    items = load_items()[:3]
    result = run_demo(
        "tiny",
        BagOfWords(),
        items=items,
        max_new_tokens=4,
        device="cpu",
        on_progress=lambda *report: seen.append(report),
    )
    assert [r.item for r in result.rows] == items
    assert all(len(r.answers) == len(result.columns) == 4 for r in result.rows)
    assert result.rows[0].answers[0].passages == (result.rows[0].passage.strip(),)
    last = "Answering 3 questions, in token steps"
    done = [done for stage, done, _ in seen if stage == last]
    assert seen[-1] == (last, 8, 8) and done == sorted(done) and done[0] == 0
    model = load("tiny", device="cpu")
    for number, control in enumerate(settings().values()):  # two passes tell what a pass at each setting would
        if control.alpha == 0.5:  # the tiny model alone also gives ids that its tokenizer does not know
            continue
        asked = [item.question for item in items]
        alone = generate(*model, asked, [[r.passage] for r in result.rows], control=control, max_new_tokens=4)
        for told, given in zip(alone, [r.answers[number] for r in result.rows], strict=True):
            for part in ("text", "token_ids", "control", "finish_reason", "passages"):
                assert getattr(given, part) == getattr(told, part), (control, part)
            assert given.tokens == () or [t.id for t in given.tokens] == [t.id for t in told.tokens]
    assert [r.closed_book.text for r in result.rows] == [r.answers[2].text for r in result.rows]
    assert set(result.seconds) == {"retrieval", "loading", "answering"}
    assert "tiny" in terminal(result, 80) + demo_html(result)
