"""Adapters on the published files, against their known counts; skipped where the files are absent."""

from __future__ import annotations

from collections import Counter

import pytest

from ckcontrol.eval.records import Record
from ckcontrol.eval.tasks.facts import load_facts
from ckcontrol.eval.tasks.load import load_task

from .data import shared


def test_nq_swap() -> None:
    pytest.importorskip("pyarrow")
    place = shared("nq_swap")
    task = load_task(f"nq_swap={place}")
    assert len(task.records) == 4706 and len(task.rejected) == 40
    assert task.reasons == {"answers overlap": 30, "parametric answer in context": 10}
    every = load_task(f"nq_swap={place}", clean=False)
    assert len(every.records) == 4746 and not every.rejected
    assert len({record.group for record in every.records}) == 1667
    assert all("<P>" not in record.context and "</" not in record.context for record in every.records)
    some = load_task(f"nq_swap={place}", limit=200)
    assert len({record.group for record in some.records}) == 200


def test_memotrap() -> None:
    task = load_task(f"memotrap={shared('memotrap')}")
    assert task.kind == "choices" and not task.rejected
    assert sorted(Counter(record.meta["subtask"] for record in task.records).values()) == [100, 736, 843, 860]
    for record in task.records:
        assert len(record.choices) == 2 and all(choice.startswith(" ") for choice in record.choices)
        assert len(record.passages) == 1 and not record.question.endswith(" ")


def test_ramdocs() -> None:
    task = load_task(f"ramdocs={shared('ramdocs')}")
    assert len(task.records) == 500 and not task.rejected
    assert Counter(record.state for record in task.records) == {"noisy": 306, "plain": 194}
    assert Counter(len(record.par_answers) for record in task.records) == {1: 100, 2: 200, 3: 200}
    types = Counter(kind for record in task.records for kind in record.meta["types"])
    assert types == {"correct": 1918, "misinfo": 307, "noise": 541}


def test_tristate() -> None:
    task = load_task(f"tristate={shared('tristate')}?file=llama3*")
    assert Counter(record.state for record in task.records) == {"agree": 400, "helpful": 400, "conflict": 383}
    assert task.reasons == {"answers overlap": 14, "parametric answer in context": 3}
    facts, rejected, _ = load_facts(shared("tristate"), file="facts_location.jsonl")
    assert len(facts) + len(rejected) == 1088 and len(rejected) == 24


def test_counterfact() -> None:
    place = shared("counterfact")
    assert len(load_task(f"counterfact={place}", clean=False).records) == 916
    assert load_task(f"counterfact={place}").reasons == {"parametric answer in context": 6}
    assert load_task(f"counterfact={place}?score=choices").kind == "choices"


def test_facts_of_the_same_format_as_ours() -> None:
    task = load_task(f"facts={shared('facts_demo')}")
    assert len(task.records) + len(task.rejected) == 879
    assert set(task.reasons) == {"malformed"}
    assert any("'Djibouti' is in the question or passage of 'Djibouti'" in item.detail for item in task.rejected)


@pytest.mark.parametrize("name", ["memotrap", "ramdocs", "counterfact"])
def test_canonical_form_loses_nothing(name: str) -> None:
    for record in load_task(f"{name}={shared(name)}").records:
        assert Record.from_dict(record.to_dict()) == record
