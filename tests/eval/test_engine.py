"""Engines: a server's replies become samples, and each method is timed alone."""

from __future__ import annotations

import pytest

from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.errors import EvalError
from ckcontrol.eval.records import Record
from ckcontrol.eval.run_files import read_json, samples
from ckcontrol.eval.running.arms import arms_for
from ckcontrol.eval.running.engine import Local, Served
from ckcontrol.eval.running.remote import Ask
from ckcontrol.eval.running.runner import run
from ckcontrol.eval.running.speed import measure_speed, one_arm_per_method
from ckcontrol.eval.tasks.load import Task

RECORDS = [Record(str(i), f"Who is {i}?", (f"{i} is Ann.",), ("Ann",), ("Bob",)) for i in range(5)]
TASK = Task("people", tuple(RECORDS), (), "ours", "ours", "0" * 64)


class Server:
    """Answers from the passage unless asked to remember; fails on one question."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []

    def answer(self, requests):
        self.asked += requests
        return [
            {"error": "HTTP 503: overloaded"}
            if ask.question == "Who is 3?"
            else {"text": "Bob" if ask.control.alpha == 1 else "Ann", "n": 1, "finish": "stop"}
            for ask in requests
        ]


def test_a_server_is_an_engine(tmp_path):
    server = Server()
    engine = Served(server, "remote", options=GenerateOptions(max_new_tokens=7))
    outcome = run(engine, [TASK], arms_for(["off", "ck-plug"], [1.0]), tmp_path, batch_size=2)
    assert outcome.errors == {"HTTP 503: overloaded": 2}
    assert {ask.max_new_tokens for ask in server.asked} == {7}
    cells = {cell["arm"]: cell for cell in read_json(tmp_path / "results.json")["cells"]}
    assert cells["off"]["errors"] == 1
    assert cells["off"]["metrics"]["conr"]["value"] == 1
    assert cells["ck-plug@1"]["metrics"]["parr"]["value"] == 1
    assert cells["ck-plug@1"]["metrics"]["parr"]["n"] == 4
    assert len(list(samples(tmp_path))) == 10


def test_a_server_is_not_asked_for_what_it_cannot(tmp_path):
    engine = Served(Server(), "remote", options=GenerateOptions())
    with pytest.raises(EvalError, match="compares no endings"):
        engine.run([Record("1", "x", choices=(" a", " b"), answer_index=0)], arms_for(["off"]), "base")
    with pytest.raises(EvalError, match="words its own prompts"):
        engine.run(RECORDS, arms_for(["prompt"]), "context-only")


def test_the_card_names_no_path(llama, tmp_path):
    engine = Local(*llama, str(tmp_path), options=GenerateOptions())
    assert engine.card()["model"] == tmp_path.name
    assert "trace" not in engine.card()["options"]


def test_a_prompt_that_does_not_fit_fails_alone(llama):
    engine = Local(*llama, "tiny", options=GenerateOptions(max_new_tokens=2))
    long = Record("long", "why " * 5000, ("a",), ("a",), ("b",))
    (bad, *_), (good, *_) = engine.run([long, RECORDS[0]], arms_for(["off"]), "base")
    assert "exceed" in bad["error"] or "tokens" in bad["error"]
    assert "text" in good


def test_speed_times_one_steered_arm_per_method(llama):
    arms = arms_for(["ck-plug", "off", "prompt", "adacad"], [0.5, 1.0])
    assert [arm.name for arm in one_arm_per_method(arms)] == ["off", "ck-plug@1", "adacad"]
    engine = Local(*llama, "tiny", options=GenerateOptions(max_new_tokens=3))
    told = measure_speed(engine, RECORDS[:2], arms, rounds=2)
    assert told["records"] == 2
    assert [row["arm"] for row in told["arms"]] == ["off", "ck-plug@1", "adacad"]
    assert all(row["tokens_per_s"] > 0 and row["against_off"] > 0 for row in told["arms"])
    assert told["arms"][0]["against_off"] == 1


def test_without_passages_every_control_is_off(llama):
    engine = Local(*llama, "tiny", options=GenerateOptions(max_new_tokens=4))
    arms = arms_for(["off", "cad", "ck-plug"], [0.0, 1.0])
    bare = Record("bare", "Who?", (), (), ("Ann",), state="closed")
    choice = Record("choice", "It is", choices=(" so", " not"), answer_index=0, cloze=True, state="closed")
    told, chosen, asked = engine.run([bare, choice, RECORDS[0]], arms, "base")
    assert [sample["text"] for sample in told] == [told[0]["text"]] * len(arms)
    assert not any(any(sample["tokens"]["switched"]) for sample in told)
    assert [sample["scores"] for sample in chosen] == [chosen[0]["scores"]] * len(arms)
    assert len({sample["text"] for sample in asked}) > 1
