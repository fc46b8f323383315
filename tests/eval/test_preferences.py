"""Preference pairs: each is one error of a run beside the answer that does not make it, in the form that TRL reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckcontrol.cli.main import main
from ckcontrol.errors import EvalError
from ckcontrol.eval.preferences import ERRORS, SUBSTITUTED, Pair, balanced, export_pairs, preference
from ckcontrol.eval.records import Record
from ckcontrol.eval.run_files import write_json

from . import small_run

IGNORANCE, INCLUSION = ERRORS
PROMPTS = {"base": {"instruction": "Be brief.\n", "intro": "Read:\n", "question": "Q: {question}\n", "answer": "A:"}}


def record(state: str, ctx: str = "Oslo", par: str = "Rome") -> Record:
    return Record("1", "What is the capital of Italy?", (f"It is {ctx}.",), (ctx,), (par,), state=state)


@pytest.mark.parametrize(
    ("state", "toward", "said", "chosen", "rejected", "error"),
    [
        ("conflict", "context", ["Rome.", "It is Oslo."], "It is Oslo.", "Rome.", IGNORANCE),
        ("conflict", "memory", ["Rome.", "It is Oslo."], "Rome.", "It is Oslo.", INCLUSION),
        ("irrelevant", "context", ["Oslo.", "Rome."], "Rome.", "Oslo.", INCLUSION),
        ("noisy", "memory", ["Oslo.", "Rome."], "Rome.", "Oslo.", INCLUSION),
        # what names the other side is rejected rather than what names nothing, which is rejected rather than nothing
        ("irrelevant", "context", ["I do not know.", "Oslo.", "Rome."], "Rome.", "Oslo.", INCLUSION),
        ("irrelevant", "context", ["I do not know.", "Rome."], "Rome.", "I do not know.", INCLUSION),
    ],
)
def test_chosen_and_rejected_are_answers_of_the_run(state, toward, said, chosen, rejected, error):
    answers = [(f"arm{i}", text) for i, text in enumerate(said)]
    pair = preference("t", record(state), answers, toward)
    assert isinstance(pair, Pair)
    assert (pair.chosen, pair.rejected, pair.error) == (chosen, rejected, error)
    assert pair.arms == tuple(f"arm{said.index(text)}" for text in (chosen, rejected))


@pytest.mark.parametrize("state", ["agree", "helpful"])
def test_a_right_passage_that_was_not_followed_is_ignorance(state):
    pair = preference("t", record(state, "Rome", "Rome"), [("off", "Pisa."), ("dial@0", "Rome.")], "memory")
    assert isinstance(pair, Pair)
    assert (pair.chosen, pair.rejected, pair.error) == ("Rome.", "Pisa.", IGNORANCE)


def test_a_side_that_no_arm_took_is_the_other_with_its_name_replaced():
    pair = preference("t", record("conflict"), [("off", "The capital is Rome, of course.")], "context")
    assert isinstance(pair, Pair)
    assert (pair.chosen, pair.rejected) == ("The capital is Oslo, of course.", "The capital is Rome, of course.")
    assert pair.arms == (SUBSTITUTED, "off")
    pair = preference("t", record("conflict"), [("off", "Oslo.")], "context")
    assert isinstance(pair, Pair)
    assert (pair.chosen, pair.rejected, pair.arms) == ("Oslo.", "Rome.", ("off", SUBSTITUTED))


@pytest.mark.parametrize(
    ("state", "said", "why"),
    [
        ("irrelevant", ["Rome."], "every answer is right"),
        ("irrelevant", ["Pisa."], "no answer follows the wanted source"),
        ("conflict", ["", "  "], "no arm answered in words"),
        ("plain", ["Rome."], "state plain names no source"),
    ],
)
def test_what_shows_no_error_is_no_pair(state, said, why):
    assert preference("t", record(state), [(str(i), text) for i, text in enumerate(said)], "context") == why


@pytest.mark.parametrize(
    ("state", "toward", "said", "chosen", "rejected"),
    [
        ("conflict", "context", ["It is Rome.", "Oslo!"], "Oslo!", "Rome!"),
        ("conflict", "memory", ["Pisa.", "Oslo!"], "Rome!", "Oslo!"),
        ("conflict", "context", ["Rome, not Oslo, is it.", "It is Rome."], "It is Oslo.", "It is Rome."),
        ("noisy", "context", ["It is Oslo.", "It is Rome, sure."], "It is Rome, sure.", "It is Oslo, sure."),
        ("irrelevant", "memory", ["Rome."], "Rome.", "Oslo."),  # no arm made the error
    ],
)
def test_in_the_same_words_two_answers_differ_in_the_name_alone(state, toward, said, chosen, rejected):
    answers = [(f"arm{i}", text) for i, text in enumerate(said)]
    pair = preference("t", record(state), answers, toward, same_words=True)
    assert isinstance(pair, Pair)
    assert (pair.chosen, pair.rejected) == (chosen, rejected)
    assert SUBSTITUTED in pair.arms and any(text in said for text in (chosen, rejected))


def test_in_the_same_words_an_answer_that_is_about_the_other_thing_is_not_made_right():
    said = [("off", "Oslo is the capital of Norway."), ("closed-book", "Rome and Oslo.")]
    assert preference("t", record("irrelevant"), said, "context", same_words=True) == (
        "no answer names one source, and once"
    )
    helpful = preference("t", record("helpful", "Rome", "Rome"), [("off", "Pisa."), ("b", "Rome.")], "context",
                         same_words=True)  # fmt: skip
    assert isinstance(helpful, Pair) and (helpful.chosen, helpful.rejected) == ("Rome.", "Pisa.")


def test_where_both_sides_agree_the_wrong_name_is_that_of_another_record():
    said = [("off", "It is Rome.")]
    pair = preference("t", record("agree", "Rome", "Rome"), said, "context", same_words=True, false=("Oslo",))
    assert isinstance(pair, Pair)
    assert (pair.chosen, pair.rejected, pair.arms) == ("It is Rome.", "It is Oslo.", ("off", SUBSTITUTED))
    assert (pair.right, pair.wrong) == (("Rome",), ("Oslo",))
    alone = preference("t", record("agree", "Rome", "Rome"), said, "context", same_words=True)
    assert alone == "every answer is right"


def test_answers_that_were_cut_short_make_no_pair(tmp_path):
    folder = write(tmp_path / "run", style="chat", prompts=PROMPTS)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    cut = [line | {"finish": "length"} if line.get("id") == "Italy/conflict" else line for line in lines]
    whole, short = ([], [])
    for rows, found in ((lines, whole), (cut, short)):
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        made = export_pairs(folder, tmp_path / "pairs.jsonl", balance=False)
        found += [json.loads(line) for line in made.path.read_text(encoding="utf-8").splitlines()]
    gone = [row for row in whole if row["id"] == "Italy/conflict"]
    assert len(gone) == 1 and (gone[0]["right"], gone[0]["wrong"]) == (["Oslo"], ["Rome"])
    assert short == [row for row in whole if row["id"] != "Italy/conflict"]
    assert made.skipped["no arm answered in words, without those cut short"] == 1
    # agree: the false name is the one of the conflict about the same question
    agree = [row for row in whole if row["id"] == "Italy/agree"]
    assert agree[0]["chosen"][0]["content"] == "it is Rome." and agree[0]["rejected"][0]["content"] == "it is Oslo."


def pair(i: int, state: str) -> Pair:
    error = IGNORANCE if state in ("conflict", "helpful", "agree") else INCLUSION
    return Pair("t", Record(str(i), "Where is it?", state=state), error, "a", "b", ("x", "y"))


def test_errors_count_the_same_and_states_share_evenly_whatever_the_order():
    states = ["conflict"] * 10 + ["helpful"] * 2 + ["irrelevant"] * 5 + ["noisy"] * 1
    pairs = [pair(i, state) for i, state in enumerate(states)]
    kept = balanced(pairs)
    assert [each.record.state for each in kept].count("conflict") == 4
    assert [each.record.state for each in kept].count("helpful") == 2
    assert [each.error for each in kept].count(INCLUSION) == 6
    assert {each.record.id for each in balanced(pairs[::-1])} == {each.record.id for each in kept}
    assert {each.record.id for each in balanced(pairs, seed=1)} != {each.record.id for each in kept}
    assert balanced(pairs[:12]) == pairs[:12]


def write(folder: Path, **card: Any) -> Path:
    folder.mkdir()
    write_json(folder / "run.json", small_run.run() | card)
    for name, rows in (("items", small_run.items()), ("samples", small_run.samples())):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_a_run_of_chats_becomes_conversations(tmp_path):
    folder = write(tmp_path / "run", style="chat", prompts=PROMPTS)
    made = export_pairs(folder, tmp_path / "out" / "pairs.jsonl", balance=False, same_words=False)
    rows = [json.loads(line) for line in made.path.read_text(encoding="utf-8").splitlines()]
    first = rows[0]
    prompt = "Be brief.\nRead:\nIt is Oslo.\nQ: What is the capital of Italy?\n"
    assert first["prompt"] == [{"role": "user", "content": prompt}]
    assert first["chosen"] == [{"role": "assistant", "content": "it is Oslo."}]
    assert first["rejected"] == [{"role": "assistant", "content": "it is Rome."}]
    assert (first["error"], first["state"], first["source"], first["toward"]) == (
        IGNORANCE,
        "conflict",
        "contextual",
        "context",
    )
    assert first["arms"] == {"chosen": "ck-plug@0", "rejected": "off"}
    assert {(row["id"], row["error"]) for row in rows if row["state"] == "irrelevant"} == {
        ("France/irrelevant", INCLUSION)
    }
    assert made.found == made.kept
    assert sum(made.kept.values()) == len(rows)


def test_a_run_of_completions_becomes_texts_that_end_where_the_answer_begins(tmp_path):
    folder = write(tmp_path / "run", style="completion", prompts=PROMPTS)
    made = export_pairs(folder, tmp_path / "pairs.jsonl", toward="memory", balance=False, same_words=False)
    row = json.loads(made.path.read_text(encoding="utf-8").splitlines()[0])
    assert row["prompt"].endswith("Q: What is the capital of Italy?\nA:")
    assert (row["chosen"], row["rejected"], row["source"]) == (" it is Rome.", " it is Oslo.", "parametric")


def test_the_words_are_those_of_the_prompt_that_the_run_was_asked_with(tmp_path):
    from ckcontrol.decoding.prompts import build_pair
    from ckcontrol.eval.running.prompt_styles import Wording
    from ckcontrol.models.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    wording = Wording("completion", tokenizer)
    folder = write(tmp_path / "run", style="completion", prompts=wording.to_dict())
    made = export_pairs(folder, tmp_path / "pairs.jsonl")
    row = json.loads(made.path.read_text(encoding="utf-8").splitlines()[0])
    asked = next(Record.from_dict(line) for line in small_run.items() if line["id"] == row["id"])
    pair = build_pair(tokenizer, asked.question, asked.passages, template=wording.templates["base"])
    assert tokenizer.decode(pair.contextual, skip_special_tokens=True) == row["prompt"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"arms": [small_run.arm("off") | {"prompt": "context-only"}]}, "no arm answered in words"),
        ({"prompts": {"base": {"no such": 1}}}, "no such"),
    ],
)
def test_a_run_without_a_pair_says_why(tmp_path, change, named):
    folder = write(tmp_path / "run", **change)
    with pytest.raises(EvalError, match=named):
        export_pairs(folder, tmp_path / "pairs.jsonl")
    assert not (tmp_path / "pairs.jsonl").exists()
    with pytest.raises(EvalError, match=r"sideways.*context"):
        export_pairs(folder, tmp_path / "pairs.jsonl", toward="sideways")


def test_the_command_counts_what_it_wrote(tmp_path, capsys):
    folder = write(tmp_path / "run")
    out = tmp_path / "pairs.jsonl"
    assert main(["eval", "export-pairs", str(folder), "--out", str(out), "--as-said"]) == 0
    told = capsys.readouterr().err
    assert f"{INCLUSION}: 1 of 1 (irrelevant 1 of 1)" in told
    assert f"{IGNORANCE}: 1 of " in told
    assert f"{folder} is not finished" in told
    (folder / "results.json").write_text("{}", encoding="utf-8")
    assert main(["eval", "export-pairs", str(folder), "--out", str(out), "--as-said"]) == 0
    assert "not finished" not in capsys.readouterr().err
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2
