"""Two runs on the samples both have."""

from __future__ import annotations

from typing import Any

import pytest

from ckcontrol.errors import EvalError
from ckcontrol.eval.figures.cells import Cell, Place, collect
from ckcontrol.eval.figures.compare import compare

from . import small_run


def cells(*, arms: tuple[str, ...] | None = None, drop: int = 0, swap: tuple[str, str] = ("", "")) -> dict[Place, Cell]:
    lines = [line for line in small_run.samples() if arms is None or line["arm"] in arms]
    lines = [line | {"text": line["text"].replace(*swap)} if swap[0] else line for line in lines]
    return collect(small_run.items(), lines[drop:])


def rows(found: list[dict[str, Any]], **where: Any) -> list[dict[str, Any]]:
    return [row for row in found if all(row[key] == value for key, value in where.items())]


def test_a_run_equals_itself() -> None:
    found = compare(cells(), cells())
    assert found
    for row in found:
        assert row["arm_a"] == row["arm_b"]
        assert (row["difference"], row["p"], row["p_holm"], row["up"], row["down"]) == (0, 1, 1, 0, 0)
        assert row["a"] == row["b"]
        assert (row["only_a"], row["only_b"]) == (0, 0)


def test_what_changed_is_seen_where_it_changed() -> None:
    (row,) = rows(compare(cells(), cells(swap=("Rome", "nowhere"))), state="agree", arm_a="off", metric="accuracy")
    assert (row["a"], row["b"], row["difference"]) == (1, 0.666667, 0.333333)
    assert (row["up"], row["down"], row["ties"], row["n"], row["groups"]) == (1, 0, 2, 3, 3)
    assert row["low"] < row["difference"] < row["high"]


def test_two_arms_of_one_run() -> None:
    run = cells()
    found = compare(run, run, arms=[("ck-plug@0", "ck-plug@1"), ("ck-plug@0", "off")], metrics=["mr", "conr"])
    (row,) = rows(found, state="conflict", metric="mr", arm_b="ck-plug@1")
    assert (row["a"], row["b"], row["difference"]) == (0, 0.666667, -0.666667)
    assert row["p"] == 0.5
    assert row["p_holm"] == 1
    assert {row["metric"] for row in found} == {"mr", "conr"}
    assert {row["state"] for row in found} == {"conflict", "irrelevant"}


def test_only_common_samples_are_compared() -> None:
    (row,) = rows(compare(cells(), cells(drop=1)), state="conflict", arm_a="off", metric="parr")
    assert (row["n"], row["only_a"], row["only_b"]) == (2, 1, 0)
    assert row["a"] == row["b"] == 0  # the first answer was the one that named memory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": [("off", "of")]}, "no samples of arm 'of'. Did you mean 'off'"),
        ({"metrics": ["acuracy"]}, "no metric 'acuracy' to compare. Did you mean 'accuracy'"),
        ({"metrics": ["ppl_closed"]}, "no metric 'ppl_closed' to compare"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EvalError) as caught:
        compare(cells(), cells(), **options)
    assert message in str(caught.value)


def test_runs_without_anything_in_common_are_refused() -> None:
    with pytest.raises(EvalError, match="no sample in common"):
        compare(cells(arms=("off",)), cells(arms=("ck-plug@0",)))


def test_the_same_id_with_another_question_is_refused() -> None:
    others = [item | {"question": "How big is " + item["id"]} for item in small_run.items()]
    with pytest.raises(EvalError, match="is not the same: 'what is capital of france' and 'how big is france"):
        compare(cells(), collect(others, small_run.samples()))


def test_samples_in_common_that_define_no_figure_are_not_called_missing() -> None:
    blank = [item | {"par_answers": []} for item in small_run.items() if item["meta"]["state"] == "irrelevant"]
    run = collect(blank, small_run.samples())
    with pytest.raises(EvalError, match=r"accuracy: no figure on the samples .*no par_answers.*--metrics all"):
        compare(run, run, metrics=["accuracy"])
