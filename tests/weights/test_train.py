"""Adapters trained on chosen answers: they learn them, go on where they were stopped, and leave the model alone."""

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
from ckcontrol.weights.pairs import ASKED, read_pairs
from ckcontrol.weights.train import WHOLE, partial
from ckcontrol.word_spans import mentions, words

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


def likelihood(model: Any, tokenizer: Any, rows: Sequence[Any]) -> float:
    """Mean log-probability of what was chosen."""
    return sum(score(model, tokenizer, r["prompt"], r["completion"]) for r in rows) / len(rows)


def test_two_trained_adapters_raise_what_was_chosen_and_make_a_dial(pairs: Path, tmp_path: Path) -> None:
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
        assert not made.answers  # the pairs do not say what a right answer names
        adapted = peft.PeftModel.from_pretrained(tiny_model("llama")[0], str(tmp_path / toward))
        for rows in (read_pairs(file, toward).train, read_pairs(file, toward).held):
            assert likelihood(adapted, tokenizer, rows) > likelihood(tiny_model("llama")[0], tokenizer, rows) + 0.1
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
    prompt = [{"role": "user", "content": "Which of all cats is grey?"}]
    guard = written(tmp_path / "guard.jsonl", [row(1, prompt=prompt, state="noisy", right=["none"])])
    with pytest.raises(WeightsError, match=r"begun with guard='', not '[0-9a-f]{16}'"):
        train(model, tokenizer, pairs, tmp_path / "a", **HOW, guard=guard)
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
    assert (made.pairs, made.held_out) == (8, 0)  # too few groups to hold one out
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
        ([row(0, right="Ann")], "line 1 is no preference pair: right and wrong are no lists of names"),
        ([[1]], "line 1 is no preference pair: it is no object"),
    ],
    ids=["other side", "one error", "mixed", "empty", "field", "kind", "same", "names", "list"],
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
        names = [{one["completion"][0]["content"] for one in side} for side in (pairs.train, pairs.held)]
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


def test_the_questions_asked_are_of_every_state_in_turn_and_bounded(tmp_path: Path) -> None:
    states = ["conflict", "noisy", "agree"]
    rows = [row(i, group=f"g{i}", state=states[(i % 50 > 40) + (i % 50 > 45)], right=["Ann"]) for i in range(1500)]
    pairs = read_pairs(written(tmp_path / "p.jsonl", rows), "context")
    assert len(pairs.held) == 150 and len(pairs.asked) == ASKED == len({one.place for one in pairs.asked})
    counts = [sum(one.state == state for one in pairs.asked) for state in states]
    held = [one["prompt"] for one in pairs.held]
    there = [sum(r["state"] == state and r["prompt"] in held for r in rows) for state in states]
    assert min(there[:2]) > 16 > there[2] == counts[2] and abs(counts[0] - counts[1]) <= 1
    assert not read_pairs(written(tmp_path / "q.jsonl", [row(i, state="noisy") for i in range(80)]), "context").asked


def says(model: Any, prompt: Any) -> str:
    """Return a tiny model's greedy answer to messages."""
    tokenizer = tiny_model("llama")[1]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    made = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


class Keep:
    """What a run's checkpoints answer right, and their weights; Ctrl-C after step `at`."""

    def __init__(self, folder: Path, at: int = -1) -> None:
        self.folder, self.at = folder, at
        self.right: dict[int, dict[str, list[int]]] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        for mark in self.folder.glob(f"checkpoint-*/{WHOLE}"):
            step = int(mark.parent.name.split("-")[1])
            self.right[step], self.weights[step] = json.loads(mark.read_text()), tensors(mark.parent)
        if stage == "Training" and done == self.at:
            raise KeyboardInterrupt


def test_training_stops_where_answers_are_lost_and_keeps_the_checkpoint_before(pairs: Path, tmp_path: Path) -> None:
    """The right name of the held-out questions is what the model itself says, and training leads away from it."""
    held = [one["prompt"] for one in read_pairs(pairs, "context").held]
    model = tiny_model("llama")[0]
    rows = [row(i, state="conflict", right=["nobody"]) for i in range(24)]
    said = [words(says(model, prompt)) for prompt in held]
    assert all(said)
    own = {json.dumps(prompt): [one[0].cased] for prompt, one in zip(held, said, strict=True)}
    rows = [r | {"state": "noisy", "right": own[json.dumps(r["prompt"])]} if r["prompt"] in held else r for r in rows]
    written(pairs, rows)
    told = Keep(partial(tmp_path / "far"))
    how = HOW | {"steps": 12, "learning_rate": 3e-3}
    far = train(*tiny_model("llama"), pairs, tmp_path / "far", **how, max_harm=1.0, on_progress=told)
    adapted = peft.PeftModel.from_pretrained(tiny_model("llama")[0], str(tmp_path / "far"))
    right = sum(mentions(says(adapted, prompt), own[json.dumps(prompt)]) for prompt in held)
    assert far.steps == 12 and far.answers == {"noisy": (2, 2, right)}
    found = [told.right[step]["noisy"][1] for step in sorted(told.right)]
    assert found[0] == 2 and right < 2, found
    last = max(step for step in told.right if told.right[step]["noisy"][1] == 2)

    near = train(*tiny_model("llama"), pairs, tmp_path / "near", **how, max_harm=0.1)
    assert (near.steps, near.answers) == (last, {"noisy": (2, 2, 2)})
    ours = tensors(tmp_path / "near")
    assert all(torch.equal(ours[name], value) for name, value in told.weights[last].items())
    for at in (last + 1, -1):  # interrupted, it comes to the same end
        try:
            again = train(*tiny_model("llama"), pairs, tmp_path / "again", **how, max_harm=0.1,
                          on_progress=Keep(tmp_path, at))  # fmt: skip
        except KeyboardInterrupt:
            assert at == last + 1
    assert (again.steps, again.answers) == (last, near.answers)
    assert all(torch.equal(ours[name], value) for name, value in tensors(tmp_path / "again").items())
    with pytest.raises(WeightsError, match=r"first checkpoint, of step 12, answers \d+ % fewer .*Take a lower"):
        train(*tiny_model("llama"), pairs, tmp_path / "none", **how | {"save_every": 12}, max_harm=0.0)
    assert not (tmp_path / "none").exists() and not partial(tmp_path / "none").exists()


def test_questions_of_a_guard_are_asked_and_stop_training_too(pairs: Path, tmp_path: Path) -> None:
    """What is right is what the model itself says, to words that no pair has; of those held out none is asked."""
    model = tiny_model("llama")[0]
    prompts = [[{"role": "user", "content": f"Which of {i} cats is grey?"}] for i in range(30)]
    said = [(prompt, words(says(model, prompt))) for prompt in prompts]
    others = [row(1, prompt=prompt, state="noisy", right=[found[0].cased]) for prompt, found in said if found][:6]
    assert len(others) == 6
    elsewhere = [{"role": "user", "content": "Which of all cats is grey?"}]
    last = row(7, prompt=elsewhere, state="conflict", right=["nobody"])
    guard = written(tmp_path / "guard.jsonl", [*others, last])
    read, alone = read_pairs(pairs, "context", guard=guard), read_pairs(pairs, "context")
    assert read.train == alone.train and len(read.held) == len(alone.held) + 7 and read.guard and not alone.guard
    assert [read.held[one.place]["prompt"] for one in read.asked[:6]] == [one["prompt"] for one in others]
    many = written(
        tmp_path / "many.jsonl",
        [row(i, prompt=[{**prompts[0][0], "content": f"{i}"}], state="noisy", right=["Ann"]) for i in range(200)],
    )
    assert len(read_pairs(pairs, "context", guard=many).held) == len(alone.held) + ASKED, "no others are tokenised"
    how = HOW | {"steps": 12, "learning_rate": 3e-3}
    far = train(*tiny_model("llama"), pairs, tmp_path / "far", **how, max_harm=1.0, guard=guard)
    assert far.answers["guard: conflict"][:2] == (1, 0) and far.answers["guard: noisy"][:2] == (6, 6)
    assert far.steps == 12 and far.answers["guard: noisy"][2] < 6
    with pytest.raises(WeightsError, match=r"first checkpoint, of step 12, .*max_harm=0\b"):
        train(*tiny_model("llama"), pairs, tmp_path / "a", **how | {"save_every": 12}, max_harm=0.0, guard=guard)
    wide = row(1, prompt=[{"role": "user", "content": "x " * 900}], state="noisy", right=["Ann"])
    long = written(tmp_path / "long.jsonl", [wide])
    with pytest.raises(WeightsError, match=r"line 1 of .*long\.jsonl' is [\d,]+ tokens long"):
        train(*tiny_model("llama"), pairs, tmp_path / "b", **HOW, guard=long)
    for rows, why in (
        ([row(1)], "does not say what is right"),
        ([row(1, chat=False, right=["Ann"])], "hold the other"),
        ([row(1, prompt=prompts[0], right=["Ann"])], "with a conflict alone"),
        ([others[0], row(8, state="noisy", right=["Ann8"])], "line 2 is one of the pairs'"),
    ):
        with pytest.raises(WeightsError, match=rf"the guard .*{why}.*Export it from a run"):
            read_pairs(pairs, "context", guard=written(guard, rows))


@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
def test_half_a_character_is_refused_before_a_tokenizer_stumbles(name: str, tmp_path: Path) -> None:
    broken = row(2, **{name: [{"role": "user", "content": "half \ud83d"}]})
    with pytest.raises(WeightsError, match="line 2 is no preference pair: a text holds half a character"):
        read_pairs(written(tmp_path / "p.jsonl", [row(1), broken]), "context")


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
    prompt = [{"role": "user", "content": "Which of all cats is grey?"}]
    guard = written(tmp_path / "guard.jsonl", [row(1, prompt=prompt, state="no\u202eisy", right=["none"])])
    led = [*command, "--toward", "context", "--guard", str(guard), "--out", str(tmp_path / "led")]
    assert main(led) == 0 and "guard: noisy 0 and 0 of 1." in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--toward", "context"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "No question was held out" in said and f"Wrote {out}: 22 pairs toward context." in said
    assert (out / "adapter_model.safetensors").exists()
    monkeypatch.setattr(options, "load", lambda *arguments: pytest.fail("a model was loaded"))
    assert main([*command, "--toward", "memory"]) != 0
    assert "leads toward 'context', and memory was asked for" in " ".join(capsys.readouterr().err.split())
    written(pairs, [row(1), row(3)])
    assert main([*command, "--toward", "context"]) != 0
    assert "--one-sided" in " ".join(capsys.readouterr().err.split())
