"""Heads known by construction are found with the right signs, pruning them flips answers, and runs resume exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckcontrol.errors import HeadsError
from ckcontrol.heads import HeadMask, pruned
from ckcontrol.heads.finding import find as find_module
from ckcontrol.heads.finding.conflict_prompts import ConflictRecord
from ckcontrol.heads.finding.facts import read_facts
from ckcontrol.heads.finding.find import find
from ckcontrol.heads.finding.scores import HeadScores
from ckcontrol.heads.forward import last_logits, pad

from .known import AGAINST, CONTEXT, FAMOUS, MEMORY, Known, known_model


@pytest.fixture(scope="module")
def known() -> Known:
    return known_model()


@pytest.fixture(scope="module")
def scores(known: Known, tmp_path_factory: pytest.TempPathFactory) -> HeadScores:
    return find(known.model, known.tokenizer, known.facts, tmp_path_factory.mktemp("scores") / "heads.json")


def answers(known: Known, prompts: list[str]) -> list[str]:
    batch = pad([known.tokenizer(p).input_ids for p in prompts], known.model.device)
    return [known.tokenizer.decode(i) for i in last_logits(known.model, batch).argmax(-1).tolist()]


# --- ground truth ------------------------------------------------------------------------------------------------


def test_the_memory_head_is_found_through_its_mlp(scores: HeadScores) -> None:
    stats = scores.statistics("memory")
    assert scores.top("memory", 1) == [MEMORY]
    assert stats.mean[MEMORY] > 5 and stats.agreement[MEMORY] == 1
    others = np.delete(stats.mean.ravel(), MEMORY[0] * 3 + MEMORY[1])
    assert np.abs(others).max() < 0.02 * stats.mean[MEMORY], "exactly this head"
    direct = scores.importance("memory", column="direct")
    assert abs(direct[MEMORY]) < 1e-4, "its direct path is nothing: the MLP recalls"


def test_the_context_heads_are_found_with_their_signs(scores: HeadScores) -> None:
    stats = scores.statistics("context")
    mean = stats.mean.copy()
    assert scores.top("context", 1) == [CONTEXT]
    assert mean[AGAINST] < -1 and stats.agreement[AGAINST] == stats.agreement[CONTEXT] == 1
    assert (CONTEXT in scores.top("context", 6)) and (AGAINST not in scores.top("context", 6))
    mean[CONTEXT] = mean[AGAINST] = 0
    assert np.abs(mean).max() < 0.02 * stats.mean[CONTEXT], "exactly these heads"
    for column in ("direct", "linear", "gradient"):
        assert scores.importance("context", column=column).argmax() == CONTEXT[0] * 3 + CONTEXT[1]


def test_pruning_either_head_flips_the_answers_it_wins(known: Known, scores: HeadScores) -> None:
    conflict = [record.conflict["substitution"] for record in scores.records]
    memory, context = [r.memory for r in scores.records], [r.context for r in scores.records]
    expected = [m if r.subject in FAMOUS else c for r, m, c in zip(scores.records, memory, context, strict=True)]
    assert answers(known, conflict) == expected and set(expected) & set(memory) and expected != memory
    with pruned(known.model, HeadMask.of(known.model, scores.top("memory", 1))):
        assert answers(known, conflict) == context
    with pruned(known.model, HeadMask.of(known.model, scores.top("context", 1))):
        assert answers(known, conflict) == memory
        assert answers(known, [r.clean for r in scores.records]) == memory
    assert answers(known, conflict) == expected


def test_a_mask_in_force_is_what_is_scored(known: Known, tmp_path: Path) -> None:
    """Re-scoring under a mask: a pruned head has no path left, so its score is zero."""
    with pruned(known.model, HeadMask.of(known.model, [CONTEXT])):
        again = find(known.model, known.tokenizer, known.facts, tmp_path / "again.json")
    assert again.importance("context")[CONTEXT] == 0
    assert again.top("memory", 1) == [MEMORY]


# --- the run -----------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def interrupt(after: int) -> Any:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "scoring" and done >= after:
            raise Stop

    return progress


@pytest.mark.parametrize("tear", [0, 1, 40])
def test_an_interrupted_run_resumes_to_the_same_bytes(known: Known, tmp_path: Path, tear: int) -> None:
    """Stopped between batches, with a torn last line, and with a whole line gone from the last batch."""
    arguments = (known.model, known.tokenizer, known.facts)
    find(*arguments, tmp_path / "whole.json")
    out = tmp_path / "heads.json"
    with pytest.raises(Stop):
        find(*arguments, out, on_progress=interrupt(8))
    partial = tmp_path / "heads.json.partial"
    assert not out.exists() and len(partial.read_bytes().splitlines()) == 9
    if tear:
        data = partial.read_bytes()
        partial.write_bytes(data[: -tear if tear < 40 else data[:-1].rindex(b"\n") + 1])
    stages: list[str] = []
    find(*arguments, out, on_progress=lambda stage, done, total: stages.append(f"{stage} {done}"))
    assert stages == (["scoring 8"] if tear else []) + ["scoring 12"], "nothing is asked or scored twice"
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["heads.json", "whole.json"]


def test_a_kill_between_last_row_and_result_loses_nothing(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "heads.json"
    with monkeypatch.context() as patch:
        patch.setattr(find_module.os, "replace", lambda *paths: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            find(known.model, known.tokenizer, known.facts, out, n=5)
    first = find(known.model, known.tokenizer, known.facts, out, n=5)
    assert len(first.records) == 5 and sorted(p.name for p in tmp_path.iterdir()) == ["heads.json"]


def test_a_finished_run_is_read_not_repeated(known: Known, tmp_path: Path) -> None:
    out = tmp_path / "heads.json"
    made = find(known.model, known.tokenizer, known.facts, out, n=4)
    before = out.stat().st_mtime_ns
    again = find(known.model, known.tokenizer, known.facts, out, n=4, on_progress=interrupt(0))
    assert out.stat().st_mtime_ns == before
    assert [r.id for r in again.records] == [r.id for r in made.records]
    assert np.array_equal(again.importance("memory"), made.importance("memory"))


def test_another_run_is_refused_by_name(known: Known, tmp_path: Path, tiny: Any) -> None:
    out = tmp_path / "heads.json"
    find(known.model, known.tokenizer, known.facts, out, n=4)
    with pytest.raises(HeadsError, match=r"heads\.json' is from another run: n is 4 there and 5 here"):
        find(known.model, known.tokenizer, known.facts, out, n=5)
    with pytest.raises(HeadsError, match=r"seed is 0 there and 1 here"):
        find(known.model, known.tokenizer, known.facts, out, n=4, seed=1)
    with pytest.raises(HeadsError, match=r"facts is .* there"):
        find(known.model, known.tokenizer, known.facts[1:], out, n=4)
    model, tokenizer = tiny("llama")
    with pytest.raises(HeadsError, match=r"family is 'gpt2' there and 'llama' here"):
        find(model, tokenizer, known.facts, out, n=4)


def test_what_cannot_be_scored_says_why(known: Known, tmp_path: Path) -> None:
    arguments = (known.model, known.tokenizer)
    out = tmp_path / "heads.json"
    for options, words in (
        ({"formats": ["substitutoin"]}, "Did you mean 'substitution'"),
        ({"formats": []}, "no prompt format"),
        ({"known": "sure"}, "known='sure'"),
        ({"n": 0}, "n=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(HeadsError, match=words):
            find(*arguments, known.facts, out, **options)
    with pytest.raises(HeadsError, match=r"of 2 facts none can be scored \(2 no pair\)"):
        find(*arguments, known.facts[:2], out)
    (tmp_path / "heads.json.partial").write_text("{\n", encoding="utf-8")
    with pytest.raises(HeadsError, match=r"partial' is damaged. Delete it"):
        find(*arguments, known.facts, out)
    assert not out.exists()


def test_batches_do_not_change_the_scores(known: Known, scores: HeadScores, tmp_path: Path) -> None:
    one = find(known.model, known.tokenizer, known.facts, tmp_path / "one.json", batch_size=1)
    for source in ("memory", "context"):
        assert np.allclose(one.values(source), scores.values(source), atol=1e-3)


def test_what_the_file_holds(scores: HeadScores) -> None:
    data = json.loads(scores.to_json())
    assert data["settings"]["left_out"] == {"not known": 0} and data["settings"]["facts_read"] == 12
    assert len(data["records"]) == len(data["examples"]) == 12
    columns = data["examples"][0]["memory"]["substitution"]
    assert set(columns) == {"memory_logit", "context_logit", "direct", "linear", "gradient"}
    assert all(len(values) == 6 for values in columns.values())


# --- a real model ------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_demo_model_is_scored(real: Any, tmp_path: Path) -> None:
    model, tokenizer = real
    facts = tmp_path / "facts.jsonl"
    pairs = [("France", "Paris"), ("Japan", "Tokyo"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Egypt", "Cairo")]
    lines = [
        {
            "relation": "capital",
            "subject": country,
            "answer": city,
            "cloze": f"The capital of {country} is",
            "context_template": "The capital of {subject} is {answer}.",
            "question": f"What is the capital of {country}?",
        }
        for country, city in pairs
    ]
    facts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    forms = ("substitution", "qa")
    scores = find(model, tokenizer, read_facts(facts), tmp_path / "heads.json", formats=forms, n=1)
    assert all(isinstance(r, ConflictRecord) and r.known for r in scores.records)
    for form in forms:
        for source in ("memory", "context"):
            assert scores.values(source, form=form).shape == (1, 30, 9)
    with pytest.raises(HeadsError, match="Columns beside path are for the first format alone"):
        scores.values("memory", column="direct", form="qa")
    assert torch.is_grad_enabled()
