"""Exported tasks and the model adapter, run by lm-evaluation-harness itself on tiny random models."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import ckcontrol as ck
from ckcontrol.decoding.prompts import build_pair, plain_ids
from ckcontrol.errors import ControlError, EvalError, PromptError
from ckcontrol.eval.interop import export_harness, harness_model
from ckcontrol.eval.interop.common import as_message, prompt_text, template_for, verdicts
from ckcontrol.eval.interop.endings import compare, spoken
from ckcontrol.eval.interop.harness import ratio
from ckcontrol.eval.records import Record

MEMORY = ck.Control("ck-plug", 0.9, gate=1e6)
RECORDS = [
    Record("1", "Where is Oslo?", ("Oslo is\n in Chile. ",), ("Chile",), ("Norway", "Norge")),
    Record("2", "Who wrote Faust?", ("Faust is by Ann.", "Ann wrote <|end|>Faust — 😀."), ("Ann",), ("Goethe",)),
    Record("3", "Where is Lima?", ("Lima is in Peru.",), ("Peru",), ("Peru",), state="agree"),
    Record("4", "Where is Rome?", (), (), ("Italy",), state="closed"),
]
CHOICES = [
    Record("5", "Two wrongs make a", ("They make a left.",), choices=(" right.", " left."), answer_index=1, cloze=True),
    Record("6", "Haste makes", (), choices=(" waste.", " speed"), answer_index=0, cloze=True),
]


def run(model: Any, folder: Path, *tasks: str, **options: Any) -> dict[str, Any]:
    """Return what lm_eval returns; its own tasks are left out, because reading them takes ten seconds."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    result: dict[str, Any] = simple_evaluate(
        model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options
    )
    return result


def texts(result: dict[str, Any], task: str) -> list[str]:
    return [sample["resps"][0][0] for sample in sorted(result["samples"][task], key=lambda s: s["doc_id"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("harness")
    tasks = export_harness(RECORDS + CHOICES, place, "my set", max_new_tokens=6)
    assert tasks == ["my_set_conflict", "my_set_agree", "my_set_closed", "my_set_conflict_choices"]
    return place


@pytest.fixture(scope="module")
def adapter(llama: Any) -> Any:
    return harness_model()(*llama, control=MEMORY, batch_size=2)


# --- the folder ---------------------------------------------------------------------------------------------------


def test_the_prompt_in_the_data_is_the_prompt_of_build_pair(llama: Any) -> None:
    _, tokenizer = llama
    for record in RECORDS + CHOICES:
        if "<|" in "".join(record.passages):
            continue  # reads the same, but is not the same: build_pair makes no special token of it
        template = replace(template_for(record), chat=False)
        text = prompt_text(template, record.question, record.passages)
        pair = build_pair(tokenizer, record.question, record.passages, template=template)
        assert tokenizer.decode(pair.contextual, skip_special_tokens=True) == text
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        pair = build_pair(tokenizer, record.question, record.passages, template=as_message(template))
        assert tokenizer.decode(pair.contextual) == chat


def test_the_stock_model_of_the_harness_answers_the_tasks(llama: Any, folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = llama
    result = run(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), folder, "my_set")
    assert set(result["results"]) >= {"my_set_conflict", "my_set_agree", "my_set_closed", "my_set_conflict_choices"}
    shown = result["results"]["my_set_conflict"]
    answers = texts(result, "my_set_conflict")
    expected = [verdicts(a, r.ctx_answers, r.par_answers) for a, r in zip(answers, RECORDS[:2], strict=True)]
    for name in ("parr", "conr", "neither", "em", "ckplug_parr", "ckplug_conr"):
        assert shown[f"{name},none"] == pytest.approx(sum(found[name] for found in expected) / 2)
    assert math.isnan(shown["mr,none"]) or 0 <= shown["mr,none"] <= 1
    assert set(result["results"]["my_set_conflict_choices"]) >= {"acc,none", "acc_norm,none"}
    doc = result["samples"]["my_set_conflict"][0]
    assert doc["arguments"][0][0] == prompt_text(ck.PromptTemplate(), RECORDS[0].question, RECORDS[0].passages)


def test_scores_follow_the_answers(folder: Path) -> None:
    from lm_eval.api.model import LM

    class Parrot(LM):  # type: ignore[misc]
        """Says the first contextual answer, or the first parametric one where there is none."""

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [[*r.doc["ctx_answers"], *r.doc["par_answers"]][0] for r in requests]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [(-float("left" in r.args[1]), False) for r in requests]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            return []

    shown = run(Parrot(), folder, "my_set")["results"]
    conflict = {name: shown["my_set_conflict"][f"{name},none"] for name in ("parr", "conr", "neither", "mr", "em")}
    assert conflict == {"parr": 0, "conr": 1, "neither": 0, "mr": 0, "em": 1}
    assert shown["my_set_agree"]["parr,none"] == shown["my_set_agree"]["conr,none"] == 1
    assert shown["my_set_closed"]["mr,none"] == 1
    assert shown["my_set_conflict_choices"]["acc,none"] == 0.5  # " left." is disliked, and a tie goes to the first


def test_ratio_leaves_out_what_does_not_count() -> None:
    assert ratio([1.0, math.nan, 0.0]) == 0.5 and math.isnan(ratio([math.nan])) and math.isnan(ratio([]))


def test_files_are_plain_and_complete(folder: Path) -> None:
    assert (
        sorted(path.suffix for path in folder.iterdir() if path.is_file()) == [".jsonl"] * 4 + [".py"] + [".yaml"] * 5
    )
    rows = [json.loads(line) for line in (folder / "my_set_conflict.jsonl").read_text("utf-8").split("\n") if line]
    assert [row["id"] for row in rows] == ["1", "2"] and rows[1]["passages"] == list(RECORDS[1].passages)


def test_stop_strings_and_odd_characters_survive_yaml(tmp_path: Path) -> None:
    import yaml

    stops = ["\n", "Q:", "—\u2028😀\x7f", '"', "\\n", "{{x}}"]
    export_harness(RECORDS[:1], tmp_path, "x", until=stops)
    text = (tmp_path / "x_conflict.yaml").read_text("utf-8").replace("!function", "")
    assert yaml.safe_load(text)["generation_kwargs"]["until"] == stops


@pytest.mark.parametrize(
    ("records", "name", "message"),
    [
        ([], "x", "no records"),
        (RECORDS[:1] * 2, "x", "'1' occurs twice"),
        (RECORDS, "!?", "no letter"),
        ([replace(CHOICES[0], answer_index=None)], "x", "none is wanted"),
    ],
)
def test_what_cannot_be_exported(records: list[Record], name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=message):
        export_harness(records, tmp_path, name)
    assert not list(tmp_path.iterdir())


# --- the adapter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_the_adapter_answers_as_generate_does(llama: Any, folder: Path, adapter: Any, chat: bool) -> None:
    result = run(adapter, folder, "my_set_conflict", "my_set_closed", apply_chat_template=chat)
    template = as_message(ck.PromptTemplate()) if chat else ck.PromptTemplate(chat=False)
    for task, records in (("my_set_conflict", RECORDS[:2]), ("my_set_closed", RECORDS[3:])):
        expected = [
            ck.generate(*llama, r.question, r.passages, control=MEMORY, template=template, max_new_tokens=6).text
            for r in records
        ]
        assert texts(result, task) == expected
    plain = ck.generate(*llama, RECORDS[0].question, RECORDS[0].passages, template=template, max_new_tokens=6).text
    assert plain != texts(result, "my_set_conflict")[0], "the control changes something"
    assert result["config"]["ckcontrol"]["alpha"] == 0.9


def test_neutral_is_the_stock_model(llama: Any, folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = llama
    stock = run(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), folder, "my_set_agree")
    ours = run(harness_model()(model, tokenizer), folder, "my_set_agree")
    assert [text.strip() for text in texts(stock, "my_set_agree")] == texts(ours, "my_set_agree")


def test_choices_are_scored_under_the_control(llama: Any, folder: Path, adapter: Any) -> None:
    result = run(adapter, folder, "my_set_conflict_choices")
    hits = 0
    for sample, record in zip(result["samples"]["my_set_conflict_choices"], CHOICES, strict=True):
        template = template_for(record)
        expected = compare(*llama, record.question, record.passages, record.choices, control=MEMORY, template=template)
        assert [resp[0][0] for resp in sample["resps"]] == pytest.approx(expected)
        assert not any(resp[0][1] for resp in sample["resps"])
        hits += expected.index(max(expected)) == record.answer_index
    assert result["results"]["my_set_conflict_choices"]["acc,none"] == hits / 2


def test_a_task_without_passages_is_answered_plainly(llama: Any, adapter: Any) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = llama
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    options = {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}
    for doc in ({"question": "Why?"}, {"question": "Why?", "passages": {"text": ["x"]}}):
        asked = [Instance("generate_until", doc, ("Q: Why?\nA:", options), 0)]
        assert adapter.generate_until(asked) == stock.generate_until(asked)
        scored = [Instance("loglikelihood", doc, ("Q: Why?\nA:", " So."), 0)]
        assert adapter.loglikelihood(scored) == stock.loglikelihood(scored)


def test_steered_and_plain_requests_keep_their_order_and_stops_cut(llama: Any, folder: Path, adapter: Any) -> None:
    from lm_eval.api.instance import Instance

    rows = [json.loads(line) for line in (folder / "my_set_conflict.jsonl").read_text("utf-8").split("\n") if line]
    options = {"until": [], "max_gen_toks": 6}
    asked = [
        Instance("generate_until", rows[0], (rows[0]["prompt"], options), 0),
        Instance("generate_until", {}, ("Hello", options), 0),
        Instance("generate_until", rows[1], (rows[1]["prompt"], options), 0),
    ]
    together = adapter.generate_until(asked)
    assert together == [adapter.generate_until([one])[0] for one in asked]
    stop = together[0][2:4]
    stopped = Instance("generate_until", rows[0], (rows[0]["prompt"], {**options, "until": [stop]}), 0)
    assert adapter.generate_until([stopped]) == [together[0][: together[0].index(stop)]]


@pytest.mark.parametrize(
    "options", [{"system_instruction": "Be kind."}, {"system_instruction": "x", "apply_chat_template": True}]
)
def test_what_the_harness_puts_around_the_prompt_is_refused(
    adapter: Any, folder: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(EvalError, match=r"document '3'.*--system_instruction"):
        run(adapter, folder, "my_set_agree", **options)


def test_what_cannot_be_honoured_is_refused(llama: Any, folder: Path, adapter: Any) -> None:
    with pytest.raises(ControlError, match="num_beams"):
        run(adapter, folder, "my_set_agree", gen_kwargs={"num_beams": 4})
    with pytest.raises(EvalError, match="control and alpha"):
        harness_model()(*llama, control=MEMORY, alpha=0.2)
    with pytest.raises(EvalError, match="without its tokenizer"):
        harness_model()(llama[0])
    with pytest.raises(ControlError, match="no parameter 'wamup'"):
        harness_model()(*llama, wamup=1)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])  # the second is what lm_eval asks for by itself
def test_the_harness_builds_it_by_name(folder: Path, device: str) -> None:
    harness_model()
    args = "pretrained=tiny,method=ck-plug,alpha=0.9,gate=1000000.0"
    shown = run("ckcontrol", folder, "my_set_agree", model_args=args, batch_size=2, device=device, limit=1)
    assert shown["config"]["ckcontrol"]["gate"] == 1e6 and "parr,none" in shown["results"]["my_set_agree"]


def test_the_command_line_knows_the_model() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ckcontrol.eval.interop", "run", "--help"], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0 and "--include_path" in done.stdout, done.stderr
    assert "RuntimeWarning" not in done.stderr


# --- endings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [MEMORY, ck.Control("cad", 0.4, candidate_ratio=0.0)])
def test_endings_agree_with_the_engine(llama: Any, control: ck.Control) -> None:
    """What generate drew, and how likely it found it, is what compare says of the same text."""
    model, tokenizer = llama
    passages = RECORDS[0].passages
    seen = 0
    for question in (f"Where is {name}?" for name in "ABCDEFGHIJKLMNOP"):
        answer = ck.generate(model, tokenizer, question, passages, control=control, max_new_tokens=1)
        text = tokenizer.decode(answer.token_ids)
        if tuple(plain_ids(tokenizer, text)) != answer.token_ids:
            continue  # half a character: a random model draws bytes
        seen += 1
        likely, unlikely = compare(model, tokenizer, question, passages, [text, text + "x"], control=control)
        assert likely == pytest.approx(answer.tokens[0].logp_final, abs=1e-3) and likely > unlikely > -math.inf
        other = "a" if text != "a" else "b"
        assert spoken(model, tokenizer, question, passages, [text, other], control=control) == [True, False]
    assert seen >= 3


def test_endings_edges(llama: Any) -> None:
    question, passages = RECORDS[0].question, RECORDS[0].passages
    closed = [compare(*llama, question, [], [" a", " bc"], control=c) for c in (MEMORY, ck.Control("off"))]
    assert closed[0] == closed[1]
    assert compare(*llama, question, passages, [], control=MEMORY) == []
    with pytest.raises(PromptError, match="an ending is empty"):
        compare(*llama, question, passages, ["a", ""], control=MEMORY)
    with pytest.raises(PromptError, match="leaves room"):
        compare(*llama, question, passages, ["a" * 5000], control=MEMORY)
    with pytest.raises(PromptError, match="leaves room"):
        compare(*llama, question, ["long " * 1000], ["a"], control=MEMORY)
    assert compare(*llama, question, ["long " * 1000], ["a"], control=MEMORY, truncate="passages")[0] < 0
