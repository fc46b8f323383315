"""benchmarks/dial.py: areas, levels and bootstrap where the true answer is known; the split; a report end to end."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ckcontrol.cli.eval.run import split_tasks
from ckcontrol.eval.figures.cells import Cell
from ckcontrol.eval.running.arms import arms_for, method_names
from ckcontrol.eval.tasks.load import load_task

from .invented_run import arms, write_run

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def dial(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("dial")


@pytest.fixture
def figures(dial: Any) -> Any:
    return importlib.import_module("dial_figures")


def cell(values: Any, metric: str, prefix: str = "q", copies: int = 1, start: int = 0) -> Cell:
    """One row per value and copy; the copies of a value are one question."""
    out = Cell()
    for i, value in enumerate(values, start):
        for copy in range(copies):
            out.rows[f"{prefix}{i}.{copy}"] = (f"{prefix}{i}", {metric: (float(value), 1.0)})
    return out


# --- areas ------------------------------------------------------------------------------------------------------------


def test_the_staircase_by_hand(figures: Any) -> None:
    """0.9 up to p = 0.2, then 0.5 up to 0.6, then nothing; a worse setting in between adds nothing."""
    parr, helpful = np.array([[0.6, 0.2], [0.2, 0.6]]), np.array([[0.5, 0.9], [0.9, 0.5]])
    assert figures.staircase(parr, helpful) == pytest.approx([0.2 * 0.9 + 0.4 * 0.5] * 2)
    assert figures.staircase(np.array([0.6, 0.4, 0.2]), np.array([0.5, 0.3, 0.9])) == pytest.approx(0.38)
    assert figures.staircase(np.array([1.0]), np.array([1.0])) == pytest.approx(1)


def test_the_lots_by_hand(figures: Any) -> None:
    """Between the two settings a straight line; a setting below the line adds nothing, one above it does."""
    two = 0.2 * 0.9 + 0.4 * (0.9 + 0.5) / 2
    assert figures.hull(np.array([0.6, 0.2]), np.array([0.5, 0.9])) == pytest.approx(two)
    assert figures.hull(np.array([0.6, 0.4, 0.2]), np.array([0.5, 0.6, 0.9])) == pytest.approx(two)
    above = 0.2 * 0.9 + 0.2 * (0.9 + 0.8) / 2 + 0.2 * (0.8 + 0.5) / 2
    assert figures.hull(np.array([[0.6, 0.4, 0.2]] * 2), np.array([[0.5, 0.8, 0.9]] * 2)) == pytest.approx([above] * 2)


def test_areas_are_what_their_definition_says(figures: Any) -> None:
    rng = np.random.default_rng(0)
    parr, helpful = rng.random((40, 5)), rng.random((40, 5))
    levels = (np.arange(4000) + 0.5) / 4000
    stairs, lots = figures.staircase(parr, helpful), figures.hull(parr, helpful)
    for p, h, area, mixed in zip(parr, helpful, stairs, lots, strict=True):
        best = [max([y for x, y in zip(p, h, strict=True) if x >= level], default=0.0) for level in levels]
        assert area == pytest.approx(np.mean(best), abs=1e-3)
        shares = np.linspace(0, 1, 101)[:, None, None]
        x, y = (shares * v[:, None] + (1 - shares) * v[None, :] for v in (p, h))  # every pair, every lot
        drawn = [max(y[x >= level], default=0.0) for level in levels[::40]]
        assert mixed == pytest.approx(np.mean(drawn), abs=0.01)
    assert (lots >= stairs - 1e-12).all()


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def test_the_interval_of_a_difference_of_areas_is_that_of_means_where_it_is_one(figures: Any) -> None:
    """Where ParR is 1 at every setting, the area is the mean of helpful, and the standard error is in any textbook."""
    rng = np.random.default_rng(1)
    a, b = rng.random(120) < 0.7, rng.random(120) < 0.5
    sure = [cell(np.ones(80), "parr", "c")] * 2
    parr, helpful, t, groups = figures.rates(sure, [cell(a, "accuracy"), cell(b, "accuracy")])
    areas = [figures.staircase(parr[:, [i]], helpful[:, [i]]) for i in (0, 1)]
    found = figures.spread(areas[0] - areas[1], t, groups)
    step = a.astype(float) - b
    half = t * step.std() / math.sqrt(len(step))
    assert groups == 200
    assert found["difference"] == pytest.approx(step.mean(), abs=1e-6)
    assert found["high"] - found["difference"] == pytest.approx(half, rel=0.06)
    assert figures.spread(areas[0] - areas[0], t, groups) == {"difference": 0, "low": None, "high": None}


def test_questions_are_drawn_whole(figures: Any) -> None:
    """Three copies of every row tell nothing new: the same interval. As questions of their own they would."""
    rng = np.random.default_rng(2)
    known, told = rng.random(60) < 0.6, rng.random(60) < 0.6

    def width(copies: int, repeat: int) -> float:
        cells = [cell(list(v) * repeat, m, p, copies) for v, m, p in ((known, "parr", "c"), (told, "accuracy", "h"))]
        parr, helpful, t, groups = figures.rates([cells[0]], [cells[1]])
        found = figures.spread(figures.staircase(parr, helpful), t, groups)
        return float(found["high"] - found["low"])

    assert width(3, 1) == pytest.approx(width(1, 1), rel=1e-9)
    assert width(1, 3) < 0.7 * width(1, 1)


def test_intervals_of_areas_hold_the_truth(figures: Any) -> None:
    """The area of the settings (0.4, 0.9) and (0.8, 0.5), 90 questions each: 0.56. Seeded."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(200):
        sides = [
            [cell(rng.random(90) < rate, metric, prefix) for rate in rates]
            for metric, prefix, rates in (("parr", "c", (0.4, 0.8)), ("accuracy", "h", (0.9, 0.5)))
        ]
        parr, helpful, t, groups = figures.rates(*sides, 300)
        found = figures.spread(figures.staircase(parr, helpful), t, groups)
        held += found["low"] <= 0.56 <= found["high"]
    assert 182 <= held <= 199


# --- levels, mixtures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "down", "reversals", "levels"),
    [
        ((0, 0, 20, 21, 40), 0, 0, 3),
        ((0, 20, 19, 40), 1, 0, 3),
        ((0, 30, 10, 40), 1, 1, 3),
        ((40, 20, 0), 2, 3, 1),
        ((7, 7, 7), 0, 0, 1),
    ],
)
def test_levels_and_reversals(figures: Any, memory: Any, down: int, reversals: int, levels: int) -> None:
    """Of 40 questions, the first so many are answered from memory."""
    found = figures.turned([cell(np.arange(40) < count, "mr") for count in memory])
    assert (found["down"], found["reversals"], found["levels"]) == (down, reversals, levels)
    assert found["mr"] == [pytest.approx(count / 40) for count in memory]


def test_a_setting_without_a_figure_is_no_level(figures: Any) -> None:
    found = figures.turned([cell(np.zeros(40), "mr"), Cell(), cell(np.ones(40), "mr")])
    assert (found["mr"], found["levels"]) == ([0, None, 1], 2)


def test_the_mixture_gives_every_state_the_same_weight(figures: Any) -> None:
    answers = figures.Answers.__new__(figures.Answers)
    rights = {"conflict": [1] * 10, "agree": [1] * 10, "helpful": [0] * 80, "irrelevant": [1, 0] * 5, "noisy": [0] * 10}
    answers.cells = {("facts", state, "off"): cell(v, "accuracy", state) for state, v in rights.items()}
    found = figures.figure(answers.mixture("off"), "accuracy")
    assert found["value"] == pytest.approx(0.5)
    weights = [row["accuracy"][1] for _, row in answers.mixture("off").rows.values()]
    assert sum(weights) == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))  # effective observations
    assert figures.figure(answers.mixture("off", ["conflict", "helpful"]), "accuracy")["value"] == pytest.approx(0.5)


def test_verdicts_are_corrected(figures: Any) -> None:
    row = {"difference": 0.1, "low": 0.01, "high": 0.2}
    found = figures.judged([row | {"p": 0.03}, row | {"p": 0.01, "difference": -0.1}, row | {"p": 0.5}])
    assert [line["verdict"] for line in found] == ["even", "worse", "even"]
    assert figures.judged([row])[0]["verdict"] == "better"


# --- split, methods, command, report ----------------------------------------------------------------------------------


def test_the_halves_are_disjoint_and_read_again(dial: Any, tmp_path: Path) -> None:
    count = dial.write_facts(None, tmp_path / "facts.jsonl")
    every, half = load_task("facts").facts, load_task(f"facts={tmp_path / 'facts.jsonl'}").facts
    assert {fact.id for fact in half} == {fact.id for fact in every if dial.in_report_half(fact.id)}
    assert (len(half), 0.4 < count / len(every) < 0.6) == (count, True)
    names = ("France", "Austria", "Norway", "Japan")
    assert [dial.in_report_half(f"capital/{name}") for name in names] == [True, True, False, False]
    again = tmp_path / "again.jsonl"
    assert dial.write_facts(str(tmp_path / "facts.jsonl"), again) == count
    assert again.read_bytes() == (tmp_path / "facts.jsonl").read_bytes()


def test_every_method_is_an_arm_of_its_name(figures: Any) -> None:
    known = [name for name in figures.METHODS if name.split("@")[0].split(":")[0] in method_names()]
    assert [arm.name for arm in arms_for(known)] == known
    assert len(set(figures.METHODS)) == len(figures.METHODS)
    listed = {arm for members in figures.FAMILIES.values() for arm in members}
    assert listed | {arm for members in figures.KNOBS.values() for arm in members} <= set(figures.METHODS)


def test_the_command(dial: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[list[str]] = []

    def popen(command: list[str], env: Any) -> Any:
        made.append(command)
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(dial.subprocess, "Popen", popen)
    given = ["dial.py", "run", "--data", "data", "--run", str(tmp_path), "--limit-scale", "0.1"]
    monkeypatch.setattr(dial.sys, "argv", given)
    dial.main()
    assert [command[-2:] for command in made] == [["--shard", "1/2"], ["--shard", "2/2"]]
    specs = split_tasks([made[0][made[0].index("--tasks") + 1]])
    assert [spec.split("=")[0] for spec in specs] == list(dial.LIMITS)
    assert len(load_task(specs[0]).facts) == 20


def test_the_report(dial: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    knob = (0.0, 0.25, 0.45, 0.5, 0.55, 0.75, 1.0)
    flat = ("off", "closed-book", "prompt", "cad:cad_alpha=1", "dial-adaptive", "arr", "acd")
    listed = arms({"dial": knob, "ck-plug": (0.0, 0.25, 0.6, 1.0)}, flat)
    folder = write_run(tmp_path / "a", tasks=("facts", "counterfact"), listed=listed, per_state=48)
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    for item in items:
        item["meta"]["fact"] = item["id"]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    monkeypatch.setattr(dial.sys, "argv", ["dial.py", "report", "--run", str(folder), "--out", str(tmp_path / "out")])
    dial.main()
    found = json.loads((tmp_path / "out" / "figures.json").read_text(encoding="utf-8"))["a"]
    dropped = sum(item["task"] == "facts" and not dial.in_report_half(item["id"]) for item in items)
    assert found["left_out"] == dropped > 0
    assert {line["family"] for line in found["frontier"]} >= {"dial", "ck-plug", "arr", "acd", "no method"}
    assert {row["against"] for row in found["adaptive"]} == {"off", "closed-book", "arr", "acd"}
    assert {"grd", "nwcad", "dial@0.9"} <= set(found["missing"])
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert text.count("\n### ") == 7
    assert text.index("Worse, all of them") < text.index("Better, all of them") < text.index("### Every arm")
    (folder / "results.json").unlink()
    with pytest.raises(SystemExit, match="no finished run"):
        dial.main()
