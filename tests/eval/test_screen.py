"""Known, unknown or uncertain: every wording, greedily and by samples; and a screening that was stopped."""

from __future__ import annotations

import json

import pytest

from ckcontrol.cli.main import main
from ckcontrol.errors import EvalError
from ckcontrol.eval.items.states import StateFact
from ckcontrol.eval.running.screen import screen
from ckcontrol.eval.tasks.facts import load_facts
from ckcontrol.eval.tasks.load import load_task

FACTS = [
    StateFact(name, "in", name, f"Where is {name}?", "Peru", wordings=(f"Which country has {name}?",))
    for name in ("Lima", "Cusco", "Tacna", "Ica")
]
SAID = {"Lima": ("Peru", "Peru"), "Cusco": ("Chile", "no idea"), "Tacna": ("Peru", "Chile"), "Ica": ("Peru", "Peru")}


class Pupil:
    """An engine that always says the same, but for a city that it knows only when it does not guess."""

    def __init__(self, options, calls, breaks_at=None):
        self.options, self.calls, self.breaks_at = options, calls, breaks_at

    def card(self):
        return {"model": "pupil", "options": {}}

    def length(self, record, prompt):
        return len(record.question)

    def run(self, records, arms, prompt):
        if len(self.calls) == self.breaks_at:
            raise KeyboardInterrupt
        self.calls.append([record.id for record in records])
        made = []
        for record in records:
            place, _, name = record.id.partition("#")
            guesses = name == "Ica" and self.options.do_sample
            made.append([{"text": "Spain" if guesses else SAID[name][int(place)]}])
        return made


def ask(folder, calls, breaks_at=None, **keywords):
    return screen(FACTS, lambda options: Pupil(options, calls, breaks_at), folder, batch_size=3, **keywords)


def test_all_right_is_known_all_wrong_unknown_and_the_rest_uncertain(tmp_path):
    found = ask(tmp_path, [], samples=1)
    assert found.known == {"Lima": True, "Cusco": False}
    assert found.uncertain == {"Tacna", "Ica"}
    lines = [json.loads(line) for line in found.path.read_text().splitlines()]
    assert {line["id"]: (line["known"], line["right"], line["of"]) for line in lines} == {
        "Lima": (True, 4, 4),
        "Cusco": (False, 0, 4),
        "Tacna": (None, 2, 4),
        "Ica": (None, 2, 4),
    }
    assert ask(tmp_path / "greedy", [], samples=0).known == {"Lima": True, "Cusco": False, "Ica": True}


def test_a_stopped_screening_asks_nothing_twice(tmp_path):
    whole: list[list[str]] = []
    expected = ask(tmp_path / "whole", whole, samples=2)
    calls: list[list[str]] = []
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / "stopped", calls, breaks_at=2, samples=2)
    assert len(calls) == 2
    assert ask(tmp_path / "stopped", calls, samples=2).known == expected.known
    assert sorted(calls) == sorted(whole)
    with pytest.raises(EvalError, match="samples is 2 there and 3 here"):
        ask(tmp_path / "stopped", calls, samples=3)


def test_a_limit_takes_a_part_and_leaves_the_rest_out(tmp_path):
    found = ask(tmp_path, [], samples=0, limit=2)
    assert len(found.path.read_text().splitlines()) == 2
    assert found.known.keys() | found.uncertain == {fact.id for fact in FACTS}


def test_facts_of_tristate_become_a_set_for_any_model(tmp_path, capsys):
    rows = [
        {
            "fact_id": f"location_{i}",
            "answer_type": "location",
            "answer": a,
            "aliases": [a],
            "questions": [q, f"And {q}"],
        }
        for i, (a, q) in enumerate([("Peru", "where is Lima?"), ("Chile", "where is Arica?"), ("Norway", "and Oslo?")])
    ]
    rows.append({"fact_id": "location_9", "answer": "Oslo", "aliases": [], "questions": ["Is it Oslo?"]})
    path, out = tmp_path / "facts.jsonl", tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts, rejected, _ = load_facts(path)
    assert [fact.wordings for fact in facts] == [("And where is Lima?",), ("And where is Arica?",), ("And and Oslo?",)]
    assert "does not answer itself" in rejected[0].detail
    args = ["eval", "build-conflicts", str(path), "--out", str(out), "--screen", "tiny", "--samples", "1"]
    assert main(args) == 3  # one row is no fact
    told = capsys.readouterr().err
    assert told.index("Left out facts.jsonl, row 4: ") < told.index("Greedy answers: 0 of"), "before the model is asked"
    assert "3 facts asked: 0 known, 3 unknown, 0 uncertain" in told
    assert main([*args[:-4], "--screen", "no-such-model", "--types", "conflikt"]) == 2
    assert "no state 'conflikt' to build. Did you mean 'conflict'" in capsys.readouterr().err
    first = load_task(str(out)).records[0]
    assert (first.state, first.passages) == ("helpful", ("And where is Lima? It is Peru.",))
    assert main([*args, "--known", "x.json"]) != 0
    assert "Give one of them" in capsys.readouterr().err
