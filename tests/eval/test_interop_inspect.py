"""Tasks for Inspect, run by Inspect itself on a tiny random model, logs and all."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

import ckcontrol as ck
from ckcontrol.errors import ControlError, EvalError
from ckcontrol.eval.interop import inspect_samples, inspect_scorer, inspect_solver, inspect_task
from ckcontrol.eval.interop.common import template_for, verdicts
from ckcontrol.eval.interop.endings import compare
from ckcontrol.eval.records import Record

MEMORY = ck.Control("ck-plug", 0.9, gate=1e6)
RECORDS = [
    Record("1", "Where is Oslo?", ("Oslo is in Chile.",), ("Chile",), ("Norway", "Norge")),
    Record("2", "Who wrote Faust?", ("Faust is by Ann.", "Ann wrote Faust."), ("Ann",), ("Goethe",)),
    Record("3", "Where is Lima?", ("Lima is in Peru.",), ("Peru",), ("Peru",), state="agree"),
    Record("4", "Haste makes", ("It makes speed.",), choices=(" waste.", " speed."), answer_index=0, cloze=True),
]


def run(task: Any, folder: Path, status: str = "success", **options: Any) -> Any:
    """Return the log of one task, from the file that Inspect wrote."""
    from inspect_ai import eval as evaluate
    from inspect_ai.log import read_eval_log

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Inspect leaves streams open; they are collected here
        warnings.filterwarnings("ignore", "The 'initial' parameter", DeprecationWarning)  # its use of tenacity
        (log,) = evaluate(task, **{"model": None, "display": "none", "log_dir": str(folder), **options})
        gc.collect()
    assert log.status == status, log.error
    return read_eval_log(log.location)


def shown(log: Any) -> dict[str, dict[str, float]]:
    """Inspect puts ``ckcontrol/`` before our names where it finds the package installed, and not where it does not."""
    return {
        score.name: {name.removeprefix("ckcontrol/"): m.value for name, m in score.metrics.items()}
        for score in log.results.scores
    }


@pytest.fixture(scope="module")
def log(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    task = inspect_task(RECORDS, *llama, control=MEMORY, max_new_tokens=6, name="mine")
    return run(task, tmp_path_factory.mktemp("logs"))


def test_the_solver_answers_as_generate_does(llama: Any, log: Any) -> None:
    for sample, record in zip(log.samples[:3], RECORDS, strict=False):
        expected = ck.generate(*llama, record.question, record.passages, control=MEMORY, max_new_tokens=6)
        assert sample.output.completion == expected.text
        assert sample.output.usage.output_tokens == len(expected.token_ids)
        assert sample.metadata["ck"]["switched"] == expected.switched > 0
        assert sample.output.stop_reason == {"stop": "stop", "length": "max_tokens"}[expected.finish_reason]
        assert [m.role for m in sample.messages] == ["user", "assistant"]


def test_choices_are_answered_by_likelihood(llama: Any, log: Any) -> None:
    record = RECORDS[3]
    scores = compare(
        *llama, record.question, record.passages, record.choices, control=MEMORY, template=template_for(record)
    )
    sample = log.samples[3]
    assert sample.metadata["ck"]["scores"] == pytest.approx(scores)
    assert sample.output.completion == record.choices[scores.index(max(scores))]
    assert sample.scores["ckcontrol"].value["choice"] == float(scores[0] > scores[1])


def test_rates_are_kept_apart_by_state(log: Any) -> None:
    rates = shown(log)
    assert set(rates) == {"parr", "conr", "neither", "mr", "em", "ckplug_parr", "ckplug_conr", "choice"}
    conflict = [
        verdicts(s.output.completion, r.ctx_answers, r.par_answers)
        for s, r in zip(log.samples, RECORDS[:2], strict=False)
    ]
    for name in ("parr", "conr", "neither", "em"):
        assert set(rates[name]) == {"rate_conflict", "rate_stderr_conflict", "rate_agree", "rate_stderr_agree"}
        assert rates[name]["rate_conflict"] == sum(found[name] for found in conflict) / 2
    assert set(rates["choice"]) == {"rate_conflict", "rate_stderr_conflict"}


def test_the_log_names_the_control_and_the_model(log: Any) -> None:
    assert log.eval.task == "mine" and log.eval.dataset.name == "mine"
    (step,) = log.plan.steps
    assert step.solver.removeprefix("ckcontrol/") == "ckcontrol" and step.params["control"] == MEMORY.to_dict()
    assert step.params["model"] == "LlamaForCausalLM" and step.params["max_new_tokens"] == 6


def test_samples_hold_the_whole_prompt_and_the_record() -> None:
    first, *_, last = inspect_samples(RECORDS)
    assert first.input.endswith("Background:\nOslo is in Chile.\n\nQuestion: Where is Oslo?\nAnswer:")
    assert first.target == ["Norway", "Norge"] and first.id == "1"
    assert first.metadata["passages"] == ["Oslo is in Chile."] and first.metadata["group"] == RECORDS[0].group
    assert (
        last.input == "It makes speed.\nHaste makes"
        and last.target == [" waste."]
        and last.choices == [" waste.", " speed."]
    )
    spoken = inspect_samples(RECORDS[:1], template=ck.PromptTemplate(instruction="Be brief. "))
    assert spoken[0].input.startswith("Be brief. Background:")


def said(folder: Path, *texts: str) -> dict[str, dict[str, float]]:
    """Return the rates when a solver that knows nothing of us gives these answers, one a record."""
    from inspect_ai import Task
    from inspect_ai.model import ModelOutput
    from inspect_ai.solver import solver

    @solver
    def parrot() -> Any:
        async def solve(state: Any, generate: Any) -> Any:
            state.output = ModelOutput.from_content("parrot", texts[int(state.sample_id) - 1])
            return state

        return solve

    records = RECORDS[: len(texts)]
    return shown(run(Task(inspect_samples(records), solver=parrot(), scorer=inspect_scorer(records)), folder))


def test_other_solvers_get_the_same_verdicts(tmp_path: Path) -> None:
    rates = said(tmp_path, "In Norway.", "By Ann.", "In Peru.")
    assert (rates["parr"]["rate_conflict"], rates["conr"]["rate_conflict"], rates["mr"]["rate_conflict"]) == (
        0.5,
        0.5,
        0.5,
    )
    assert rates["parr"]["rate_agree"] == rates["conr"]["rate_agree"] == 1
    assert rates["parr"]["rate_stderr_conflict"] > 0 and "choice" not in rates


def test_answers_that_name_neither_do_not_count_in_mr(tmp_path: Path) -> None:
    rates = said(tmp_path, "In Norway.", "No idea.")
    assert rates["mr"]["rate_conflict"] == 1 and rates["neither"]["rate_conflict"] == 0.5


def test_names_are_loaded_and_the_mock_model_is_not_asked(tmp_path: Path) -> None:
    task = inspect_task(RECORDS[:1], "tiny", max_new_tokens=2)
    log = run(task, tmp_path, model="mockllm/model")
    assert log.plan.steps[0].params["model"] == "tiny" and not log.stats.model_usage
    assert "Default output" not in log.samples[0].output.completion


def test_what_cannot_be_done_is_refused(llama: Any, tmp_path: Path) -> None:
    from inspect_ai import Task
    from inspect_ai.dataset import Sample

    with pytest.raises(EvalError, match="no records"):
        inspect_samples([])
    with pytest.raises(EvalError, match="'1' occurs twice"):
        inspect_samples([RECORDS[0], replace(RECORDS[1], id="1")])
    with pytest.raises(EvalError, match="without its tokenizer"):
        inspect_solver(llama[0])
    with pytest.raises(ControlError, match="max_new_tokens=0"):
        inspect_solver(*llama, max_new_tokens=0)
    task = Task(dataset=[Sample("Why?", id="odd")], solver=inspect_solver(*llama))
    assert "sample 'odd' has no question" in run(task, tmp_path, status="error").error.message
