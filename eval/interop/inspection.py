"""Records as an evaluation of Inspect (inspect_ai): a data set, a solver that steers, a scorer, and their task.

The solver answers with `ckcontrol.generate` in this process, so the evaluation needs no model of Inspect's: run it
with ``model=None``. Any other solver can answer the same samples, since their input is the whole prompt. Knows
Inspect; imports it when asked.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ckcontrol.arguments import check_integer
from ckcontrol.control import Control
from ckcontrol.errors import EvalError, MissingExtra

from ..records import Record
from .common import RATES, loaded, row_of, template_for, unique, verdicts

if TYPE_CHECKING:
    from ckcontrol.decoding.prompts import PromptTemplate

__all__ = ["inspect_samples", "inspect_scorer", "inspect_solver", "inspect_task"]

NEEDED = ("question", "passages", "template", "choices")  # what the solver reads of a sample's metadata


def inspect_task(
    records: Sequence[Record],
    model: Any,
    tokenizer: Any = None,
    *,
    control: Control | None = None,
    template: PromptTemplate | None = None,
    max_new_tokens: int = 64,
    truncate: str | None = "passages",
    name: str = "ckcontrol",
) -> Any:
    """Return an Inspect task: these records, answered under a control, with our verdicts.

    Every rate is reported for each state and not for their mixture, with a standard error that is clustered by
    `Record.group` (0 for a state with a single group, as Inspect has it).

    Args:
        records: Of any states; those with choices are answered with the likeliest one.
        model: A name as in `ckcontrol.load`, or a loaded model.
        tokenizer: That of a loaded model.
        control: None is ``Control()``, the unmodified model.
        template: Wording; cloze records have their own.
        max_new_tokens: Longest answer, in tokens.
        truncate: As in `ckcontrol.generate`; by default passages that do not fit are cut.
        name: What the task is called in the log.

    Raises:
        MissingExtra: inspect_ai is not installed.
        EvalError: No records, an id that occurs twice, or a model without its tokenizer.

    Example (in a file of its own, after ``from inspect_ai import task``, for ``inspect eval FILE --model none``):
        >>> @task  # doctest: +SKIP
        ... def facts(alpha: float = 0.5):
        ...     records = load_task("facts").records
        ...     return inspect_task(records, "demo", control=Control(alpha=alpha))
    """
    _require()
    from inspect_ai import Task
    from inspect_ai.dataset import MemoryDataset

    return Task(
        dataset=MemoryDataset(inspect_samples(records, template=template), name=name),
        solver=inspect_solver(model, tokenizer, control=control, max_new_tokens=max_new_tokens, truncate=truncate),
        scorer=inspect_scorer(records),
        name=name,
    )


def inspect_samples(records: Sequence[Record], *, template: PromptTemplate | None = None) -> list[Any]:
    """Return the records as Inspect's samples.

    The input is the prompt as text, passages included; the target is the true answer (for choices: the wanted one);
    question, passages, prompt template, both lists of answers, state and group are in the metadata.

    Raises:
        MissingExtra: inspect_ai is not installed.
        EvalError: No records, or an id that occurs twice.
    """
    _require()
    from inspect_ai.dataset import Sample

    samples = []
    for record in unique(records):
        row = row_of(record, template_for(record, template))
        wanted = (
            record.choices[record.answer_index : record.answer_index + 1] if record.answer_index is not None else ()
        )
        samples.append(
            Sample(
                id=row.pop("id"),
                input=row.pop("prompt"),
                target=list(wanted or record.par_answers),
                choices=list(record.choices) or None,
                metadata=row | {"choices": list(record.choices), "answer_index": record.answer_index},
            )
        )
    return samples


def inspect_solver(
    model: Any,
    tokenizer: Any = None,
    *,
    control: Control | None = None,
    max_new_tokens: int = 64,
    truncate: str | None = "passages",
) -> Any:
    """Return a solver that answers samples of `inspect_samples` under a control; see `inspect_task`.

    What happened is in the sample's metadata under ``ck``: the answer's summary (tokens, switched tokens, mean gain),
    or for choices their scores in nats. The log names the model and the control. Samples are answered one at a time.
    """
    _require()
    from anyio import to_thread
    from inspect_ai.model import ModelOutput, ModelUsage
    from inspect_ai.solver import solver

    check_integer("max_new_tokens", max_new_tokens, 1, 1_000_000)
    ready = loaded(model, tokenizer)
    label = model if isinstance(model, str) else str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    chosen = control or Control()
    one_at_a_time = threading.Lock()

    def work(sample: Mapping[str, Any]) -> tuple[str, str, int, int, dict[str, Any]]:
        from ckcontrol.decoding.prompts import PromptTemplate

        asked = (*ready, sample["question"], list(sample["passages"]))
        options = {
            "control": chosen,
            "template": PromptTemplate(**json.loads(sample["template"])),
            "truncate": truncate,
        }
        with one_at_a_time:
            if sample["choices"]:
                return _choose(asked, list(sample["choices"]), options)
            return _generate(asked, {**options, "max_new_tokens": max_new_tokens})

    def ckcontrol_solver(model: str, control: dict[str, Any], max_new_tokens: int, truncate: str | None) -> Any:
        async def solve(state: Any, generate: Any) -> Any:
            if missing := [name for name in NEEDED if name not in state.metadata]:
                raise EvalError(
                    f"sample {state.sample_id!r} has no {missing[0]}.", "Make samples with inspect_samples."
                )
            text, stop, read, written, facts = await to_thread.run_sync(work, dict(state.metadata))
            state.output = ModelOutput.from_content(label, text, stop_reason=stop)
            state.output.usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
            state.messages.append(state.output.message)
            state.metadata["ck"] = facts
            state.completed = True
            return state

        return solve

    return solver(name="ckcontrol")(ckcontrol_solver)(label, chosen.to_dict(), max_new_tokens, truncate)


def inspect_scorer(records: Sequence[Record]) -> Any:
    """Return a scorer for these records: `verdicts` of what was generated, ``choice`` for records with choices.

    Results are called ``rate_STATE`` and ``rate_stderr_STATE`` under each rate; where ckcontrol is installed, Inspect
    puts its name before them and before those of solver and scorer: ``ckcontrol/rate_conflict``.

    Raises:
        MissingExtra: inspect_ai is not installed.
    """
    _require()
    from inspect_ai.scorer import Score, Target, grouped, mean, metric, scorer, stderr

    def by_state(inner: Any) -> Any:
        def make() -> Any:
            apart: Any = grouped(inner, "state", all=False)

            def compute(scores: list[Any]) -> Any:  # not annotated, it would be given scores without metadata
                return apart(scores)

            return compute

        return make

    # Inspect names a result after its metric and the state, so mean and error must be metrics of different names.
    rate, rate_stderr = (
        metric(name="rate")(by_state(mean())),
        metric(name="rate_stderr")(by_state(stderr(cluster="group"))),
    )
    names = [*RATES] if any(not record.choices for record in records) else []
    if any(record.choices for record in records):
        names.append("choice")
    metrics = {name: [rate(), rate_stderr()] for name in names}

    def ckcontrol_scorer() -> Any:
        async def score(state: Any, target: Target) -> Score:
            sample, text = state.metadata, state.output.completion
            value = dict.fromkeys(names, float("nan"))  # NaN: does not count
            if sample["choices"]:
                value["choice"] = float(text.strip() == target.text.strip())
            else:
                value |= verdicts(text, sample["ctx_answers"], sample["par_answers"])
            return Score(value=value, answer=text)

        return score

    return scorer(metrics=metrics, name="ckcontrol")(ckcontrol_scorer)()


def _generate(asked: Any, options: Mapping[str, Any]) -> tuple[str, str, int, int, dict[str, Any]]:
    """Return text, stop reason, tokens read and written, and what else is worth keeping."""
    from ckcontrol.decoding.generate import generate

    answer = generate(*asked, **options)
    stop = "stop" if answer.finish_reason == "stop" else "max_tokens"
    return answer.text, stop, answer.context_tokens, len(answer.token_ids), answer.summary()


def _choose(asked: Any, choices: list[str], options: Mapping[str, Any]) -> tuple[str, str, int, int, dict[str, Any]]:
    """Return the likeliest choice in place of a generated text; of equal ones the first."""
    from .endings import compare

    model, tokenizer, question, passages = asked
    scores = compare(model, tokenizer, question, passages, choices, **options)
    best = scores.index(max(scores))
    return choices[best], "stop", 0, 0, {"scores": scores, "choice": best}


def _require() -> None:
    if find_spec("inspect_ai") is None:
        raise MissingExtra("inspect_ai", "inspect")
