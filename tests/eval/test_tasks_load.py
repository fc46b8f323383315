"""Finding, cleaning and sampling: what a task's name may be, what is counted, which records a sample holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ckcontrol.errors import EvalError
from ckcontrol.eval.tasks import ADAPTERS, export_flashrag
from ckcontrol.eval.tasks.load import Task, load_task, sample, task_names

from .data import FIXTURES, fixture


def test_canonical_records_and_every_rejection_is_listed() -> None:
    task = load_task(fixture("canonical.jsonl"))
    assert task.name == "canonical" and task.kind == "generate"
    assert [record.id for record in task.records] == ["a", "2", "canonical.jsonl:2"]
    assert [record.state for record in task.records] == ["conflict", "closed", "noisy"]
    assert task.records[2].passages == ("One says 12 m.", "One says 14 m.")
    assert task.reasons == {
        "malformed": 3,
        "id given twice": 1,
        "answers overlap": 1,
        "parametric answer in context": 1,
    }
    assert len(task.records) + len(task.rejected) == 9, "nothing is lost"
    assert all(item.id and item.detail for item in task.rejected)
    assert task.settings["clean"] == "words" and len(task.sha256) == 64


def test_without_cleaning_only_what_cannot_be_read_is_rejected() -> None:
    task = load_task(fixture("canonical.jsonl"), clean=False)
    assert task.reasons == {"malformed": 3, "id given twice": 1}
    assert task.settings["clean"] == ""


@pytest.mark.parametrize("form", ["jsonl={}", "jsonl:{}", "{}", "{}?file=*.jsonl"])
def test_forms_of_a_name(form: str) -> None:
    assert len(load_task(form.format(fixture("canonical.jsonl"))).records) == 3


def test_a_question_mark_that_starts_no_options_belongs_to_the_path(tmp_path: Path) -> None:
    path = tmp_path / "what?.jsonl"
    path.write_bytes((FIXTURES / "canonical.jsonl").read_bytes())
    assert len(load_task(str(path)).records) == 3


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nq_swp", "Did you mean 'nq_swap'"),
        ("nq_swp=file.json", "Did you mean 'nq_swap'"),
        ("nq_swap=missing.json", "there is no 'missing.json'"),
        ("mquake", "task 'mquake' needs its data: GitHub princeton-nlp/MQuAKE"),
        ("facts?stats=all", "Did you mean 'states'"),
        ("facts?states=agre", "Did you mean 'agree'"),
        ("facts?relations=capitol", "Did you mean 'capital'"),
    ],
)
def test_a_wrong_name_gets_a_proposal(spec: str, words: str) -> None:
    with pytest.raises(EvalError) as caught:
        load_task(spec)
    assert words in str(caught.value)


def test_a_file_of_another_kind_is_no_empty_task() -> None:
    with pytest.raises(
        EvalError, match=r"holds no record of 'confiqa'; rejected: malformed \(5\).*field 'orig_context'"
    ):
        load_task(f"confiqa={fixture('nq_swap.jsonl')}")


def test_limit() -> None:
    with pytest.raises(EvalError, match="limit=0 leaves nothing"):
        load_task("facts", limit=0)
    whole, some = load_task(fixture("canonical.jsonl")), load_task(fixture("canonical.jsonl"), limit=2, seed=3)
    assert len(some.records) == 2 and set(some.records) <= set(whole.records)
    assert some.settings["limit"] == 2 and some.settings["seed"] == 3 and some.settings["of"] == 3
    assert some.rejected == whole.rejected


def test_a_sample_takes_groups_in_turn_and_grows_with_the_limit() -> None:
    records = load_task("facts?states=all").records
    groups = len({record.group for record in records})
    seen: set[str] = set()
    for limit in (1, 10, 100, groups, groups + 7, 2 * groups):
        chosen = sample(records, limit, seed=1)
        assert len(chosen) == limit
        counts = Counter(record.group for record in chosen)
        assert max(counts.values()) - (min(counts.values()) if len(counts) == groups else 0) <= 1
        assert seen <= (seen := {record.id for record in chosen})
        assert [record.id for record in chosen] == [record.id for record in records if record.id in seen], "in order"
    first = [record.id for record in sample(records, 50, seed=1)]
    assert first == [record.id for record in sample(tuple(reversed(records)), 50, seed=1)][::-1]
    assert first != [record.id for record in sample(records, 50, seed=2)]
    assert len({record.state for record in sample(records, 50)}) > 1, "not always a group's first"
    assert sample(records, 10**6) == list(records)


def test_shipped_facts() -> None:
    task = load_task("facts")
    assert len(task.records) == len(task.facts) > 500
    assert task.rejected == ()
    assert {record.state for record in task.records} == {"conflict"}
    assert {record.meta["known"] for record in task.records} == {None}
    assert "NOTICE" in task.source and "CC BY 4.0" in task.licence


def test_a_small_sample_of_facts_holds_every_relation() -> None:
    task = load_task("facts", limit=10)
    assert Counter(fact.relation for fact in task.facts) == {name: 2 for name in task.settings["relations"]}
    alone = load_task("facts?states=all", limit=1)
    assert [record.state for record in alone.records] == ["conflict", "agree", "helpful", "irrelevant", "noisy"]
    whole = {record.id: record for record in load_task("facts?states=all").records}
    assert all(whole[record.id] == record for record in alone.records), "a sample changes no record"


def test_facts_as_clozes_and_of_a_file() -> None:
    task = load_task(f"facts={fixture('facts.jsonl')}?cloze=1&states=conflict,noisy&relations=home")
    assert {record.state for record in task.records} == {"conflict", "noisy"}
    assert task.records[0].cloze and task.records[0].question == "The home of Ada is"
    assert task.reasons == {"malformed": 2, "id given twice": 1}


def test_flashrag_there_and_back(tmp_path: Path) -> None:
    task = load_task("facts?states=all", limit=3)
    path = tmp_path / "out.jsonl"
    assert export_flashrag(task.records, path) == len(task.records)
    line = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    assert list(line) == ["id", "question", "golden_answers", "metadata"]
    assert line["metadata"]["par_answers"] and line["metadata"]["context"]
    back = load_task(f"flashrag={path}")
    assert back.records == task.records and not back.rejected


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_every_adapter_names_source_and_licence(name: str) -> None:
    adapter = ADAPTERS[name]
    assert adapter.name == name and name in task_names()
    assert len(adapter.source) > 10 and len(adapter.licence) > 2


def test_reasons_are_counted() -> None:
    task = load_task(fixture("canonical.jsonl"))
    assert isinstance(task, Task) and sum(task.reasons.values()) == len(task.rejected)


def test_any_file_to_any_adapter_is_an_error_or_rejections_never_a_crash() -> None:
    for path in sorted(FIXTURES.iterdir()):
        for name in task_names():
            try:
                task = load_task(f"{name}={path}")
            except EvalError as error:
                assert error.hint
            else:
                assert task.records


def test_limit_may_be_given_with_the_task():
    assert len(load_task("facts?limit=3&states=conflict", limit=50).records) == 3
    with pytest.raises(EvalError, match="limit=none"):
        load_task("facts?limit=none")
