"""The demo: verdicts, totals, what table and page say; one whole run on the tiny model with toy vectors."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console

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


@pytest.mark.parametrize("width", [60, 80, 140])
def test_terminal_says_everything_without_colour(result: DemoResult, width: int) -> None:
    out = terminal(result, width)
    assert "\x1b" not in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    for verdict in ("memory", "passage", "both", "neither", "agrees"):
        assert f"{SYMBOLS[verdict]} {verdict}" in out
    assert "FALSE" in out and "(another" in out and "1 switched" in out
    assert "○■" in out.replace(" ", "") or "■○" in out  # totals: one symbol a question


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
    assert all(r.answers[1].switched == 0 and r.closed_book.passages == () for r in result.rows)
    assert result.rows[0].answers[0].passages == (result.rows[0].passage.strip(),)
    assert seen[-1] == ("Answering", 20, 20)
    assert [done for stage, done, _ in seen if stage == "Answering"] == sorted(
        done for stage, done, _ in seen if stage == "Answering"
    )
    assert set(result.seconds) == {"retrieval", "loading", "answering"}
    assert "tiny" in terminal(result, 80) + demo_html(result)
