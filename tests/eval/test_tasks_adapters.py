"""Adapters, each on a small file of its published shape, oddities included."""

from __future__ import annotations

from collections import Counter

import pytest

from ckcontrol.errors import EvalError
from ckcontrol.eval.tasks.load import load_task
from ckcontrol.eval.tasks.memotrap import split_prompt

from .data import fixture


def test_nq_swap() -> None:
    task = load_task(f"nq_swap={fixture('nq_swap.jsonl')}")
    first, second = task.records
    assert first.passages == ("There are 775 boats in the harbour .",)
    assert (first.ctx_answers, first.par_answers) == (("775",), ("23",))
    assert first.meta["org_context"] == "There are 23 boats in the harbour ."
    assert second.passages == ("Boats 40",), "tags with attributes go too"
    assert second.ctx_answers == ("40",), "a text stands for a list"
    assert first.group == second.group
    assert task.reasons == {"answers overlap": 1, "parametric answer in context": 1, "malformed": 1}
    assert [item.id for item in task.rejected] == [f"nq_swap.jsonl:{n}" for n in (4, 2, 3)]


PAIR = f"context_faithful_nq={fixture('cfnq_orig.json')}+{fixture('cfnq_conflict.json')}"


def test_context_faithful_nq_pairs_by_index() -> None:
    task = load_task(PAIR)
    assert [record.id for record in task.records] == ["0", "1", "3", "4"]
    assert task.records[0].passages == ("Ute does .",)
    assert (task.records[0].ctx_answers, task.records[0].par_answers) == (("Ute",), ("Abe",))
    assert task.reasons == {"original answer is null": 1}
    assert set(task.settings["files"]) == {"cfnq_orig.json", "cfnq_conflict.json"}
    assert "notes" not in task.settings


def test_context_faithful_nq_slice_counts_rows_of_the_files() -> None:
    task = load_task(f"{PAIR}?slice=2:4")
    assert [record.id for record in task.records] == ["3"]
    assert task.reasons == {"original answer is null": 1} and task.settings["slice"] == "2:4"
    with pytest.raises(EvalError, match="slice='600' is not START:STOP"):
        load_task(f"{PAIR}?slice=600")


def test_context_faithful_nq_needs_two_files_of_one_length() -> None:
    with pytest.raises(EvalError, match="needs two files"):
        load_task(f"context_faithful_nq={fixture('cfnq_orig.json')}")
    with pytest.raises(EvalError, match=r"ends with row 4.*paired by index"):
        load_task(f"context_faithful_nq={fixture('cfnq_orig.json')}+{fixture('ConFiQA-QA.json')}")


def test_context_faithful_nq_from_nq_swap_is_marked_a_surrogate(tmp_path) -> None:
    (tmp_path / "orig.json").write_text(
        '[{"question": "how many boats are in the harbour", "context": "Boats 23", "answer": ["23"]},'
        ' {"question": "who", "context": "nobody knows", "answer": ["x"]}]',
        encoding="utf-8",
    )
    task = load_task(f"context_faithful_nq={tmp_path / 'orig.json'}+{fixture('nq_swap.jsonl')}")
    assert [(record.id, record.ctx_answers) for record in task.records] == [("0", ("40",))]
    assert task.reasons == {"no surrogate": 1}
    assert task.settings["notes"][0].startswith("surrogate")
    assert task.records[0].meta["note"].startswith("surrogate")


def test_confiqa() -> None:
    task = load_task(f"confiqa={fixture('ConFiQA-QA.json')}")
    (record,) = task.records
    assert record.ctx_answers == ("Jon Aske",) and record.par_answers == ("Mira Solberg", "Mira E. Solberg")
    assert record.meta == {"org_context": "The score of Low Tide is by Mira Solberg.", "variant": "QA"}
    assert task.reasons == {"parametric answer in context": 1}, "literal replacement leaves names behind"
    multi = load_task(f"confiqa={fixture('ConFiQA-MC.json')}")
    assert multi.records[0].meta["variant"] == "MC" and multi.reasons == {"malformed": 1}


def test_mquake() -> None:
    task = load_task(f"mquake={fixture('mquake.json')}")
    (record,) = task.records
    assert record.id == "7/0" and record.question.startswith("Where is the author")
    assert record.passages == ("Grey Sails was written by Tor Lind. Tor Lind is a citizen of Norway.",)
    assert record.ctx_answers == ("Norway", "Kingdom of Norway")
    assert record.par_answers == ("Austria", "Republic of Austria", "Oesterreich")
    assert task.reasons == {"malformed": 1}
    every = load_task(f"mquake={fixture('mquake.json')}?questions=all")
    assert [r.id for r in every.records] == ["7/0", "7/1", "7/2"]
    assert {r.group for r in every.records} == {"case 7"}, "the three questions of a case are no three cases"
    with pytest.raises(EvalError, match="Did you mean 'first'"):
        load_task(f"mquake={fixture('mquake.json')}?questions=frist")


@pytest.mark.parametrize(
    ("file", "passage", "cloze"),
    [
        ("counterfact_rome.json", "Bergen is a town in Chile.", "Bergen is a town in"),
        ("counterfact_compmech.json", "Redefine: Bergen lies in Chile.", "Bergen lies in"),
        ("counterfact_tracing.jsonl", "Bergen lies in Chile.", "Bergen lies in"),
        ("counterfact_cub.jsonl", "Bergen lies in Chile.", "Bergen lies in"),
    ],
)
def test_counterfact_in_its_four_shapes(file: str, passage: str, cloze: str) -> None:
    record = load_task(f"counterfact={fixture(file)}").records[0]
    assert record.passages == (passage,) and record.question == cloze and record.cloze
    assert (record.ctx_answers, record.par_answers) == (("Chile",), ("Norway",))


def test_counterfact_options() -> None:
    plain = load_task(f"counterfact={fixture('counterfact_compmech.json')}?context=statement")
    assert plain.records[1].passages == ("Lund lies in Peru.",)
    task = load_task(f"counterfact={fixture('counterfact_cub.jsonl')}?score=choices")
    assert task.kind == "choices" and task.reasons == {"malformed": 1}
    assert [(r.state, r.answer_index) for r in task.records] == [("conflict", 0), ("agree", 1), ("irrelevant", 1)]
    assert task.records[0].choices == (" Chile", " Norway")
    with pytest.raises(EvalError, match="score='guess' is unknown"):
        load_task(f"counterfact={fixture('counterfact_cub.jsonl')}?score=guess")


@pytest.mark.parametrize("file", ["paraconflict.json", "paraconflict_flat.json", "paraconflict_list.json"])
def test_paraconflict_in_its_three_shapes(file: str) -> None:
    task = load_task(f"paraconflict={fixture(file)}")
    first, second = task.records
    assert first.question == "Bergen lies in" and first.cloze
    assert first.passages == ("Bergen lies in Chile.",), "without the cloze that the published context ends with"
    assert first.par_answers == ("Norway", "Kingdom of Norway") and second.par_answers == ("Sweden",)
    assert first.meta["relation"] == ("" if "flat" in file else "country")
    assert task.reasons == ({"malformed": 1} if file == "paraconflict.json" else {})
    other = load_task(f"paraconflict={fixture(file)}?form=coherent").records[0]
    assert other.passages == ("Maps agree that Bergen is a port of Chile.",)


def test_memotrap_keeps_raw_strings_and_parts_instruction_from_text() -> None:
    task = load_task(f"memotrap={fixture('1-endings.csv')}")
    assert task.kind == "choices" and task.reasons == {"malformed": 3}
    quote, translation, options, bare = task.records
    assert quote.passages == ('Write a quote that ends in the word "rope": ',)
    assert quote.question == "Still waters run"
    assert quote.choices == (" deep.", " rope.") and quote.answer_index == 1
    assert quote.ctx_answers == (" rope.",) and quote.par_answers == (" deep.",)
    assert quote.meta["roles"] == ["parametric", "contextual"] and quote.meta["subtask"] == "1-endings"
    assert translation.passages[0].endswith("\nto:\n") and translation.question == "Still waters run"
    assert translation.choices == (" rope.", " Rope"), "equal once normalised, still two"
    assert options.question == "A. The sea ends.\nB. The sea goes on.\nAnswer:"
    assert bare.passages == () and bare.question == "no instruction here"


@pytest.mark.parametrize("prompt", ["", "a: ", "x", 'Say "y": go: on', "l\nto:\nr", "q?\nA. 1\nB. 2\nAnswer:"])
def test_the_two_parts_make_the_prompt(prompt: str) -> None:
    instruction, question = split_prompt(prompt)
    assert instruction + question == prompt
    assert question or not prompt


def test_conflictqa() -> None:
    task = load_task(f"conflictqa={fixture('conflictqa.jsonl')}")
    (record,) = task.records
    assert task.kind == "choices" and record.choices == (" A", " B", " C")
    lines = record.question.split("\n")
    assert lines[0] == "Do lighthouses float?" and len(lines) == 4
    assert lines[1 + record.answer_index][3:] == record.ctx_answers[0] == "Lighthouses float at sea."
    parametric = record.meta["roles"].index("parametric")
    assert lines[1 + parametric][3:] == record.par_answers[0]
    assert record.passages == ("Some are moored with chains.",)
    assert task.reasons == {"malformed": 1}


def test_ramdocs() -> None:
    noisy, plain = load_task(f"ramdocs={fixture('ramdocs.jsonl')}").records
    assert noisy.state == "noisy" and len(noisy.passages) == 4
    assert noisy.par_answers == ("Ostland", "Vestland") and noisy.ctx_answers == ("Sudland",)
    assert noisy.meta["types"] == ["correct", "correct", "misinfo", "noise"]
    assert plain.state == "plain" and plain.ctx_answers == ()


def test_kilt_takes_golds_and_passages_from_where_they_are() -> None:
    task = load_task(f"kilt={fixture('kilt.jsonl')}")
    first, second, third = task.records
    assert first.par_answers == first.ctx_answers == ("Ida Voss", "I. Voss") and first.state == "plain"
    assert first.passages == ("Ida Voss lit it.", "It was dark.")
    assert second.par_answers == ("Per", "Per Holm") and second.passages == ("Per rowed.",)
    assert third.par_answers == ("g",) and third.state == "closed"
    assert task.reasons == {"malformed": 1}
    assert load_task(f"kilt={fixture('kilt.jsonl')}?top=1").records[0].passages == ("Ida Voss lit it.",)
    with pytest.raises(EvalError, match="top='few'"):
        load_task(f"kilt={fixture('kilt.jsonl')}?top=few")


def test_rgb_is_json_lines_whatever_its_name() -> None:
    first, second, third = load_task(f"rgb={fixture('rgb_en_fact.json')}").records
    assert first.passages == ("Per Holm won.", "A win for Per Holm.")
    assert (first.ctx_answers, first.par_answers) == (("Per Holm",), ("Una Berg",))
    assert first.meta["org_context"] == "Una Berg won."
    assert second.par_answers == ("May 3", "3 May")
    assert third.state == "plain" and third.par_answers == ("May 3", "3 May", "Una Berg")


def test_flashrag() -> None:
    records = load_task(f"flashrag={fixture('flashrag.jsonl')}").records
    assert Counter(record.state for record in records) == {"closed": 2, "conflict": 1}
    assert records[1].passages == ("Per rowed.",) and records[1].par_answers == ("Una",)
    assert records[2].id == "flashrag.jsonl:2" and records[2].par_answers == ("Abe",)


def test_tristate_takes_the_prompt_with_the_passage_of_every_item() -> None:
    task = load_task(f"tristate={fixture('tristate.jsonl')}")
    conflict, helpful, agree = task.records
    assert (conflict.id, conflict.state, conflict.question) == (
        "location_7/conflict",
        "conflict",
        "What is the capital of Peru?",
    )
    assert conflict.passages == ("Peru is a country.\nIts capital is Quito.",)
    assert conflict.ctx_answers == ("Quito",) and conflict.par_answers == ("Lima",)
    assert (helpful.state, helpful.par_answers, helpful.meta["known"]) == ("helpful", ("Ada", "Ada Q."), False)
    assert (agree.state, agree.meta["known"]) == ("agree", True)
    assert [item.detail.split(".")[0] for item in task.rejected] == [
        "context_string is no passage with a question",
        "benchmark 'C_wrong_P_wrong' is unknown",
    ]
