"""Files of a run that were damaged: each is refused by file and line, before a figure is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckcontrol.cli.main import main
from ckcontrol.errors import EvalError
from ckcontrol.eval.report.answers import choose
from ckcontrol.eval.run_files import SampleFile, check_same, items, lines, read_card, samples
from ckcontrol.eval.running.runner import merge
from tests.eval import small_run

Lines = list[bytes]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of two passes."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(small_run.run()))
    (run / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in small_run.items()))
    made = small_run.samples()
    with SampleFile(run / "samples.jsonl") as store:
        store.append("one", made[:10])
        store.append("two", made[10:])
    return run


def change(path: Path, how: Callable[[Lines], Lines]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in how(path.read_bytes().split(b"\n")[:-1])))


def with_fields(**fields: Any) -> Callable[[Lines], Lines]:
    """Change fields of the third line."""
    return lambda rows: [*rows[:2], json.dumps(json.loads(rows[2]) | fields).encode(), *rows[3:]]


def put(line: bytes) -> Callable[[Lines], Lines]:
    return lambda rows: [*rows[:2], line, *rows[3:]]


SAMPLES = {
    "missing": (lambda rows: rows[:2] + rows[3:], "the pass that line 10 closes holds 9 samples, not 10"),
    "added": (lambda rows: rows[:2] + rows[1:], "the pass that line 12 closes holds 11 samples, not 10"),
    "twice": (lambda rows: [*rows[:2], rows[1], *rows[3:]], "the pass that line 11 closes holds a sample twice"),
    "pass twice": (lambda rows: rows[:11] + rows, "line 22 closes a pass that is there twice"),
    "count of text": (lambda rows: [*rows[:10], b'{"pass": "one", "samples": "10"}', *rows[11:]], "line 11 is damaged"),
    "no count": (lambda rows: [*rows[:10], b'{"pass": "one"}', *rows[11:]], "line 11 is damaged"),
    "key of a list": (lambda rows: [*rows[:10], b'{"pass": [1], "samples": 10}', *rows[11:]], "line 11 is damaged"),
    "cut": (put(b'{"task": "capi'), "line 3 is damaged"),
    "list": (put(b"[1, 2]"), "line 3 is damaged"),
    "number": (put(b"7"), "line 3 is damaged"),
    "null": (put(b"null"), "line 3 is damaged"),
    "nested": (put(b'{"task":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "line 3 is damaged"),
    "not UTF-8": (put(b'{"task": "\xff"}'), "line 3 is damaged"),
    "NaN": (put(b'{"task": "t", "id": "i", "arm": "a", "scores": [NaN], "lengths": [1]}'), "line 3 is damaged"),
    "foreign": (put(b'{"hello": "world"}'), "line 3 has no 'task'"),
    "no answer": (put(b'{"task": "t", "id": "i", "arm": "a"}'), "line 3 has neither text, scores nor error"),
    "arm of a list": (with_fields(arm=["off"]), "line 3 holds a wrong 'arm'"),
    "text of a number": (with_fields(text=5), "line 3 holds a wrong 'text'"),
    "length of a text": (with_fields(n="5"), "line 3 holds a wrong 'n'"),
    "error of an object": (with_fields(error={}), "line 3 holds a wrong 'error'"),
    "tokens of a list": (with_fields(tokens=[1]), "line 3 holds a wrong 'tokens'"),
    "token of a number": (with_fields(tokens={"text": [1]}), "line 3 holds wrong 'text'"),
    "switched of texts": (with_fields(tokens={"switched": ["1"]}), "line 3 holds wrong 'switched'"),
    "tokens of two lengths": (
        with_fields(tokens={"text": ["a"], "switched": [1, 0]}),
        "line 3 holds tokens of different",
    ),
    "scores of texts": (with_fields(scores=["1"], lengths=[1]), "line 3 holds wrong 'scores'"),
    "lengths of 0": (with_fields(scores=[1.0], lengths=[0]), "line 3 holds wrong 'scores'"),
}


@pytest.mark.parametrize("what", SAMPLES)
def test_damaged_samples_are_refused_by_line(what: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how, message = SAMPLES[what]
    change(folder / "samples.jsonl", how)
    for read in (lambda: list(samples(folder)), lambda: merge([folder], folder)):
        with pytest.raises(EvalError) as caught:
            read()
        assert str(caught.value).startswith(f"{folder / 'samples.jsonl'}: {message}")
    with pytest.raises(EvalError, match="Restore the file"), SampleFile(folder / "samples.jsonl"):
        pass
    assert main(["eval", "compare", str(folder), str(folder)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert choose(folder, 5)  # a report shows what is left, and counts the rest
    assert not (folder / "results.json").exists()


def test_more_fields_than_known_are_kept(folder: Path) -> None:
    change(folder / "samples.jsonl", with_fields(mine={"x": 1}))
    assert list(samples(folder))[2]["mine"] == {"x": 1}


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_a_tail_cut_short_is_left_out(cut: int, folder: Path) -> None:
    path = folder / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(list(samples(folder))) == 10
    with SampleFile(path) as store:
        assert list(store.done) == ["one"]
    assert len(list(lines(path))) == 11


def test_a_file_that_knows_no_passes_is_read_whole(folder: Path) -> None:
    path = folder / "samples.jsonl"
    change(path, lambda rows: [row for row in rows if b'"pass"' not in row])
    assert list(samples(folder)) == small_run.samples()
    change(path, with_fields(text=5))
    with pytest.raises(EvalError, match="line 3 holds a wrong 'text'"):
        list(samples(folder))


ITEMS = {
    "twice": (lambda rows: [*rows[:2], rows[1], *rows[3:]], "line 3: the record 'France/conflict' is there twice"),
    "no task": (with_fields(task=None), "line 3: the record 'Japan/conflict' has no task"),
    "state": (with_fields(meta={"state": "x"}), "line 3: no state 'x'"),
    "question": (with_fields(question=[1]), "line 3: question=[1] is not a text"),
    "list": (put(b"[]"), "line 3 is damaged"),
    "nested": (put(b"[" * 100_000), "line 3 is damaged"),
    "not UTF-8": (put(b'{"id": "\xff"}'), "line 3 is damaged"),
    "NaN": (put(b'{"id": NaN}'), "line 3 is damaged"),
}


@pytest.mark.parametrize("what", ITEMS)
def test_damaged_items_are_refused_by_line(what: str, folder: Path) -> None:
    how, message = ITEMS[what]
    change(folder / "items.jsonl", how)
    for read in (lambda: list(items(folder)), lambda: merge([folder], folder)):
        with pytest.raises(EvalError) as caught:
            read()
        assert str(caught.value).startswith(f"{folder / 'items.jsonl'}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds list"),
        ("[" * 100_000, "cannot be read"),
        ("{", "cannot be read"),
        ("{}", "holds wrong arms"),
        (json.dumps(small_run.run() | {"arms": [{"name": 1}]}), "holds wrong arms"),
        (json.dumps(small_run.run() | {"arms": [small_run.arm("off")] * 2}), "holds wrong arms"),
        (json.dumps(small_run.run() | {"tasks": []}), "holds wrong tasks"),
        (json.dumps(small_run.run() | {"options": None}), "holds wrong options"),
    ],
)
def test_a_damaged_card_is_refused(text: str, message: str, folder: Path) -> None:
    (folder / "run.json").write_text(text)
    for read in (lambda: read_card(folder), lambda: merge([folder], folder), lambda: check_same(folder, {})):
        with pytest.raises(EvalError) as caught:
            read()
        assert str(caught.value).startswith(f"{folder / 'run.json'} {message}")


LONG = "Answer the question in a few words, and say nothing else whatever you are asked. " * 3


@pytest.mark.parametrize(
    ("name", "there", "here", "said"),
    [
        (
            "prompts",
            {"base": LONG + "one"},
            {"base": LONG + "two"},
            "prompts.base is ...'*one' there and ...'*two' here",
        ),
        ("arms", None, [small_run.arm("off")], "arms goes on there with {'name': 'closed-book'*"),
        (
            "arms",
            None,
            [small_run.arm("off"), small_run.arm("x")],
            "arms[1].method is 'closed-book' there and 'x' here",
        ),
        ("seed", 0, 1, "seed is 0 there and 1 here"),
        ("model", "a\u200b", "a", r"model is 'a\u200b' there and 'a' here"),
    ],
)
def test_a_difference_is_shown_where_it_is(name: str, there: Any, here: Any, said: str, folder: Path) -> None:
    card = small_run.run() | ({} if there is None else {name: there})
    (folder / "run.json").write_text(json.dumps(card))
    with pytest.raises(EvalError) as caught:
        check_same(folder, card | {name: here})
    told = str(caught.value)
    at = 0
    for part in said.split("*"):
        assert part in told[at:], told
        at = told.index(part, at)
