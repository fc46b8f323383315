"""Records as tasks of lm-evaluation-harness: a folder of YAML, JSONL and one small Python file.

Any model of the harness can answer them: ``lm_eval run --include_path FOLDER --tasks NAME --model ...``. Prompts are
written out in the data, so that a line holds what a model reads. `load_rows`, `score_row` and `ratio` are what the
exported Python file calls. Knows the harness's task format; imports neither it nor any model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckcontrol.arguments import check_integer
from ckcontrol.errors import EvalError, MissingExtra

from ..records import Record
from .common import RATES, row_of, template_for, unique, verdicts

if TYPE_CHECKING:
    from ckcontrol.decoding.prompts import PromptTemplate

__all__ = ["export_harness", "load_rows", "ratio", "score_row"]

HIGHER = {"em"}  # the others are directions, not merits
CODE = '''"""Data and metrics of these tasks. They need the package ckcontrol."""

from pathlib import Path

from ckcontrol.eval.interop.harness import load_rows, ratio, score_row

__all__ = ["load", "ratio", "score_row"]


def load(file, **_):
    """Read the data beside this file, wherever the harness was started."""
    return load_rows(Path(__file__).with_name(file))
'''


def export_harness(
    records: Sequence[Record],
    folder: str | Path,
    name: str,
    *,
    template: PromptTemplate | None = None,
    max_new_tokens: int = 64,
    until: Sequence[str] = (),
) -> list[str]:
    """Write records as tasks of lm-evaluation-harness; one task per state, because rates of a mixture mean nothing.

    Tasks are called ``NAME_STATE``, or ``NAME_STATE_choices`` for records with choices (scored by log-likelihood,
    ``acc`` and ``acc_norm``); the group ``NAME`` holds them all. Answers to the others are generated and scored by
    `verdicts`, which needs ckcontrol where the harness runs. Existing files of these names are overwritten.

    Args:
        records: Of any states. For a closed-book run pass records without passages.
        folder: Made if it is missing; pass it to ``--include_path``.
        name: Name of the group and beginning of every file name; what is not a letter or digit becomes ``_``.
        template: Wording; None is the default. Its `chat` and `system` are the harness's to choose
            (``--apply_chat_template``, ``--system_instruction``).
        max_new_tokens: Longest answer, in tokens.
        until: Stop strings; none by default, as in `ckcontrol.generate`.

    Returns:
        The names of the tasks, in the order of their first record.

    Raises:
        EvalError: No records, an id that occurs twice, or choices without the wanted one.
    """
    check_integer("max_new_tokens", max_new_tokens, 1, 1_000_000)
    stem = re.sub(r"\W+", "_", name).strip("_")
    if not stem:
        raise EvalError(f"name={name!r} holds no letter or digit.", 'Like "capitals".')
    tasks: dict[str, list[Record]] = {}
    for record in unique(records):
        tasks.setdefault(f"{stem}_{record.state}" + ("_choices" if record.choices else ""), []).append(record)
    files = {f"{stem}.py": CODE, f"{stem}.yaml": _yaml({"group": stem, "task": list(tasks)})}
    for task, members in tasks.items():
        rows = [_row(record, template_for(record, template)) for record in members]
        files[f"{task}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        common = {
            "task": task,
            "custom_dataset": f"!function {stem}.load",
            "dataset_kwargs": {"file": f"{task}.jsonl"},
            "test_split": "test",
            "num_fewshot": 0,
            "doc_to_text": "prompt",
            "metadata": {"version": 1.0},
        }
        if members[0].choices:
            files[f"{task}.yaml"] = _yaml(common | _CHOICES)
        else:
            stops = {"until": list(until), "max_gen_toks": max_new_tokens, "do_sample": False}
            files[f"{task}.yaml"] = _yaml(common | _generate(stem) | {"generation_kwargs": stops})
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (place / file).write_text(content, encoding="utf-8", newline="\n")
    return list(tasks)


def load_rows(path: str | Path) -> dict[str, Any]:
    """Return ``{"test": datasets.Dataset}`` of an exported JSONL file; the harness calls this through the task.

    Raises:
        MissingExtra: The `datasets` package, which comes with lm_eval, is missing.
    """
    try:
        from datasets import Dataset
    except ModuleNotFoundError as error:
        raise MissingExtra("datasets", "harness") from error
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return {"test": Dataset.from_list([json.loads(line) for line in lines if line])}


def score_row(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Score one answer for the harness (its `process_results`): `verdicts`, of which `ratio` averages ``mr``."""
    return dict(verdicts(results[0], doc["ctx_answers"], doc["par_answers"]))


def ratio(values: Iterable[float]) -> float:
    """Return the mean of all but NaN (the harness's aggregation of ``mr``); NaN if nothing is left.

    Example:
        >>> ratio([1.0, 0.0, float("nan"), 1.0, 1.0])
        0.75
    """
    counted = [value for value in values if not math.isnan(value)]
    return sum(counted) / len(counted) if counted else math.nan


def _row(record: Record, template: PromptTemplate) -> dict[str, Any]:
    row = row_of(record, template)
    if not record.choices:
        return row | {"target": [*record.ctx_answers, *record.par_answers, ""][0]}
    if record.answer_index is None:
        raise EvalError(f"record {record.id!r} has choices, but none is wanted.", "Set its answer_index.")
    return row | {"choices": list(record.choices), "answer_index": record.answer_index}


_CHOICES: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_target": "answer_index",
    "doc_to_choice": "choices",
    "target_delimiter": "",  # choices bring their leading space
    "metric_list": [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
    ],
}


def _generate(stem: str) -> dict[str, Any]:
    metrics = [
        {
            "metric": metric,
            "aggregation": f"!function {stem}.ratio" if metric == "mr" else "mean",
            "higher_is_better": metric in HIGHER,
        }
        for metric in RATES
    ]
    return {
        "output_type": "generate_until",
        "doc_to_target": "target",
        "process_results": f"!function {stem}.score_row",
        "metric_list": metrics,
    }


def _yaml(data: Mapping[str, Any]) -> str:
    """Return YAML of one key per line, its value as JSON, which is YAML too, except for the tag ``!function``."""
    return "".join(f"{key}: {_value(value)}\n" for key, value in data.items())


def _value(value: Any) -> str:
    if isinstance(value, str) and value.startswith("!function "):
        return value
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "".join(f"\n  - {{{', '.join(f'{k}: {_value(v)}' for k, v in item.items())}}}" for item in value)
    # JSON escapes a character beyond the 16-bit range as a pair, which YAML does not join again
    return "".join(c if " " <= c <= "~" else f"\\U{ord(c):08x}" for c in json.dumps(value, ensure_ascii=False))
