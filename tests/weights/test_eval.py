"""The dial in the weights as an arm of an evaluation: the answers of `generate`, the likelihoods of stock PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ckcontrol as ck
from ckcontrol.cli.main import main
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.errors import ControlError
from ckcontrol.eval.records import Record
from ckcontrol.eval.running.arms import arms_for
from ckcontrol.eval.running.engine import Local
from ckcontrol.models.tiny import tiny_model
from ckcontrol.weights import unload

from .test_dial import adapter, dial, folders, loaded  # noqa: F401  fixtures

peft = pytest.importorskip("peft")
ARMS = arms_for(["off", "weights", "cad@0.3", "dial@0.8"], [0.0, 0.25, 0.5, 1.0])
RECORDS = [
    Record("a", "Who rules Oz?", ("Ozma rules Oz.",)),
    Record("b", "Where is Ys?", ()),  # without passages the adapter acts too
    Record("c", "What is the capital of Mu?", ("The capital of Mu is Ra.",)),
]


def test_every_answer_is_the_one_of_generate(loaded: Any) -> None:  # noqa: F811
    model, tokenizer = loaded
    engine = Local(model, tokenizer, "tiny", options=GenerateOptions(max_new_tokens=8))
    made = engine.run(RECORDS, ARMS, "base")
    for record, row in zip(RECORDS, made, strict=True):
        for arm, sample in zip(ARMS, row, strict=True):
            alone = ck.generate(
                model, tokenizer, record.question, record.passages, control=arm.control, max_new_tokens=8, trace=True,
                template=engine.wording.templates["base"],
            )  # fmt: skip
            assert (sample["text"], sample["n"]) == (alone.text.strip(), len(alone.token_ids)), (record.id, arm.name)
    text = {arm.name: sample["text"] for arm, sample in zip(ARMS, made[0], strict=True)}
    assert text["weights@0.5"] == text["off"] and len({text[f"weights@{a}"] for a in ("0", "0.5", "1")}) == 3
    shut = {arm.name: sample["text"] for arm, sample in zip(ARMS, made[1], strict=True)}
    assert shut["cad@0.3"] == shut["off"] != shut["weights@0"]


def test_choices_are_compared_by_the_adapter_of_the_arm(loaded: Any, dial: Path) -> None:  # noqa: F811
    model, tokenizer = loaded
    record = Record("c", "The sky is", ("Say it.",), (" green",), (" blue",), choices=(" blue", " green"), cloze=True)
    engine = Local(model, tokenizer, "tiny", options=GenerateOptions(max_new_tokens=4))
    row = engine.run([record], ARMS, "base")[0]
    names = {r["alpha"]: r["folder"] for r in json.loads((dial / "ckcontrol-dial.json").read_text())["adapters"]}
    prompt = list(engine.pair(record, "base").contextual)
    for arm, sample in zip(ARMS, row, strict=True):
        if arm.method != "weights":
            continue
        plain: Any = tiny_model("llama")[0]
        if names[arm.alpha] is not None:
            plain = peft.PeftModel.from_pretrained(plain, str(dial / names[arm.alpha]))
        for choice, score in zip(record.choices, sample["scores"], strict=True):
            ids = tokenizer(choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([prompt + ids])).logits[0, :, : len(tokenizer)].float()
            logp = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(ids)[:, None]).sum()
            assert score == pytest.approx(float(logp), abs=2e-3), (arm.name, choice)


def test_the_command_runs_arms_of_a_dial_and_names_it_in_the_card(
    dial: Path, tmp_path: Path, capsys: Any  # noqa: F811
) -> None:  # fmt: skip
    facts = tmp_path / "facts.jsonl"
    rows = [
        {"relation": "r", "subject": s, "answer": a, "question": f"Where is {s}?", "cloze": f"{s} is in"}
        for s, a in (("Oz", "Kansas"), ("Ys", "Brittany"), ("Ur", "Iraq"))
    ]
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ["eval", "run", "--tasks", f"facts={facts}", "--model", "tiny", "--max-new-tokens", "4"]
    run += ["--methods", "off,weights", "--alpha", "0,1"]
    assert main([*run, "--out", str(tmp_path / "a")]) != 0
    assert "'weights@0' needs a dial of adapters" in " ".join(capsys.readouterr().err.split())
    assert main([*run, "--out", str(tmp_path / "a"), "--weights", str(dial), "--url", "http://127.0.0.1:1"]) != 0
    assert "--url asks a server" in " ".join(capsys.readouterr().err.split())
    assert main([*run, "--out", str(tmp_path / "a"), "--weights", str(dial)]) == 0
    card = json.loads((tmp_path / "a" / "run.json").read_text())
    assert card["dial"]["method"] == "scale" and len(card["dial"]["sha256"]) == 64
    assert card["model_fingerprint"] == json.loads((dial / "ckcontrol-dial.json").read_text())["base"]
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert {"weights@0", "weights@1"} <= {arm["name"] for arm in card["arms"]} and results
    # a run of other methods takes a dial later
    assert main([*run, "--methods", "off", "--out", str(tmp_path / "b")]) == 0
    assert main([*run, "--out", str(tmp_path / "b"), "--weights", str(dial)]) == 0
    later = json.loads((tmp_path / "b" / "run.json").read_text())
    assert later["dial"] == card["dial"] and [arm["name"] for arm in later["arms"]] == ["off", "weights@0", "weights@1"]
    said = [
        {
            (line["id"], line["arm"]): line.get("text")
            for line in map(json.loads, file.read_text().splitlines())
            if "arm" in line
        }
        for file in (tmp_path / name / "samples.jsonl" for name in "ab")
    ]
    assert said[0] == said[1]
    # other methods come later too, but not without the dial whose arms are there
    assert main([*run, "--methods", "off,cad", "--out", str(tmp_path / "b")]) != 0
    assert "Give the dial again: --weights FOLDER" in " ".join(capsys.readouterr().err.split())
    more = [*run, "--methods", "cad,weights", "--alpha", "0,1", "--weights", str(dial)]
    assert main([*more, "--out", str(tmp_path / "b")]) == 0
    assert [arm["name"] for arm in json.loads((tmp_path / "b" / "run.json").read_text())["arms"]][3:] == [
        "cad@0",
        "cad@1",
    ]
    # a dial of other weights is another run
    other = tmp_path / "other"
    ck.weights.mix(
        tiny_model("llama")[0], adapter(tmp_path / "c", 7), adapter(tmp_path / "m", 8), other, steps=3
    )  # fmt: skip
    assert main([*run, "--out", str(tmp_path / "a"), "--weights", str(other)]) != 0
    assert "holds another run: dial." in " ".join(capsys.readouterr().err.split())


def test_all_leaves_the_weights_out_and_a_model_without_a_dial_is_refused() -> None:
    assert not any(arm.method == "weights" for arm in arms_for(["all"]))
    model, tokenizer = tiny_model("llama")
    unload(model)
    engine = Local(model, tokenizer, "tiny", options=GenerateOptions(max_new_tokens=2))
    with pytest.raises(ControlError, match="without a dial"):
        engine.run(RECORDS, arms_for(["weights"], [0.0]), "base")
