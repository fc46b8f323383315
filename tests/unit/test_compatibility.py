"""What version 0.1.0 promised: its public names, and the files it wrote (`tests/fixtures/v0.1.0`), still open.

The fixtures were written by 0.1.0 itself: an index that was built and added to, a head mask, two answers' traces in
JSONL, and a finished evaluation run of the tiny model.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from ckcontrol.cli.main import main
from tests.retrieval.hashes import Hashes, corpus

OLD = Path(__file__).resolve().parents[1] / "fixtures" / "v0.1.0"
NAMES = {
    "ckcontrol": "Answer CKLogitsProcessor Control GenerateOptions Policy PromptTemplate Rag RagAnswer Recorder "
    "Signals TokenTrace build_pair confidence_gain decoding_loop fuse generate head_set heads load "
    "reference_generate register",
    "ckcontrol.eval": "Conflict Fact load_capitals mentions normalize wilson",
    "ckcontrol.eval.interop": "export_harness harness_model inspect_samples inspect_scorer inspect_solver inspect_task",
    "ckcontrol.eval.report": "write_report",
    "ckcontrol.eval.tasks": "ADAPTERS Task export_flashrag load_task sample task_names",
    "ckcontrol.heads": "Fingerprint HeadLayout HeadMask HeadScores Panel Record build_records describe "
    "export_checkpoint export_lora mask_for pruned read_facts",
    "ckcontrol.policies": "ABSTENTIONS ACD ARR CAD COIECD FUNCTION_WORDS GRD NWCAD TAU_MAX AdaCAD AnswerPolicy CKPlug "
    "CKPlugRepo Decision Dial Evidence Off Policy build draft_policies idle names per_row register stand_in "
    "tau_from_alpha token_policy",
    "ckcontrol.retrieval": "Chunker Document Embedder Hit Index MilvusIndex Passage Reranker Retriever Skipped "
    "TextEncoder TextScorer from_retriever read",
    "ckcontrol.vllm": "CKMiddleware CKWorker PairAsyncScheduler PairLogitsProcessor PairParams PairScheduler "
    "SteeredLLM TraceWorker extra_args new_pair",
}
IN_VLLM = {"PairAsyncScheduler", "PairLogitsProcessor", "PairScheduler"}  # modules that vLLM itself must be there for
COMMANDS = {
    "": "demo run explain doctor serve-vllm heads eval search ask index",
    "index": "build add remove info verify",
    "heads": "find show tune export",
    "eval": "run merge report build-conflicts compare",
}


@pytest.mark.parametrize("module", NAMES)
def test_every_public_name_is_still_there(module: str) -> None:
    found = importlib.import_module(module)
    for name in NAMES[module].split():
        if name in IN_VLLM and importlib.util.find_spec("vllm") is None:
            assert name in found.__all__
        else:
            assert getattr(found, name) is not None, name


@pytest.mark.parametrize("group", COMMANDS)
def test_every_command_is_still_there(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS[group].split():
        assert main([*group.split(), command, "--help"]) == 0, command
    capsys.readouterr()


def test_an_index_opens_searches_and_grows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from ckcontrol.retrieval import Index, Passage

    folder = shutil.copytree(OLD / "index", tmp_path / "index")
    expected = json.loads((OLD / "index_expected.json").read_text(encoding="utf-8"))
    with Index.open(folder, Hashes()) as index:
        assert len(list(index.passages())) == expected["passages"] == 25
        for mode, hits in zip(("dense", "bm25", "hybrid"), expected["dense"], strict=True):
            assert [[h.passage.id, round(h.score, 5)] for h in index.search("alpha 17", k=5, mode=mode)] == hits
            assert len(caplog.messages) == (mode != "dense"), "told once, of words alone"
        assert "of an older version" in caplog.text and "ckcontrol index build --overwrite" in caplog.text
        index.add([*corpus(25, 30), Passage("zh", "退款需要七天时间")])
        assert len(list(index.passages())) == 31
        assert index.search("退款", mode="bm25") == [], "its words stay those of 0.1.0"
        assert index.search("退款需要七天时间", mode="bm25")[0].passage.id == "zh"
        index.remove(passages=["zh", "p3"])
    assert main(["index", "verify", str(folder)]) == 0
    capsys.readouterr()
    assert main(["index", "info", str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of an older version" in said and "ckcontrol index build --overwrite" in said


def test_a_mask_loads_and_prunes() -> None:
    import torch

    from ckcontrol.heads import HeadMask, pruned
    from ckcontrol.models.tiny import tiny_model

    model, tokenizer = tiny_model("llama")
    mask = HeadMask.load(OLD / "mask.json")
    assert mask == HeadMask.of(model, [(0, 1), (1, 2)])
    ids = torch.tensor([tokenizer.encode("It was Ann.")])
    plain = model(ids).logits
    with pruned(model, mask):
        assert not torch.equal(model(ids).logits, plain)


def test_traces_are_read_and_made_again() -> None:
    from ckcontrol import generate
    from ckcontrol.answer import read_jsonl
    from ckcontrol.models.tiny import tiny_model

    (old,) = read_jsonl(OLD / "answers.jsonl")
    new = generate(*tiny_model("llama"), old.question, list(old.passages), control=old.control, max_new_tokens=6)
    assert new.token_ids == old.token_ids
    assert [t.gain for t in new.tokens] == pytest.approx([t.gain for t in old.tokens], abs=1e-4)


def test_a_run_is_added_up_to_the_same_bytes_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(OLD / "run", tmp_path / "run")
    assert main(["eval", "merge", str(folder), "--out", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "results.json").read_bytes() == (OLD / "run" / "results.json").read_bytes()
    assert main(["eval", "report", str(folder)]) == 0
    assert "ck-plug" in (folder / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()


@pytest.mark.skipif(sys.platform == "win32", reason="the run names its data file with slashes")
def test_a_run_is_not_gone_on_with_by_another_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(OLD / "run", tmp_path / "run")
    data = Path(__file__).resolve().parents[1] / "eval" / "fixtures" / "canonical.jsonl"
    before = (folder / "samples.jsonl").read_bytes()
    arguments = ["--model", "tiny", "--methods", "off,closed-book,ck-plug@0", "--max-new-tokens", "4"]
    assert main(["eval", "run", "--tasks", str(data), *arguments, "--out", str(folder)]) == 2
    told = capsys.readouterr().err
    assert "versions.ckcontrol is '0.1.0' there" in told and "--out" in told
    assert (folder / "samples.jsonl").read_bytes() == before
    assert (folder / "results.json").read_bytes() == (OLD / "run" / "results.json").read_bytes()
    capsys.readouterr()
