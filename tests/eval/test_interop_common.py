"""What both adapters share, and what happens without the frameworks; needs neither of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

import ckcontrol as ck
from ckcontrol.errors import EvalError, MissingExtra
from ckcontrol.eval.interop import harness_model, inspect_samples, inspect_scorer, inspect_solver, inspect_task
from ckcontrol.eval.interop.common import as_message, prompt_text, template_for, template_json, unique, verdicts
from ckcontrol.eval.records import Record

RECORD = Record("1", "Where is Oslo?", ("Oslo is in Chile.",), ("Chile",), ("Norway",))


def test_neither_framework_is_imported_before_it_is_needed() -> None:
    code = """
import sys
from ckcontrol.eval.interop import export_harness, inspect_task
from ckcontrol.eval.interop.harness import load_rows, score_row
score_row({"ctx_answers": ["Oslo"], "par_answers": []}, ["Oslo"])
print([name for name in ("lm_eval", "inspect_ai", "datasets", "torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_framework_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(MissingExtra, match=r'lm_eval is not installed.*\[harness\]"'):
        harness_model.__wrapped__()
    for call in (
        lambda: inspect_task([RECORD], "tiny"),
        lambda: inspect_samples([RECORD]),
        lambda: inspect_solver("tiny"),
        lambda: inspect_scorer([RECORD]),
    ):
        with pytest.raises(MissingExtra, match=r'inspect_ai is not installed.*\[inspect\]"'):
            call()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("In Chile.", {"parr": 0, "conr": 1, "neither": 0, "mr": 0, "em": 0, "ckplug_parr": 0, "ckplug_conr": 1}),
        ("Chile", {"parr": 0, "conr": 1, "neither": 0, "mr": 0, "em": 1, "ckplug_parr": 0, "ckplug_conr": 1}),
        (
            "Not in Chile but in Norway.",
            {"parr": 1, "conr": 0, "neither": 0, "mr": 1, "em": 0, "ckplug_parr": 1, "ckplug_conr": 1},
        ),
    ],
)
def test_verdicts(text: str, expected: dict[str, float]) -> None:
    assert verdicts(text, ["Chile"], ["Norway"]) == expected


def test_verdicts_that_do_not_count() -> None:
    nothing = verdicts("Who knows?", ["Chile"], ["Norway"])
    assert nothing["neither"] == 1 and math.isnan(nothing["mr"])
    agreed = verdicts("In Peru.", ["Peru"], ["Peru"])
    assert agreed["parr"] == agreed["conr"] == 1 and agreed["mr"] == 0.5


def test_templates() -> None:
    own = ck.PromptTemplate(
        instruction="Say {x}. ", passage="[{number}] {text} ", answer="{A}:", fold=False, system="Be kind."
    )
    assert prompt_text(own, " Why? ", [" a\nb "]) == "Say {x}. Background:\n[1] a\nb \nQuestion: Why?\n{A}:"
    assert as_message(own).system is None
    assert as_message(own).question.format(question="Why?") == "\nQuestion: Why?\n{A}:"
    assert ck.PromptTemplate(**json.loads(template_json(own))) == own
    assert template_for(RECORD) == ck.PromptTemplate() and template_for(RECORD, own) is own
    cloze = template_for(Record("2", "Haste makes", cloze=True), own)
    assert prompt_text(cloze, "Haste makes", ["Be quick."]) == "Be quick.\nHaste makes" and cloze.chat is False
    joined = template_for(Record("3", "Haste makes", cloze=True, meta={"join": " "}))
    assert prompt_text(joined, "Haste makes", ["Be quick."]) == "Be quick. Haste makes"


def test_records_are_checked() -> None:
    assert unique((RECORD,)) == [RECORD]
    with pytest.raises(EvalError, match="no records"):
        unique([])
    with pytest.raises(EvalError, match="'1' occurs twice"):
        unique([RECORD, RECORD])
