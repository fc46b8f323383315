"""The item browser: which items are chosen, how they are judged and shown, and that nothing is shown when asked so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ckcontrol.eval.judging.measures import measure
from ckcontrol.eval.records import Record
from ckcontrol.eval.report import write_report
from ckcontrol.eval.report.answers import choose, judge
from ckcontrol.eval.report.browser import browser
from ckcontrol.eval.report.runs import read_runs

from .invented_run import arms, write_lines, write_run


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run", tasks=("capitals",), listed=arms({"ck-plug": (0.0, 1.0)}, ("off",)), per_state=4)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def said(run: Path, texts: dict[str, tuple[str, ...]]) -> None:
    """Replace the samples: per item id the text of every arm."""
    names = ("off", "ck-plug@0", "ck-plug@1")
    write_lines(
        run / "samples.jsonl",
        [
            {"task": "capitals", "id": item, "arm": arm, "text": text, "finish": "stop"}
            for item, given in texts.items()
            for arm, text in zip(names, given, strict=True)
        ],
    )


# --- judging ---


@pytest.mark.parametrize(
    ("state", "text", "word"),
    [
        ("conflict", "It is Oslo.", "memory"),
        ("conflict", "It is Hanoi.", "passages"),
        ("conflict", "I do not know.", "neither"),
        ("agree", "It is Oslo.", "right"),
        ("agree", "It is Hanoi.", "wrong"),
        ("irrelevant", "I do not know.", "wrong"),
    ],
)
def test_a_text_is_judged_by_its_state(state, text, word):
    contextual = ("Oslo",) if state == "agree" else ("Hanoi",)
    assert judge(Record("1", "q", ("p",), contextual, ("Oslo",), state), {"text": text}) == word


def test_choices_failures_and_records_without_answers():
    record = Record("1", "q", (), choices=(" a", " b"), answer_index=1, state="plain")
    assert [judge(record, {"choice": place}) for place in (1, 0, None)] == ["right", "wrong", "unjudged"]
    assert judge(record, {"error": "NonFiniteLogits"}) == "failed"
    assert judge(Record("1", "q", state="plain"), {"text": "x"}) == "unjudged"


@pytest.mark.parametrize(("state", "word"), [("helpful", "right"), ("irrelevant", "unjudged"), ("plain", "unjudged")])
def test_what_passages_say_is_the_truth_where_they_are_right_alone(state, word):
    """As in the figures, which have no accuracy for the others."""
    record = Record("1", "q", ("p",), ("Hanoi",), (), state)
    assert judge(record, {"text": "It is Hanoi."}) == word
    assert ("accuracy" in measure(record, {"id": "1", "text": "It is Hanoi."})) == (word == "right")


# --- choosing ---


def test_items_on_which_arms_disagree_come_first_and_states_take_turns(run):
    same = ("Oslo",) * 3
    texts = {f"{state}-{n}": same for state in ("conflict", "agree") for n in range(4)}
    texts |= {"conflict-2": ("nothing", "Quito", "Accra"), "agree-3": ("Hanoi", "nothing", "nothing")}
    said(run, texts)
    (choice,) = choose(run, 3)
    assert [found.record.id for found in choice.items] == ["conflict-2", "conflict-0", "agree-3"]
    assert (choice.total, choice.disagreed, choice.unread) == (8, 2, 0)
    assert choice.items[0].verdicts == {"off": "neither", "ck-plug@0": "neither", "ck-plug@1": "memory"}
    assert choose(run, 0) == []


def test_shards_closing_lines_doubles_and_half_lines(run):
    said(run, {"conflict-0": ("Oslo", "Hanoi", "Oslo")})
    lines = (run / "samples.jsonl").read_text(encoding="utf-8")
    second = {"task": "capitals", "id": "conflict-0", "arm": "off", "text": "Hanoi"}
    (run / "samples-2.jsonl").write_text(
        json.dumps({"pass": "x", "samples": 3}) + "\n" + json.dumps(second) + "\n" + '{"task": "capi', encoding="utf-8"
    )
    (run / "samples.jsonl").write_text(lines.replace("\n", "\n\n"), encoding="utf-8")
    (choice,) = choose(run, 5)
    (found,) = choice.items
    kept = [sample["text"] for arm, sample in found.samples.items() if arm == "off"]
    assert len(kept) == 1 and choice.unread == 1
    assert "1 line of the run could not be read" in browser(read_runs([run])[0], [choice])


def test_line_separators_inside_texts_do_not_break_lines(run):
    said(run, {"conflict-0": ("one\u2028two\x0bthree\x85Oslo", "Hanoi", "Oslo")})
    (choice,) = choose(run, 1)
    assert choice.unread == 0 and choice.items[0].verdicts["off"] == "memory"


def test_a_run_without_samples_has_no_items(run):
    (run / "samples.jsonl").unlink()
    assert choose(run, 5) == []
    assert "<h2>Items" not in write_report([run], items=5, png=False).read_text(encoding="utf-8")


# --- showing ---


def test_tokens_are_shaded_and_switched_ones_marked(run):
    tokens = {"text": ["Han", "oi", " ok", "</s>"], "gain": [-3.0, 0.0, 2.9, None], "tau": [0.0, 1.0, 1.0, 1.0]}
    sample = {"task": "capitals", "id": "conflict-0", "arm": "off", "text": "Hanoi ok", "finish": "stop"}
    write_lines(run / "samples.jsonl", [{**sample, "tokens": {**tokens, "switched": [1, 0, 0, 0]}}])
    html = browser(read_runs([run])[0], choose(run, 1))
    assert '<span class="ck-t ck-g0 ck-on" title="gain −3.00, tau 0.00"><bdi>Han</bdi></span><bdi>oi</bdi>' in html
    assert ' <span class="ck-t ck-g8" title="gain +2.90, tau 1.00"><bdi>ok</bdi></span>' in html
    assert "‹end›" in html and "&lt;/s&gt;" not in html


@pytest.mark.parametrize("tokens", [None, {}, {"text": ["a"], "gain": []}, {"text": 3}, [1]])
def test_a_trace_that_does_not_fit_leaves_the_text(run, tokens):
    sample = {"task": "capitals", "id": "conflict-0", "arm": "off", "text": "plainly Oslo", "tokens": tokens}
    write_lines(run / "samples.jsonl", [sample])
    assert "<bdi>plainly Oslo</bdi>" in browser(read_runs([run])[0], choose(run, 1))


def test_what_does_not_fit_is_counted(run):
    found, choices = read_runs([run])[0], choose(run, 20)
    assert "20 items of 20" in browser(found, choices) and "0 not shown" in browser(found, choices)
    small = browser(found, choices, room=9000)
    shown = small.count("<details")
    assert 0 < shown < 20 and f"{20 - shown} not shown" in small and len(small) < 10_000


def test_long_answers_are_cut_and_counted(run):
    count = 500
    tokens = {"text": [" a"] * count, "gain": [1.0] * count, "tau": [1.0] * count, "switched": [0] * count}
    sample = {"task": "capitals", "id": "conflict-0", "arm": "off", "text": "a" * count, "finish": "length"}
    write_lines(run / "samples.jsonl", [{**sample, "tokens": tokens}])
    assert "(+380 tokens)" in browser(read_runs([run])[0], choose(run, 1))


def test_no_benchmark_text_when_no_items_are_asked_for(tmp_path):
    run = write_run(tmp_path / "run", tasks=("capitals",), per_state=3)
    items = rows(run / "items.jsonl")
    for item in items:
        item |= {"question": "SECRET question", "context": "SECRET passage", "id": f"SECRET {item['id']}"}
        item["meta"] = {"state": item["state"]}
    write_lines(run / "items.jsonl", items)
    samples = [{**row, "id": f"SECRET {row['id']}", "text": "SECRET answer"} for row in rows(run / "samples.jsonl")]
    write_lines(run / "samples.jsonl", samples)
    path = write_report([run], tmp_path / "out", items=0, png=False)
    assert all("SECRET" not in file.read_text(encoding="utf-8") for file in path.parent.iterdir())
    assert "SECRET question" in write_report([run], tmp_path / "out", items=1, png=False).read_text(encoding="utf-8")


def test_the_state_and_verdicts_stand_in_the_summary(run):
    said(run, {"conflict-0": ("Oslo", "Hanoi", "nothing")})
    (summary,) = re.findall(r"<summary>.*?</summary>", browser(read_runs([run])[0], choose(run, 1)))
    assert "conflict" in summary and "◆1 ■1 ○1" in summary and "1 memory, 1 passages, 1 neither" in summary
