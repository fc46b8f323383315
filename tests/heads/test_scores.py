"""Scores are read in the right orientation, filtered by split and relation, and refuse what is not theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckcontrol.errors import HeadsError
from ckcontrol.heads.finding.agreement import overlap, spearman, split_half
from ckcontrol.heads.finding.conflict_prompts import ConflictRecord
from ckcontrol.heads.finding.scores import HeadScores
from ckcontrol.heads.fingerprint import Fingerprint

MODEL = Fingerprint("llama", layers=2, heads=2, head_dim=8, hidden=16, vocabulary=32, weights="0" * 16)


def record(i: int, relation: str, split: str) -> ConflictRecord:
    return ConflictRecord(
        id=f"{relation}/{i}",
        relation=relation,
        subject=str(i),
        split=split,
        known="greedy",
        memory="m",
        aliases=("m",),
        context="c",
        clean="",
        gold="",
        irrelevant="",
        conflict={},
        other_subject={},
        other_answer={},
    )


def example(memory: list[float], context: list[float], **more: list[float]) -> dict[str, Any]:
    row = {"substitution": {"memory_logit": memory, "context_logit": context, **more}}
    return {"memory": row, "context": row}


@pytest.fixture
def scores() -> HeadScores:
    """Head (0, 0) loses memory's logit when corrupted, head (1, 1) the context's, the others nothing."""
    examples = [
        example([-2, 0, 0, 0.5], [1, 0, 0, -3], direct=[-1, 0, 0, 1]),
        example([-4, 0, 0, 0.5], [1, 0, 0, -1], direct=[-1, 0, 0, 1]),
        example([0, 0, 0, 0.5], [1, 0, 0, -2], direct=[-1, 0, 0, 1]),
    ]
    examples[0]["memory"] = {**examples[0]["memory"], "qa": {"memory_logit": [9, 0, 0, 0], "context_logit": [0] * 4}}
    records = [record(0, "capital", "find"), record(1, "capital", "dev"), record(2, "currency", "find")]
    return HeadScores(MODEL, {"formats": ["substitution", "qa"], "known": "ranked"}, records, examples)


def test_positive_promotes(scores: HeadScores) -> None:
    memory, context = scores.importance("memory"), scores.importance("context")
    assert memory[0, 0] == pytest.approx(3.0) and memory[1, 1] == pytest.approx(-2.5)
    assert context[1, 1] == pytest.approx(2.5) and context[0, 0] == pytest.approx(-3.0)
    assert scores.top("memory", 3) == [(0, 0)] and scores.top("context", 3) == [(1, 1)]
    assert scores.importance("memory", column="direct")[0, 0] == 1


def test_statistics(scores: HeadScores) -> None:
    stats = scores.statistics("memory")
    values = np.array([3.0, 5.0, 1.0])
    assert stats.count == 3 and stats.mean[0, 0] == pytest.approx(values.mean())
    assert stats.error[0, 0] == pytest.approx(values.std(ddof=1) / np.sqrt(3))
    assert stats.agreement[0, 0] == 1 and np.isnan(stats.split_half)
    one = scores.statistics("memory", split="dev")
    assert one.count == 1 and np.isnan(one.error).all()


def test_subsets(scores: HeadScores) -> None:
    assert scores.values("memory", split="find")[:, 0, 0].tolist() == [3.0, 1.0]
    assert scores.values("memory", relations=["currency"])[:, 0, 0].tolist() == [1.0]
    assert len(scores.values("memory", form="qa")) == 1, "examples that lack a format are left out"
    for options, words in (
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"relations": ["river"]}, r"no scores for relations \['river'\]"),
        ({"column": "paths"}, "Did you mean 'path'"),
        ({"form": "QA"}, "form='QA'"),
        ({"column": "gradient"}, "no example of .*column='gradient'"),
        ({"split": "test"}, "no example of .*split='test'"),
    ):
        with pytest.raises(HeadsError, match=words):
            scores.values("memory", **options)
    with pytest.raises(HeadsError, match="source='heads'"):
        scores.values("heads")


def test_the_sign_filter_wants_every_format(scores: HeadScores) -> None:
    assert scores.consistent("memory", ["substitution"])[0, 0]
    assert not scores.consistent("memory")[0, 0], "in qa it speaks against memory"


def test_the_file_comes_back(scores: HeadScores, tmp_path: Path) -> None:
    file = tmp_path / "heads.json"
    file.write_text(scores.to_json(), encoding="utf-8")
    again = HeadScores.load(file)
    assert again.to_json() == scores.to_json() and again.model == MODEL and again.formats == scores.formats
    assert np.array_equal(again.values("memory"), scores.values("memory"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(kind="mask"), "not a file of head scores"),
        (lambda d: d.update(schema=9), "schema 9"),
        (lambda d: d["examples"].pop(), "3 records but 2 rows"),
        (lambda d: d["examples"][0]["memory"]["substitution"]["memory_logit"].pop(), "damaged"),
        (lambda d: d["model"].pop("heads"), "fingerprint"),
        (lambda d: d.pop("records"), "damaged"),
        (lambda d: d["settings"].pop("formats"), "damaged"),
    ],
)
def test_a_damaged_file_is_refused(scores: HeadScores, tmp_path: Path, change: Any, words: str) -> None:
    data = json.loads(scores.to_json())
    change(data)
    (tmp_path / "heads.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(HeadsError, match=words):
        HeadScores.load(tmp_path / "heads.json")


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(HeadsError, match="cannot be read"):
        HeadScores.load(tmp_path / "none.json")
    (tmp_path / "text").write_text("heads", encoding="utf-8")
    with pytest.raises(HeadsError, match="not JSON"):
        HeadScores.load(tmp_path / "text")


# --- agreement ---------------------------------------------------------------------------------------------------


def test_rank_correlation() -> None:
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(a, a**3) == pytest.approx(1) and spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, np.array([1.0, 2.0, 2.0, 3.0])) == pytest.approx(0.948683)  # ties: scipy.stats.spearmanr
    assert np.isnan(spearman(a, np.ones(4)))


def test_split_halves_tell_signal_from_noise() -> None:
    draw = np.random.default_rng(0)
    signal = draw.normal(size=(1, 10, 30))
    noise = draw.normal(size=(200, 10, 30))
    assert split_half(noise + signal) > 0.95
    assert abs(split_half(noise)) < 0.15
    assert np.isnan(split_half(noise[:3]))
    holes = noise + signal
    holes[:50, 0, 0] = np.nan
    assert split_half(holes) == pytest.approx(split_half(holes[50:]))


def test_overlap_against_chance() -> None:
    first = {(0, i) for i in range(10)}
    same = overlap(first, first, 270)
    assert (same.shared, same.jaccard) == (10, 1.0) and same.p < 1e-15
    apart = overlap(first, {(1, i) for i in range(10)}, 270)
    assert apart.jaccard == 0 and apart.p == 1
    draw = np.random.default_rng(0)
    hits = [len({*draw.choice(20, 5, replace=False)} & set(range(5))) >= 2 for _ in range(4000)]
    exact = overlap({(0, i) for i in range(5)}, {(0, i) for i in (3, 4, 5, 6, 7)}, 20)
    assert exact.p == pytest.approx(np.mean(hits), abs=0.03)
