"""The panel against naive single forwards, and the rules that turn a text or a token into an outcome."""

from __future__ import annotations

import math

import pytest
import torch

from ckcontrol.errors import HeadsError
from ckcontrol.heads.apply import pruned
from ckcontrol.heads.choosing.panel import Panel, PanelPrompt, Result, interval
from ckcontrol.heads.finding.conflict_prompts import ConflictRecord
from ckcontrol.heads.mask import HeadMask
from ckcontrol.models.tiny import tiny_model

QUIET = {"neutral": ("Plain words.", "And some more of them.")}


def record(name: str, **changes) -> ConflictRecord:
    values = {
        "id": f"capital/{name}",
        "relation": "capital",
        "subject": name,
        "split": "dev",
        "known": "greedy",
        "memory": "Paris",
        "aliases": ("Paris", "Lutetia"),
        "context": "Rome",
        "clean": f"The capital of {name} is",
        "gold": f"The capital of {name} is Paris. The capital of {name} is",
        "irrelevant": f"Gold is a metal. The capital of {name} is",
        "conflict": {
            "substitution": f"The capital of {name} is Rome. The capital of {name} is",
            "qa": f"The capital of {name} is Rome.\nQuestion: which?\nAnswer:",
        },
        "other_subject": {},
        "other_answer": {},
    }
    return ConflictRecord(**{**values, **changes})


def prompt(**changes) -> PanelPrompt:
    values = {"condition": "gold", "ids": (1,), "memory": ("Paris", "Lutetia"), "context": "Rome"}
    return PanelPrompt(**{**values, "memory_tokens": frozenset({7, 8}), "context_token": 9, **changes})


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


# --- outcomes ---


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (" Paris.", "memory"),
        (" Rome, not Paris", "context"),
        (" Paris, not Rome", "memory"),
        (" lutetia of old", "memory"),
        (" the city\nParis", "other"),  # the second line answers another question
        ("\n\n Rome", "context"),
        (" Parisian Romeo", "other"),
        ("", "other"),
    ],
)
def test_the_source_named_first_wins(text, outcome):
    assert prompt().outcome_of_text(text) == outcome


def test_of_two_answers_at_one_place_the_longer_counts():
    assert prompt(memory=("New York",), context="New York City").outcome_of_text(" New York City") == "context"
    assert prompt(memory=("New York City",), context="New York").outcome_of_text(" New York City") == "memory"


def test_answers_are_text_not_patterns():
    assert prompt(memory=("Washington, D.C",), context="(").outcome_of_text(" Washington, D.C.") == "memory"


def test_tokens():
    assert [prompt().outcome_of_token(t) for t in (7, 8, 9, 1)] == ["memory", "memory", "context", "other"]
    assert prompt(context_token=None).outcome_of_token(0) == "other"


# --- results ---


def made(**shares: str) -> Result:
    names = {"m": "memory", "c": "context", "o": "other"}
    return Result({k.replace("_", " "): tuple(names[x] for x in v) for k, v in shares.items()}, 12.5)


def test_rates_add_up_and_pool_the_formats():
    result = made(conflict_a="mc", conflict_b="ccmo", gold="mm", irrelevant="mo", closed_book="m")
    assert (result.rm, result.rc, result.rate("conflict", "other")) == pytest.approx((2 / 6, 3 / 6, 1 / 6))
    assert result.total("memory") == pytest.approx((2 / 6 + 1 + 0.5 + 1) / 4)
    assert result.total("context") == pytest.approx((3 / 6 + 1 + 0.5 + 1) / 4)
    assert list(result.row()) == ["RM", "RC", "other", "gold", "irrelevant", "closed book", "perplexity"]
    assert Result.from_dict(result.to_dict()) == result
    with pytest.raises(HeadsError, match="Did you mean 'context'"):
        result.total("contxt")


def test_a_broken_model_does_not_win_by_its_conflicts():
    """One rate alone rewards breaking the model: all context, and nothing right any more."""
    whole = made(conflict_a="mmcc", gold="mmmm", irrelevant="mmmm", closed_book="mmmm")
    broken = made(conflict_a="cccc", gold="ccco", irrelevant="cooo", closed_book="oooo")
    assert broken.rc > whole.rc and broken.total("context") < whole.total("context")


def test_what_was_not_measured_is_nan():
    result = Result({"gold": ("memory",)})
    assert math.isnan(result.rm) and math.isnan(result.perplexity) and math.isnan(result.rate("irrelevant", "memory"))
    assert Result.from_dict(result.to_dict()).to_dict() == result.to_dict()


def test_the_interval_is_wilsons():
    assert interval(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert interval(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert interval(1.0, 10)[1] == pytest.approx(1.0) and interval(float("nan"), 0) == (0.0, 1.0)


# --- measuring ---


def test_a_panel_has_every_condition_once_a_record(llama):
    panel = Panel(*llama, [record("Gaul"), record("Spain", conflict={"substitution": "Spain:"})], **QUIET, new_tokens=0)
    outcomes = panel.measure().outcomes
    assert {name: len(found) for name, found in outcomes.items()} == {
        "conflict substitution": 2,
        "conflict qa": 1,
        "gold": 2,
        "irrelevant": 2,
        "closed book": 2,
    }
    only = Panel(*llama, [record("Gaul")], formats=("qa",), **QUIET, new_tokens=0).measure().outcomes
    assert "conflict substitution" not in only and "conflict qa" in only
    with pytest.raises(HeadsError, match="no records"):
        Panel(*llama, [])


@pytest.mark.parametrize("new_tokens", [0, 5])
def test_batches_equal_single_forwards(llama, new_tokens):
    """Every prompt alone, in naive code, with the outcome read off its own tokens; 'memory' is whatever came first."""
    model, tokenizer = llama
    names = ["Gaul", "Spain", "a land far away", "X"]
    mask = HeadMask.of(model, [(0, 1), (1, 2)])
    plain = [record(name) for name in names]
    panel = Panel(model, tokenizer, plain, **QUIET, new_tokens=new_tokens, batch_size=3)
    for given in (None, mask):
        with pruned(model, given):
            answers = [naive(model, p.ids, max(1, new_tokens)) for p in panel.prompts]
        if new_tokens:
            texts = [tokenizer.decode(a, skip_special_tokens=True) for a in answers]
            wanted = [p.outcome_of_text(text) for text, p in zip(texts, panel.prompts, strict=True)]
        else:
            wanted = [p.outcome_of_token(a[0]) for a, p in zip(answers, panel.prompts, strict=True)]
        found = panel.measure(given).outcomes
        left = {name: iter(values) for name, values in found.items()}
        assert [next(left[p.condition]) for p in panel.prompts] == wanted


@torch.no_grad()
def naive(model, ids, count):
    row = list(ids)
    for _ in range(count):
        row.append(int(model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
        if row[-1] == model.config.eos_token_id:
            break
    return row[len(ids) :]


def test_outcomes_are_not_all_other(llama):
    """The random model's own first byte, declared to be the memory answer, is found by the panel."""
    model, tokenizer = llama
    ids = tokenizer(record("Gaul").clean).input_ids
    spelled = tokenizer.decode(naive(model, ids, 1))
    panel = Panel(model, tokenizer, [record("Gaul")], **QUIET, new_tokens=0)
    (clean,) = [p for p in panel.prompts if p.condition == "closed book"]
    wanted = "memory" if naive(model, ids, 1)[0] in clean.memory_tokens else "other"
    assert panel.measure().outcomes["closed book"] == (wanted,), spelled
    token = naive(model, ids, 1)[0]
    panel.prompts = [PanelPrompt("closed book", clean.ids, (), "", frozenset({token}), None)]
    panel._kept.clear()
    assert panel.measure().rate("closed book", "memory") == 1.0


def test_the_perplexity_is_that_of_the_texts(llama):
    model, tokenizer = llama
    panel = Panel(model, tokenizer, [record("Gaul")], **QUIET, new_tokens=0)
    rows = [tokenizer(text).input_ids for text in QUIET["neutral"]]
    with torch.no_grad():
        losses = [
            -model(torch.tensor([row])).logits[0, i].log_softmax(-1)[row[i + 1]]
            for row in rows
            for i in range(len(row) - 1)
        ]
    assert panel.measure().perplexity == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-5)
    assert math.isnan(Panel(model, tokenizer, [record("Gaul")], neutral=(), new_tokens=0).measure().perplexity)


def test_a_mask_is_measured_once(llama, monkeypatch):
    model, tokenizer = llama
    panel = Panel(model, tokenizer, [record("Gaul")], **QUIET, new_tokens=0)
    first = panel.measure(HeadMask.of(model, [(0, 0)]))
    assert panel.measure(HeadMask.of(model, [(0, 0)], note="another note")) is first
    assert panel.measure(None) is panel.measure(HeadMask.of(model)) and panel.measured == 2
    with pytest.raises(HeadsError, match="weights is"):
        panel.measure(HeadMask.of(tiny_model("llama", seed=1)[0], [(0, 0)]))
