"""Runs: the same results.json however often they are killed, cut short or sharded; refusals; what is written."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess

import pytest

import ckcontrol as ck
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.errors import EvalError
from ckcontrol.eval.run_files import lines, read_json, samples
from ckcontrol.eval.running.arms import arms_for
from ckcontrol.eval.running.engine import Local
from ckcontrol.eval.running.runner import merge, run
from ckcontrol.eval.tasks.load import load_task

ARMS = arms_for(["off", "closed-book", "prompt", "ck-plug", "adacad"], [0.0, 0.5, 1.0])
RECORDS = [
    {
        "id": str(i),
        "question": f"What is the name of thing {i % 7}?",
        "context": f"Thing {i} is called item {'very ' * (i % 4)}{i * 37}.",
        "ctx_answers": [str(i * 37)],
        "par_answers": [chr(97 + i)],
    }
    for i in range(14)
] + [
    {
        "id": f"choice{i}",
        "question": "The sky is",
        "context": "Say it wrong.",
        "ctx_answers": [" green"],
        "par_answers": [" blue"],
        "meta": {"choices": [" blue", " green"], "answer_index": 1, "cloze": True},
    }
    for i in range(3)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "things.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return path


def engine(llama, **options):
    return Local(*llama, "tiny", options=GenerateOptions(max_new_tokens=6, **options))


def ran(llama, data, out, **options):
    return run(engine(llama), [load_task(str(data))], ARMS, out, batch_size=3, **options)


@pytest.fixture(scope="module")
def whole(tiny, data, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    ran(tiny("llama"), data, out)
    return out


def digest(folder):
    return hashlib.sha256((folder / "results.json").read_bytes()).hexdigest()


def test_every_record_is_answered_by_every_arm(data, whole):
    found = {(line["id"], line["arm"]) for line in samples(whole)}
    free = [r["id"] for r in RECORDS if "meta" not in r]
    bound = [r["id"] for r in RECORDS if "meta" in r]
    wanted = {(i, arm.name) for i in free for arm in ARMS}
    wanted |= {(i, arm.name) for i in bound for arm in ARMS if arm.prompt == "base"}
    assert found == wanted
    results = read_json(whole / "results.json")
    assert results["run"]["options"]["max_new_tokens"] == 6
    assert results["tasks"]["things"]["sha256"] == load_task(str(data)).sha256
    assert {cell["arm"] for cell in results["cells"]} == {arm.name for arm in ARMS}
    assert all(cell["errors"] == 0 for cell in results["cells"])


def test_samples_are_what_generate_answers(llama, whole):
    model, tokenizer = llama
    by_place = {(line["id"], line["arm"]): line for line in samples(whole)}
    for record in RECORDS[:4]:
        for arm in ARMS:
            if arm.prompt != "base":
                continue
            answer = ck.generate(
                model, tokenizer, record["question"], [record["context"]], control=arm.control, max_new_tokens=6
            )
            line = by_place[record["id"], arm.name]
            assert (line["text"], line["n"], line["finish"]) == (
                answer.text,
                len(answer.token_ids),
                answer.finish_reason,
            )


def test_a_second_run_makes_nothing(llama, data, whole):
    before = digest(whole)
    outcome = ran(llama, data, whole)
    assert (outcome.resumed, outcome.estimate) == (outcome.passes, None)
    assert digest(whole) == before


@pytest.mark.parametrize("seed", range(12))
def test_cut_anywhere_and_resumed_ends_the_same(llama, data, whole, tmp_path, seed):
    """As a crash leaves it: the file of samples ends at any byte."""
    raw = (whole / "samples.jsonl").read_bytes()
    for name in ("run.json", "items.jsonl"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    (tmp_path / "samples.jsonl").write_bytes(raw[: random.Random(seed).randrange(len(raw))])
    outcome = ran(llama, data, tmp_path)
    assert 0 <= outcome.resumed < outcome.passes
    assert digest(tmp_path) == digest(whole)


KILLS = """
import hashlib, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.eval.running.arms import arms_for
from ckcontrol.eval.running.engine import Local
from ckcontrol.eval.running.runner import run
from ckcontrol.eval.tasks import load_task
from ckcontrol.models.tiny import tiny_model

data, out = sys.argv[1], Path(sys.argv[2])
tiny = tiny_model("llama")
arms = arms_for(["off", "closed-book", "prompt", "ck-plug", "adacad"], [0.0, 0.5, 1.0])

def work(folder):
    engine = Local(*tiny, "tiny", options=GenerateOptions(max_new_tokens=6))
    run(engine, [load_task(data), load_task("facts?limit=3")], arms, folder, batch_size=3)

def child(folder, after):
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        if after:
            signal.setitimer(signal.ITIMER_REAL, after)
        work(folder)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

started = time.monotonic()
child(out / "whole", 0)
took = time.monotonic() - started
draw = random.Random(0)
killed = 0
for attempt in range(200):
    if killed == 10:
        break
    # Early points and late ones; a run that got through is begun anew, so that ten are really killed.
    if child(out / "killed", draw.uniform(0.02, 0.5) * took):
        killed += 1
    else:
        for path in (out / "killed").iterdir():
            path.unlink()
child(out / "killed", 0)
print(killed, *(hashlib.sha256((out / n / "results.json").read_bytes()).hexdigest() for n in ("whole", "killed")))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_ten_times_ends_with_the_same_bytes(data, tmp_path, warm):
    script = tmp_path / "kills.py"
    script.write_text(KILLS)
    done = subprocess.run(
        [warm.python, str(script), str(data), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    killed, whole, resumed = done.stdout.split()
    assert killed == "10"
    assert whole == resumed


def test_shards_in_one_folder_add_up(llama, data, whole, tmp_path):
    first = ran(llama, data, tmp_path, shard=(1, 2))
    assert first.results is None
    assert not (tmp_path / "results.json").exists()
    assert ran(llama, data, tmp_path, shard=(2, 2)).results is not None
    assert digest(tmp_path) == digest(whole)


def test_shards_in_two_folders_are_merged(llama, data, whole, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for i, folder in enumerate(folders, 1):
        ran(llama, data, folder, shard=(i, 3))
    with pytest.raises(EvalError, match="was not answered by"):
        merge(folders[:2], tmp_path / "short")
    merge(folders, tmp_path / "out")
    assert digest(tmp_path / "out") == digest(whole)


def test_two_tasks_of_one_name_are_refused(llama, data, tmp_path):
    tasks = [load_task("facts?limit=2"), load_task(str(data)), load_task(str(data))]
    with pytest.raises(EvalError, match="two tasks are called 'things'"):
        run(engine(llama), tasks, ARMS, tmp_path)


def test_no_such_shard(llama, data, tmp_path):
    with pytest.raises(EvalError, match="no shard 3 of 2"):
        ran(llama, data, tmp_path, shard=(3, 2))


@pytest.mark.parametrize("what", ["arms", "options", "data", "batch", "model"])
def test_another_run_is_refused_by_the_field_that_differs(tiny, data, whole, tmp_path, what):
    model, arms, size, tasks = engine(tiny("llama")), ARMS, 3, [load_task(str(data))]
    named = {"arms": "arms", "options": "options.max_new_tokens", "data": "tasks.things"}.get(what, what)
    if what == "arms":
        arms = ARMS[:3]
    elif what == "options":
        model = Local(*tiny("llama"), "tiny", options=GenerateOptions(max_new_tokens=5))
    elif what == "data":
        changed = tmp_path / "things.jsonl"
        changed.write_text(data.read_text().replace("Say it wrong", "Say it right"))
        tasks = [load_task(str(changed))]
    elif what == "batch":
        size = 4
    else:
        model = engine(tiny("qwen2"))
    before = digest(whole)
    with pytest.raises(EvalError, match=f"another run: {named.replace('.', chr(92) + '.')}"):
        run(model, tasks, arms, whole, batch_size=size)
    assert digest(whole) == before


def test_two_writers_do_not_meet(llama, data, tmp_path):
    from ckcontrol.eval.run_files import SampleFile

    with SampleFile(tmp_path / "samples.jsonl"), pytest.raises(EvalError, match="written by another process"):
        ran(llama, data, tmp_path)


def test_facts_become_the_states_the_model_is_in(llama, tmp_path):
    notes: list[str] = []
    run(engine(llama), [load_task("facts?limit=3")], ARMS[:2], tmp_path, on_note=notes.append)
    items = list(lines(tmp_path / "items.jsonl"))
    known = {item["meta"]["fact"]: item["meta"]["known"] for item in items}
    assert len(known) == 3
    for item in items:
        assert (item["meta"]["state"] == "helpful") == (not known[item["meta"]["fact"]])
    assert "Facts known closed-book: " in notes[0] and " of 3." in notes[0]


def test_what_breaks_is_counted_not_averaged(data, tmp_path):
    """A model that breaks on one record: its samples are errors, the others are as they were."""
    from ckcontrol.decoding.prompts import plain_ids
    from ckcontrol.models.tiny import tiny_model

    model, tokenizer = tiny_model("llama")
    mark = plain_ids(tokenizer, "7")[0]

    def poison(module, args, kwargs, output):
        ids = kwargs.get("input_ids")
        if ids is not None and ids.shape[1] > 1:
            output.logits[(ids == mark).any(-1)] = float("nan")
        return output

    hook = model.register_forward_hook(poison, with_kwargs=True)
    outcome = run(
        Local(model, tokenizer, "tiny", options=GenerateOptions(max_new_tokens=4)),
        [load_task(str(data))],
        ARMS[:1],
        tmp_path,
    )
    hook.remove()
    broken = sum(outcome.errors.values())
    assert 0 < broken < len(RECORDS)
    assert all("not finite" in message or "NaN" in message or "step 0" in message for message in outcome.errors)
    results = read_json(tmp_path / "results.json")
    assert sum(cell["errors"] for cell in results["cells"]) == broken
    assert "NaN" not in (tmp_path / "results.json").read_text()


def test_damage_inside_the_samples_is_named(whole, tmp_path):
    raw = (whole / "samples.jsonl").read_bytes().split(b"\n")
    raw[1] = raw[1][:20]
    (tmp_path / "samples.jsonl").write_bytes(b"\n".join(raw))
    from ckcontrol.eval.run_files import SampleFile

    with pytest.raises(EvalError, match="line 2 is damaged"), SampleFile(tmp_path / "samples.jsonl"):
        pass


def finished(folder):
    """Return what results.json holds, the perplexities aside: they follow a batch's rounding."""
    found = read_json(folder / "results.json")
    for cell in found["cells"]:
        cell["metrics"].pop("ppl_closed", None)
    for curve in found["curves"]:
        for point in curve["points"]:
            point.pop("ppl_closed", None)
    return found


@pytest.mark.parametrize("named", ["all", "new"])
def test_arms_are_added_to_a_finished_run(llama, data, tmp_path, named, monkeypatch):
    """Only they are answered; the results are those of one run with all of them, and the same command goes on."""
    tasks = [load_task(str(data)), load_task("facts?limit=3")]
    first, more = arms_for(["off", "ck-plug"], [0.0, 1.0]), arms_for(["closed-book", "prompt", "cad@0.9"])
    given = [*more[:1], *first, *more[1:]] if named == "all" else more
    local = engine(llama)
    run(local, tasks, first, tmp_path / "run", batch_size=3)
    kept = (tmp_path / "run" / "samples.jsonl").read_bytes()
    asked = []
    inner = local.run
    monkeypatch.setattr(
        local, "run", lambda r, arms, prompt: asked.extend(a.name for a in arms) or inner(r, arms, prompt)
    )
    run(local, tasks, given, tmp_path / "run", batch_size=3)
    assert set(asked) == {arm.name for arm in more}
    assert (tmp_path / "run" / "samples.jsonl").read_bytes().startswith(kept)
    run(engine(llama), tasks, [*first, *more], tmp_path / "once", batch_size=3)
    assert finished(tmp_path / "run") == finished(tmp_path / "once")
    before = digest(tmp_path / "run")
    cut = (tmp_path / "run" / "samples.jsonl").read_bytes()[:-50]
    (tmp_path / "run" / "samples.jsonl").write_bytes(cut)
    outcome = run(local, tasks, given, tmp_path / "run", batch_size=3)
    assert outcome.resumed == outcome.passes - 1
    assert digest(tmp_path / "run") == before


def test_what_cannot_be_added_is_refused(llama, data, tmp_path):
    tasks = [load_task(str(data))]
    off = arms_for(["off"])
    run(engine(llama), tasks, off, tmp_path, batch_size=3)
    before = digest(tmp_path), (tmp_path / "run.json").read_bytes()
    with pytest.raises(EvalError, match="arms of other candidates"):
        run(engine(llama), tasks, arms_for(["ck-plug:candidates=7"], [0.0]), tmp_path, batch_size=3)
    with pytest.raises(EvalError, match="another run: batch_size is 3 there and 4 here"):
        run(engine(llama), tasks, arms_for(["cad"], [0.0]), tmp_path, batch_size=4)
    assert (digest(tmp_path), (tmp_path / "run.json").read_bytes()) == before
    card = read_json(tmp_path / "run.json")
    card["arms"][0]["control"]["method"] = "mine"
    (tmp_path / "run.json").write_text(json.dumps(card))
    with pytest.raises(EvalError, match="holds the arm 'off', which is not known here"):
        run(engine(llama), tasks, arms_for(["cad"], [0.0]), tmp_path, batch_size=3)
    with pytest.raises(EvalError, match=r"another run: arms\[0\]\.control\.method is 'mine' there and 'off' here"):
        run(engine(llama), tasks, [*off, *arms_for(["cad"], [0.0])], tmp_path, batch_size=3)
    card["waves"] = [4]
    (tmp_path / "run.json").write_text(json.dumps(card))
    with pytest.raises(EvalError, match="holds wrong waves"):
        run(engine(llama), tasks, off, tmp_path, batch_size=3)


def test_samples_of_another_pass_are_refused(llama, data, whole, tmp_path):
    """Two lines that changed places between passes: every count is right."""
    for name in ("run.json", "items.jsonl"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    rows = (whole / "samples.jsonl").read_bytes().split(b"\n")
    last = len(rows) - 3
    rows[0], rows[last] = rows[last], rows[0]
    (tmp_path / "samples.jsonl").write_bytes(b"\n".join(rows))
    with pytest.raises(EvalError, match="holds samples of another"):
        ran(llama, data, tmp_path)
    assert not (tmp_path / "results.json").exists()
