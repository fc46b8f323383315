"""results.json of a run that can be counted by hand, and what must not change it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ckcontrol.errors import EvalError
from ckcontrol.eval.figures.aggregate import aggregate, results_bytes
from ckcontrol.eval.judging.measures import METRICS

from . import small_run


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return aggregate(small_run.run(), small_run.items(), small_run.samples())


def cell(results: dict[str, Any], state: str, arm: str) -> dict[str, Any]:
    (found,) = [c for c in results["cells"] if (c["state"], c["arm"]) == (state, arm)]
    return found


def value(results: dict[str, Any], state: str, arm: str, metric: str) -> Any:
    return cell(results, state, arm)["metrics"][metric]["value"]


def pair(results: dict[str, Any], arm: str, metric: str, against: str = "off", state: str = "conflict") -> Any:
    place = (state, arm, against, metric)
    (found,) = [p for p in results["pairs"] if (p["state"], p["arm"], p["against"], p["metric"]) == place]
    return found


def test_figures_by_hand(results: dict[str, Any]) -> None:
    third = pytest.approx(1 / 3, abs=1e-6)
    assert value(results, "conflict", "off", "parr") == third
    assert value(results, "conflict", "off", "mr") == third
    assert value(results, "conflict", "closed-book", "mr") == 1
    assert value(results, "conflict", "closed-book", "neither") == third
    assert value(results, "conflict", "ck-plug@0", "conr") == 1
    assert value(results, "conflict", "ck-plug@1", "accuracy") == pytest.approx(2 / 3, abs=1e-6)
    assert value(results, "agree", "ck-plug@1", "ignorance") == third
    assert value(results, "irrelevant", "ck-plug@0", "over_inclusion") == third
    assert value(results, "irrelevant", "off", "hit") == pytest.approx(2 / 3, abs=1e-6)


def test_shares_of_the_strict_mode_add_up(results: dict[str, Any]) -> None:
    for row in results["cells"]:
        if "parr" in row["metrics"]:
            total = sum(row["metrics"][name]["value"] for name in ("parr", "conr", "neither"))
            assert total == pytest.approx(1, abs=2e-6)


def test_every_figure_has_its_interval_and_number(results: dict[str, Any]) -> None:
    assert len(results["cells"]) == 10
    for row in results["cells"]:
        assert (row["n"], row["groups"], row["errors"]) == (3, 3, 0)
        for name, found in row["metrics"].items():
            assert name in METRICS
            assert set(found) == {"value", "low", "high", "n"}
            if found["low"] is not None:
                assert found["low"] <= found["value"] <= found["high"]
    mr = cell(results, "conflict", "closed-book")["metrics"]["mr"]
    assert mr["n"] == 2  # the third answer names neither
    assert mr["low"] < 0.5


def test_states_say_only_what_they_can(results: dict[str, Any]) -> None:
    assert not {"parr", "conr", "mr", "over_inclusion"} & set(cell(results, "agree", "off")["metrics"])
    assert "ignorance" not in cell(results, "conflict", "off")["metrics"]


def test_gates_and_perplexity(results: dict[str, Any]) -> None:
    """Every answer is three words and an end token; the policy acted on the name alone."""
    found = cell(results, "conflict", "ck-plug@0")["metrics"]
    assert found["gate"]["value"] == 0.25
    assert found["gate_answer"]["value"] == 1
    assert found["ppl_closed"]["value"] == pytest.approx(2.718282, abs=1e-6)
    assert found["length"]["value"] == 4
    assert found["eos"]["value"] == 1
    assert found["length"]["high"] <= 8


def test_order_and_start_do_not_matter(results: dict[str, Any]) -> None:
    lines, run = small_run.samples(), small_run.run() | {"started": "2001-02-03"}
    expected = results_bytes(results)
    for seed in range(3):
        random.Random(seed).shuffle(lines)
        assert results_bytes(aggregate(run, small_run.items()[::-1], iter(lines))) == expected


def test_bytes_are_json_without_dates(results: dict[str, Any]) -> None:
    data = results_bytes(results)
    assert data.endswith(b"}\n")
    assert b"2000-01-01" not in data
    assert b"NaN" not in data
    assert json.loads(data)["run"]["model"] == "invented"
    assert results_bytes(json.loads(data)) == data
    odd = results_bytes({"b": float("nan"), "a": "é", "c": [float("inf"), 0.1]})
    assert json.loads(odd) == {"a": "é", "b": None, "c": [None, 0.1]}
    assert "é".encode() in odd


def test_floats_are_rounded_once(results: dict[str, Any]) -> None:
    def floats(node: Any) -> Any:
        if isinstance(node, dict):
            node = list(node.values())
        if isinstance(node, list):
            return [x for inner in node for x in floats(inner)]
        return [node] if isinstance(node, float) else []

    found = floats([results["cells"], results["pairs"], results["curves"]])
    assert len(found) > 500
    assert all(x == round(x, 6) and str(x) != "-0.0" for x in found)


def test_failures_are_counted_and_never_averaged(results: dict[str, Any]) -> None:
    lines = small_run.samples()
    at = next(i for i, line in enumerate(lines) if (line["arm"], line["id"]) == ("off", "France/conflict"))
    lines[at] = {"task": "capitals", "id": "France/conflict", "arm": "off", "error": "the model produced NaN"}
    broken = aggregate(small_run.run(), small_run.items(), lines)
    found = cell(broken, "conflict", "off")
    assert (found["n"], found["groups"], found["errors"]) == (2, 2, 1)
    assert found["metrics"]["parr"]["value"] == 0.5
    assert pair(broken, "ck-plug@1", "parr")["n"] == 2
    assert pair(results, "ck-plug@1", "parr")["n"] == 3


def test_the_first_of_several_samples_counts(results: dict[str, Any]) -> None:
    again = [small_run.sample("Italy/conflict", "off", "it is Oslo."), small_run.sample("Italy/conflict", "off", "?")]
    assert results_bytes(aggregate(small_run.run(), small_run.items(), small_run.samples() + again)) == results_bytes(
        results
    )
    changed = aggregate(small_run.run(), small_run.items(), again + small_run.samples())
    assert value(changed, "conflict", "off", "parr") == 0


def test_unknown_items_and_other_lines_are_left_out(results: dict[str, Any]) -> None:
    more = [small_run.sample("Atlantis/conflict", "off", "x"), {"pass": "key", "seconds": 1.5}]
    assert results_bytes(aggregate(small_run.run(), small_run.items(), more + small_run.samples())) == results_bytes(
        results
    )


def test_an_unfinished_run_says_how_much_it_holds() -> None:
    found = aggregate(small_run.run(), small_run.items(), small_run.samples()[:2])
    (row,) = found["cells"]
    assert (row["n"], row["metrics"]["parr"]["n"]) == (2, 2)
    assert aggregate(small_run.run(), small_run.items(), [])["cells"] == []


def test_a_sample_without_an_answer_is_refused() -> None:
    line = {"task": "capitals", "id": "Italy/conflict", "arm": "off"}
    with pytest.raises(EvalError, match="'Italy/conflict' has no text"):
        aggregate(small_run.run(), small_run.items(), [line])


def test_pairs_against_off_and_closed_book(results: dict[str, Any]) -> None:
    found = pair(results, "ck-plug@1", "parr")
    assert found["difference"] == pytest.approx(1 / 3, abs=1e-6)
    assert (found["up"], found["down"], found["ties"], found["n"], found["p"]) == (1, 0, 2, 3, 1)
    assert found["low"] < 0 < found["high"]
    assert pair(results, "ck-plug@0", "mr")["difference"] == pytest.approx(-1 / 3, abs=1e-6)
    assert pair(results, "off", "parr", "closed-book")["difference"] == pytest.approx(-1 / 3, abs=1e-6)
    assert not [p for p in results["pairs"] if p["arm"] == p["against"]]
    assert {p["metric"] for p in results["pairs"] if p["against"] == "closed-book"} == {"accuracy", "parr"}
    assert all(p["p_holm"] >= p["p"] for p in results["pairs"])


def test_the_curve_and_its_summary(results: dict[str, Any]) -> None:
    (curve,) = results["curves"]
    assert (curve["task"], curve["state"], curve["method"]) == ("capitals", "conflict", "ck-plug")
    assert [(p["alpha"], p["arm"], p["mr"]["value"]) for p in curve["points"]] == [
        (0, "ck-plug@0", 0),
        (1, "ck-plug@1", 0.666667),
    ]
    found = curve["summary"]
    assert found["mr_range"] == [0, 0.666667]
    assert (found["ceiling_memory"], found["ceiling_context"]) == (0.666667, 1)
    assert (found["gap_memory"], found["gap_context"], found["violations"]) == (0, 0, 0)
    assert found["harm"] == {"agree": 0.333333, "irrelevant": 0.333333}


def test_choices_by_likelihood() -> None:
    """Two sayings to end; the third record tells what role each choice has."""
    places = [("a", [-1.0, -2.0], [1, 4]), ("b", [-3.0, -1.0], [1, 1]), ("c", [-2.0, -2.0], [1, 1])]
    items = [
        {
            "task": "endings",
            "id": key,
            "question": f"Say {key}",
            "ctx_answers": ["x"],
            "par_answers": ["y"],
            "meta": {
                "choices": [" x", " y"],
                "answer_index": 0,
                "state": "conflict",
                "roles": ["contextual", "parametric"],
            },
        }
        for key, _, _ in places
    ]
    lines = [{"task": "endings", "id": k, "arm": "off", "scores": s, "lengths": n, "choice": 0} for k, s, n in places]
    found = aggregate({"arms": [small_run.arm("off")]}, items, lines)["cells"][0]["metrics"]
    third = pytest.approx(1 / 3, abs=1e-6)
    assert found["accuracy"]["value"] == third  # a tie is no preference
    assert found["accuracy_norm"]["value"] == 0  # -1 a token against -0.5
    assert found["margin"]["value"] == pytest.approx(-1 / 3, abs=1e-6)  # 1, -2, 0
    assert (found["parr"]["value"], found["conr"]["value"]) == (third, pytest.approx(2 / 3, abs=1e-6))
    with pytest.raises(EvalError, match="does not score 2 choices"):
        aggregate({}, items, [lines[0] | {"scores": [-1.0]}])


def test_several_gold_answers() -> None:
    item = {
        "task": "docs",
        "id": "1",
        "question": "When?",
        "context": "1856. 1900.",
        "ctx_answers": ["1900"],
        "par_answers": ["1856", "1857"],
        "meta": {"state": "noisy", "multi_gold": True},
    }
    for text, expected in (("1856 and 1857", 1), ("1856", 0), ("1856, 1857, 1900", 0)):
        line = {"task": "docs", "id": "1", "arm": "off", "text": text, "n": 3, "finish": "length"}
        found = aggregate({}, [item], [line])["cells"][0]["metrics"]
        assert found["set_em"]["value"] == expected
        assert found["eos"]["value"] == 0
        assert "gate" not in found
        assert found["length"] == {"value": 3, "low": None, "high": None, "n": 1}  # no limit known, one group


def test_nobody_named_an_answer() -> None:
    lines = [small_run.sample(f"{country}/conflict", "off", "unknown") for country in small_run.FACTS]
    found = aggregate(small_run.run(), small_run.items(), lines)["cells"][0]["metrics"]
    assert found["mr"] == {"value": None, "low": None, "high": None, "n": 0}
    assert found["ckplug_mr"] == found["mr"]
    assert found["neither"]["value"] == 1
    assert found["neither"]["low"] == pytest.approx(0.43850, abs=1e-4)  # Wilson, 3 of 3


@pytest.mark.parametrize(("state", "expected"), [("helpful", 1), ("agree", 1), ("irrelevant", None), ("plain", None)])
def test_where_passages_are_right_they_are_the_truth_that_is_missing(state: str, expected: float | None) -> None:
    item = {"task": "t", "id": "1", "question": "Who?", "ctx_answers": ["Ida Brandt"], "par_answers": []}
    item |= {"context": "Ida Brandt rows.", "meta": {"state": state}}
    for text, value in (("Ida Brandt", expected), ("Per Holm", expected and 0)):
        line = {"task": "t", "id": "1", "arm": "off", "text": text, "n": 3, "finish": "stop"}
        found = aggregate({}, [item], [line])["cells"][0]["metrics"]
        assert found.get("accuracy", {}).get("value") == value
