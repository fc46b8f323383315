"""``ckcontrol eval`` as a user runs it: a run, its report, a comparison, a set of one's own, and every refusal."""

from __future__ import annotations

import json
import re

import pytest

from ckcontrol.cli.eval.run import split_tasks
from ckcontrol.cli.main import main

RECORDS = [
    {
        "id": str(i),
        "question": f"What is thing {i}?",
        "context": f"Thing {i} is item {i * 37}.",
        "ctx_answers": [str(i * 37)],
        "par_answers": [chr(97 + i)],
    }
    for i in range(10)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    data = folder / "things.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in RECORDS) + "not json\n", encoding="utf-8")
    out = folder / "run"
    args = ["--model", "tiny", "--methods", "off,closed-book,ck-plug", "--alpha", "0,1", "--max-new-tokens", "4"]
    args += ["--batch-size", "1", "--tasks", str(data), "--out", str(out)]
    assert main(["eval", "run", *args]) == 3  # one line is no record
    return folder, out, args


def test_a_run_says_what_it_reads_and_what_it_costs(run, capsys, tmp_path):
    folder, _, args = run
    assert main(["eval", "run", *args[:-1], str(tmp_path / "again")]) == 3
    told = capsys.readouterr().err
    assert re.search(r"things: 10 records\. Rejected: 1 ", told)
    assert "Left out things.jsonl, row 11: is not JSON" in told
    assert re.search(r"40 answers: about .* \(measured on 2 of 5 passes\)", told)
    assert re.search(r"Took .*; estimated ", told)
    assert "Next: ckcontrol eval report" in told
    again = (tmp_path / "again" / "results.json").read_bytes()
    assert again == (folder / "run" / "results.json").read_bytes()


def test_report_and_compare(run, capsys, tmp_path):
    _, out, _ = run
    assert main(["eval", "report", str(out), "--out", str(tmp_path), "--items", "2"]) == 0
    assert (tmp_path / "report.html").exists()
    assert "ck-plug" in (tmp_path / "report.md").read_text()
    assert "1 malformed; first: things.jsonl, row 11: is not JSON" in (tmp_path / "report.md").read_text()
    capsys.readouterr()
    assert main(["eval", "compare", str(out), str(out), "--json"]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)
    assert "A and B are the same run" in said.err
    assert {row["arm_a"] for row in rows} == {"off", "closed-book", "ck-plug@0", "ck-plug@1"}
    assert all(row["difference"] == 0 for row in rows)
    assert main(["eval", "compare", str(out), str(out), "--arms", "off=closed-book", "--metrics", "accuracy"]) == 0
    said = capsys.readouterr()
    assert "closed-book" in said.out and "accuracy, in %" in said.out and "same run" not in said.err
    assert main(["eval", "compare", str(out), str(out), "--metrics", "length,accuracy", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main(["eval", "compare", str(out), str(out), "--metrics", "length,accuracy"]) == 0
    told = capsys.readouterr().out
    for row in rows:
        assert (f"{100 * row['a']:.1f}" if row["metric"] == "accuracy" else f"{row['a']:.2f}") in told
    assert {row["metric"] for row in rows} == {"length", "accuracy"} and "length, in %" not in told


def test_shards_and_merge(run, tmp_path, capsys):
    _, out, args = run
    for i in (1, 2):
        assert main(["eval", "run", *args[:-1], str(tmp_path / str(i)), "--shard", f"{i}/2"]) == 3
    assert "This shard is done" in capsys.readouterr().err
    assert main(["eval", "merge", str(tmp_path / "1"), str(tmp_path / "2"), "--out", str(tmp_path / "all")]) == 0
    assert (tmp_path / "all" / "results.json").read_bytes() == (out / "results.json").read_bytes()


def test_build_conflicts_makes_what_run_reads(tmp_path, capsys):
    facts = tmp_path / "facts.jsonl"
    rows = [("Oslo", "Norway"), ("Rome", "Italy"), ("Lima", "Peru")]
    lines = [
        {"relation": "in", "subject": s, "answer": a, "question": f"Where is {s}?", "cloze": f"{s} is in"}
        for s, a in rows
    ]
    facts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "set.jsonl"
    assert main(["eval", "build-conflicts", str(facts), "--types", "conflict,agree", "--out", str(out)]) == 0
    assert "6 records" in capsys.readouterr().err
    states = [json.loads(line)["meta"]["state"] for line in out.read_text().splitlines()]
    assert sorted(states) == ["agree"] * 3 + ["conflict"] * 3
    args = ["--tasks", str(out), "--model", "tiny", "--methods", "off", "--max-new-tokens", "2"]
    assert main(["eval", "run", *args, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", "nq_swop"], "no task and no file 'nq_swop'. Did you mean"),
        (["--tasks", "nq_swap"], "nq_swap"),
        (["--tasks", "facts", "--methods", "ck-plugg"], "Did you mean 'ck-plug'"),
        (["--tasks", "facts", "--alpha", "0,x"], "not a list of numbers"),
        (["--tasks", "facts", "--alpha", "0,2"], "alpha=2"),
        (["--tasks", "facts", "--shard", "1of2"], "is not a shard"),
        (["--tasks", "facts", "--style", "chatt", "--model", "tiny"], "no prompt style"),
        (["--tasks", "facts", "--temperature", "0.5"], "--temperature 0.5 without --sample"),
        (["--tasks", "facts", "--url", "http://server.test", "--dtype", "auto"], "--dtype 'auto' is for a model here"),
    ],
)
def test_bad_input_is_told_in_a_line(args, message, tmp_path, capsys):
    assert main(["eval", "run", *args, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told
    assert told.startswith("ckcontrol: ")


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_folder_without_a_run_is_told(command, tmp_path, capsys):
    args = [str(tmp_path)] * (2 if command == "compare" else 1)
    assert main(["eval", command, *args]) == 2
    assert re.search("run.json|results.json", capsys.readouterr().err)


def test_tasks_are_split_at_commas_but_not_inside_options(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("{}")
    assert split_tasks([f"facts?relations=capital,currency,{path},nq_swap=a.parquet?limit=3", "ramdocs=b"]) == [
        "facts?relations=capital,currency",
        str(path),
        "nq_swap=a.parquet?limit=3",
        "ramdocs=b",
    ]


def test_what_has_no_figure_is_said(tmp_path, capsys):
    data, out = tmp_path / "own.jsonl", str(tmp_path / "run")
    told = {"question": "Who?", "context": "Ida rows.", "ctx_answers": ["Ida"], "par_answers": []}
    rows = [told | {"id": state, "meta": {"state": state}} for state in ("helpful", "irrelevant")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ["--tasks", str(data), "--model", "tiny", "--methods", "off,cad", "--alpha", "1", "--max-new-tokens", "2"]
    assert main(["eval", "run", *args, "--out", out]) == 0
    assert main(["eval", "compare", out, out, "--arms", "off=cad@1"]) == 0
    said = capsys.readouterr()
    assert "own · helpful · accuracy" in said.out
    assert "No accuracy for own · irrelevant: the records have no par_answers" in said.err
    assert main(["eval", "report", out]) == 0
    page = (tmp_path / "run" / "report.md").read_text()
    assert "undefined: the records have no par" in page
