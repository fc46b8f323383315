"""Adapters trained on preference pairs: they learn them, go on where they were stopped, and leave the model alone."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import ckcontrol as ck
from ckcontrol.cli import options
from ckcontrol.cli.main import main
from ckcontrol.errors import ControlError, UnsupportedMode, WeightsError
from ckcontrol.models.tiny import tiny_model
from ckcontrol.weights import load, mix, train, unload
from ckcontrol.weights.pairs import read_pairs
from ckcontrol.weights.train import WHOLE, partial

peft = pytest.importorskip("peft")
pytest.importorskip("trl")
HOW: dict[str, Any] = {"toward": "context", "steps": 6, "batch_size": 4, "save_every": 2, "rank": 2} | {
    "learning_rate": 1e-2
}


def row(i: int, toward: str = "context", chat: bool = True, **changed: Any) -> dict[str, Any]:
    texts = {"prompt": f"Background: it was Ann{i}.\nWho was it?", "chosen": f"Ann{i}", "rejected": f"Bob{i}"}
    if toward == "memory":
        texts |= {"chosen": texts["rejected"], "rejected": texts["chosen"]}
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    told: dict[str, Any] = {n: [{"role": roles[n], "content": t}] for n, t in texts.items()} if chat else texts
    error = "contextual ignorance" if i % 2 else "contextual over-inclusion"
    return {**told, "error": error, "group": f"g{i // 2}", "toward": toward, **changed}


def written(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return written(tmp_path / "pairs.jsonl", [row(i) for i in range(24)])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def score(model: Any, tokenizer: Any, prompt: Any, answer: Any) -> float:
    """Log-probability of an answer, summed over its tokens, by a plain forward."""
    begun = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template(prompt + answer, return_dict=False)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[t - 1, ids[t]]) for t in range(len(begun), len(ids)))


def margin(model: Any, tokenizer: Any, rows: Sequence[Any]) -> float:
    """Mean of log p(chosen) - log p(rejected)."""
    both = [[score(model, tokenizer, r["prompt"], r[side]) for side in ("chosen", "rejected")] for r in rows]
    return sum(chosen - rejected for chosen, rejected in both) / len(rows)


def test_two_trained_adapters_raise_their_margins_and_make_a_dial(pairs: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [(p.requires_grad, p.grad) for p in model.parameters()]
    ids = model.config.pad_token_id, model.generation_config.eos_token_id, tokenizer.pad_token
    sides = {"context": pairs, "memory": written(tmp_path / "m.jsonl", [row(i, "memory") for i in range(24)])}
    for toward, file in sides.items():
        drawn, python = torch.random.get_rng_state(), random.getstate()
        made = train(model, tokenizer, file, tmp_path / toward, **{**HOW, "toward": toward})
        assert torch.equal(drawn, torch.random.get_rng_state()) and python == random.getstate()
        assert (made.toward, made.pairs, made.held_out) == (toward, 22, 2)  # one of twelve groups of two
        assert made.better == 2 and made.margin > 0
        adapted = peft.PeftModel.from_pretrained(tiny_model("llama")[0], str(tmp_path / toward))
        for rows in (read_pairs(file, toward).train, read_pairs(file, toward).held):
            assert margin(adapted, tokenizer, rows) > margin(tiny_model("llama")[0], tokenizer, rows) + 0.1
        gained = margin(adapted, tokenizer, rows) - margin(model, tokenizer, rows)
        assert made.margin == pytest.approx(gained, abs=1e-2)
        assert not partial(tmp_path / toward).exists()
        assert sorted(p.name for p in (tmp_path / toward).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "ckcontrol-adapter.json",
        ]
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert not model.training and modes == [(p.requires_grad, p.grad) for p in model.parameters()]
    assert ids == (model.config.pad_token_id, model.generation_config.eos_token_id, tokenizer.pad_token)

    with pytest.raises(WeightsError, match="leads toward memory, and is given as the adapter toward context"):
        mix(model, tmp_path / "memory", tmp_path / "context", tmp_path / "dial")
    with pytest.raises(WeightsError, match="adapter of another model: weights is"):
        mix(tiny_model("llama", seed=1)[0], tmp_path / "context", tmp_path / "memory", tmp_path / "dial")
    mix(model, tmp_path / "context", tmp_path / "memory", tmp_path / "dial", steps=3)
    load(model, tmp_path / "dial")
    with pytest.raises(WeightsError, match="has a dial or adapters already"):
        train(model, tokenizer, pairs, tmp_path / "new", **HOW)
    answers = [
        ck.generate(model, tokenizer, "Who was it?", ["It was Ann1."], control=ck.Control("weights", alpha=alpha))
        for alpha in (0.0, 0.5, 1.0)
    ]
    unload(model)
    assert len({answer.token_ids for answer in answers}) == 3


class Stop:
    """Ctrl-C after so many steps."""

    def __init__(self, at: int) -> None:
        self.at, self.first = at, -1

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.first = done if self.first < 0 else self.first
        if stage == "Training" and done == self.at:
            raise KeyboardInterrupt


def test_interrupted_training_goes_on_and_ends_with_the_same_bytes(pairs: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "adapter"
    train(*tiny_model("llama"), pairs, whole, **HOW)
    model, tokenizer = tiny_model("llama")
    with pytest.raises(KeyboardInterrupt):
        train(model, tokenizer, pairs, out, **HOW, on_progress=Stop(5))
    assert not out.exists() and not any("lora" in name for name, _ in model.named_modules())
    kept = partial(out)
    assert sorted(path.name for path in kept.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert not list(kept.rglob("training_args.bin"))
    (kept / "checkpoint-4" / WHOLE).unlink()  # as if it had been interrupted while it was written
    goes_on = Stop(-1)
    train(model, tokenizer, pairs, out, **HOW, on_progress=goes_on)
    assert goes_on.first == 2
    ours, theirs = tensors(out), tensors(whole)
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_unfinished_training_is_not_gone_on_with_in_another_way(pairs: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(KeyboardInterrupt):
        train(model, tokenizer, pairs, tmp_path / "a", **HOW, on_progress=Stop(3))
    with pytest.raises(WeightsError, match=r"begun with rank=2, not 4\. Repeat that, or remove .*a\.partial"):
        train(model, tokenizer, pairs, tmp_path / "a", **{**HOW, "rank": 4})
    with pytest.raises(WeightsError, match="begun with base='another model'"):
        train(tiny_model("llama", seed=1)[0], tokenizer, pairs, tmp_path / "a", **HOW)
    written(pairs, [row(i) for i in range(26)])
    with pytest.raises(WeightsError, match="begun with pairs="):
        train(model, tokenizer, pairs, tmp_path / "a", **HOW)
    (partial(tmp_path / "a") / "settings.json").write_text("{")
    with pytest.raises(WeightsError, match=r"settings\.json' is damaged"):
        train(model, tokenizer, pairs, tmp_path / "a", **HOW)


def test_the_seed_decides_the_adapter(pairs: Path, tmp_path: Path) -> None:
    short = {**HOW, "steps": 1}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))
        train(*tiny_model("llama"), pairs, tmp_path / name, **short, seed=seed)
    first, again, other = (tensors(tmp_path / name) for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_texts_to_complete_and_other_families(family: str, tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", [row(i, chat=False) for i in range(8)])
    made = train(*tiny_model(family), file, tmp_path / "a", **{**HOW, "steps": 2})
    assert (made.pairs, made.held_out, made.better) == (8, 0, 0)  # too few groups to hold one out
    assert any(bool(value.any()) for name, value in tensors(tmp_path / "a").items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(0), row(1, "memory")], "line 2 leads toward 'memory', and context was asked for.*--toward context"),
        ([row(1), row(3)], "all 2 pairs show 'contextual ignorance'.*one_sided=True"),
        ([row(0), row(1, chat=False)], "line 2 holds texts, those before it do not"),
        ([], "holds no pairs"),
        ([row(0), {"prompt": "a"}], "line 2 is no preference pair: it has no 'chosen'"),
        ([row(0, chosen=[])], "line 1 is no preference pair: prompt, chosen and rejected are neither"),
        ([row(0, chosen=row(0)["rejected"])], "line 1 is no preference pair: both answers are the same"),
        ([[1]], "line 1 is no preference pair: it is no object"),
    ],
    ids=["other side", "one error", "mixed", "empty", "field", "kind", "same", "list"],
)
def test_pairs_that_are_refused(rows: Sequence[Any], said: str, tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", rows)
    with pytest.raises(WeightsError, match=said):
        train(*tiny_model("llama"), file, tmp_path / "a", **HOW)
    assert not (tmp_path / "a").exists() and not partial(tmp_path / "a").exists()


def test_files_that_are_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        read_pairs(tmp_path / "none", "context")
    with pytest.raises(WeightsError, match=r"toward='contex' is no source.*Did you mean 'context'"):
        read_pairs(tmp_path / "none", "contex")
    (tmp_path / "bad").write_bytes(b"{\n")
    with pytest.raises(WeightsError, match="line 1 is not JSON"):
        read_pairs(tmp_path / "bad", "context")
    one = written(tmp_path / "one", [row(i) for i in range(1, 24, 2)])
    assert len(read_pairs(one, "context", one_sided=True).train) == 11


def test_no_group_is_on_both_sides_and_the_seed_draws(tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", [row(i) for i in range(80)])
    drawn = [read_pairs(file, "context", seed=seed) for seed in range(3)]
    for pairs in drawn:
        names = [{one["chosen"][0]["content"] for one in side} for side in (pairs.train, pairs.held)]
        groups = [{int(name[3:]) // 2 for name in side} for side in names]
        assert not groups[0] & groups[1] and (len(groups[0]), len(groups[1])) == (36, 4)
    assert len({json.dumps(pairs.held) for pairs in drawn}) > 1


def test_refusals_of_training(pairs: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    (tmp_path / "there").mkdir()
    with pytest.raises(WeightsError, match="exists"):
        train(model, tokenizer, pairs, tmp_path / "there", **HOW)
    with pytest.raises(ControlError, match="steps=0"):
        train(model, tokenizer, pairs, tmp_path / "a", **{**HOW, "steps": 0})
    with pytest.raises(WeightsError, match=r"the pair of line \d+ is \d+ tokens long, over 20"):
        train(model, tokenizer, pairs, tmp_path / "a", **HOW, max_length=20)
    with pytest.raises(UnsupportedMode, match="compiled"):
        train(torch.compile(model), tokenizer, pairs, tmp_path / "a", **HOW)
    tokenizer.chat_template = None
    with pytest.raises(WeightsError, match="no chat template"):
        train(model, tokenizer, pairs, tmp_path / "a", **HOW)
    assert not (tmp_path / "a").exists() and not partial(tmp_path / "a").exists()
    assert not any("lora" in name for name, _ in model.named_modules())


def test_an_adapter_that_is_not_finite_is_not_written(pairs: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(WeightsError, match=r"no longer finite after 2 steps.*learning_rate below 0\.01"):
        train(model, tokenizer, pairs, tmp_path / "a", **{**HOW, "steps": 2})
    assert not (tmp_path / "a").exists() and not partial(tmp_path / "a").exists()


class Keep:
    """What a run's checkpoints say of harm, and their weights; Ctrl-C after step `at`."""

    def __init__(self, folder: Path, at: int = -1) -> None:
        self.folder, self.at = folder, at
        self.harm: dict[int, float] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        for mark in self.folder.glob(f"checkpoint-*/{WHOLE}"):
            step = int(mark.parent.name.split("-")[1])
            self.harm[step], self.weights[step] = float(mark.read_text()), tensors(mark.parent)
        if stage == "Training" and done == self.at:
            raise KeyboardInterrupt


def test_training_stops_where_it_does_harm_and_keeps_the_checkpoint_before(pairs: Path, tmp_path: Path) -> None:
    """Right answers held out that the conflicts lead away from: the harm grows with every step."""
    held = [one["prompt"] for one in read_pairs(pairs, "context").held]
    rows = [row(i, state="conflict") for i in range(24)]
    rows = [r if r["prompt"] not in held else {**r, "state": "irrelevant"} for r in rows]
    rows = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} if r["prompt"] in held else r for r in rows]
    guards = [r for r in rows if r["prompt"] in held]
    written(pairs, rows)
    told = Keep(partial(tmp_path / "far"))
    far = train(*tiny_model("llama"), pairs, tmp_path / "far", **HOW, max_harm=1e6, on_progress=told)
    assert far.steps == 6 and far.harm is not None and told.harm[2] < told.harm[4] < far.harm
    adapted = peft.PeftModel.from_pretrained(tiny_model("llama")[0], str(tmp_path / "far"))
    plain, tokenizer = tiny_model("llama")
    lost = [
        score(plain, tokenizer, r["prompt"], r["chosen"]) - score(adapted, tokenizer, r["prompt"], r["chosen"])
        for r in guards
    ]
    assert len(guards) == 2 and far.harm == pytest.approx(sum(lost) / 2, abs=1e-3)

    bound = (told.harm[2] + told.harm[4]) / 2
    near = train(*tiny_model("llama"), pairs, tmp_path / "near", **HOW, max_harm=bound)
    assert (near.steps, near.harm) == (2, told.harm[2])
    ours = tensors(tmp_path / "near")
    assert all(torch.equal(ours[name], value) for name, value in told.weights[2].items())
    for at in (3, -1):  # interrupted, it comes to the same end
        try:
            again = train(*tiny_model("llama"), pairs, tmp_path / "again", **HOW, max_harm=bound,
                          on_progress=Keep(tmp_path, at))  # fmt: skip
        except KeyboardInterrupt:
            assert at == 3
    assert (again.steps, again.harm) == (2, told.harm[2])
    assert all(torch.equal(ours[name], value) for name, value in tensors(tmp_path / "again").items())
    with pytest.raises(WeightsError, match=r"first checkpoint, of step 2, costs .* over max_harm=0\. Take a lower"):
        train(*tiny_model("llama"), pairs, tmp_path / "none", **HOW, max_harm=0.0)
    assert not (tmp_path / "none").exists() and not partial(tmp_path / "none").exists()


def test_one_process_at_a_time(pairs: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    kept = partial(tmp_path / "a")
    kept.mkdir()
    with FileLock(kept / ".lock"), pytest.raises(WeightsError, match="another process is training"):
        train(*tiny_model("llama"), pairs, tmp_path / "a", **HOW)
    assert kept.exists()


def test_the_command(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out = tmp_path / "adapter"
    command = ["weights", "train", str(pairs), "--model", "tiny", "--out", str(out), "--steps", "2", "--rank", "2"]
    assert main([*command, "--toward", "context"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "lost" not in said  # the pairs name no state: none is known to be no conflict
    assert "Of 2 pairs held out," in said and f"Wrote {out}: 22 pairs toward context." in said
    assert (out / "adapter_model.safetensors").exists()
    monkeypatch.setattr(options, "load", lambda *arguments: pytest.fail("a model was loaded"))
    assert main([*command, "--toward", "memory"]) != 0
    assert "leads toward 'context', and memory was asked for" in " ".join(capsys.readouterr().err.split())
    written(pairs, [row(1), row(3)])
    assert main([*command, "--toward", "context"]) != 0
    assert "--one-sided" in " ".join(capsys.readouterr().err.split())
