"""Likelihoods of endings against the naive loop: one token at a time, one control at a time."""

from __future__ import annotations

import math

import pytest
import torch

import ckcontrol as ck
from ckcontrol.eval.running.likelihood import likelihoods
from ckcontrol.fusion.distributions import log_probs
from ckcontrol.fusion.signals import Signals

PROMPTS = [([257, 65, 66, 67, 68], [257, 67, 68]), ([257, 80, 81, 82, 83, 84, 85, 86], [257, 85, 86])]
ENDINGS = [[70, 71, 72], [70], [90, 91]]
CONTROLS = [
    ck.Control("off"),
    *(ck.Control("ck-plug", alpha=a) for a in (0.0, 0.3, 0.75, 1.0)),
    *(ck.Control("cad", alpha=a) for a in (0.25, 0.6, 1.0)),
    *(ck.Control(name) for name in ("adacad", "coiecd", "acd", "arr")),
]


def step(model, ids):
    return model(input_ids=torch.tensor([list(ids)])).logits[:, -1].float()


@torch.no_grad()
def naive(model, prompt, ending, control, size):
    """The definition: at every token run both prompts from the start, fuse, add the token's log-probability."""
    total = 0.0
    for i, token in enumerate(ending):
        ctx, par = (step(model, [*side, *ending[:i]])[:, :size] for side in prompt)
        signals = Signals(ctx, par, candidate_ratio=0.0)
        decision = control.policy().decide(signals)
        every = torch.ones_like(ctx, dtype=torch.bool)
        logq = ck.fuse(signals.logp_ctx, signals.logp_par, decision.tau, head=every, scale=decision.scale)
        total += float(logq[0, token])
    return total


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_equals_the_naive_loop(tiny, family):
    model, tokenizer = tiny(family)
    rows = [(prompt, ending) for prompt in PROMPTS for ending in ENDINGS]
    size = len(tokenizer)
    found = likelihoods(
        model,
        [prompt for prompt, _ in rows],
        [ending for _, ending in rows],
        [control.policy() for control in CONTROLS],
        vocab_size=size,
        pad=256,
    )
    for (prompt, ending), got in zip(rows, found, strict=True):
        for control, value in zip(CONTROLS, got, strict=True):
            wanted = naive(model, prompt, ending, control, size)
            # alpha = 0 multiplies the streams' difference, and so its rounding, by 1e4
            assert value == pytest.approx(wanted, rel=2e-4, abs=1e-3), (control, ending)


def test_first_tokens_of_all_endings_sum_to_one(llama):
    model, tokenizer = llama
    size = len(tokenizer)
    policies = [control.policy() for control in CONTROLS]
    found = likelihoods(
        model, [PROMPTS[0]] * size, [[token] for token in range(size)], policies, vocab_size=size, pad=256
    )
    for arm in range(len(CONTROLS)):
        assert math.fsum(math.exp(row[arm]) for row in found) == pytest.approx(1, abs=1e-4)


def test_neutral_and_memory_are_the_streams_themselves(llama):
    model, tokenizer = llama
    size = len(tokenizer)
    policies = [ck.Control("off").policy(), ck.Control("cad", alpha=1.0).policy()]
    ((off, memory),) = likelihoods(model, [PROMPTS[1]], [[70]], policies, vocab_size=size, pad=256)
    for value, side in ((off, 0), (memory, 1)):
        with torch.no_grad():
            wanted = log_probs(step(model, PROMPTS[1][side])[:, :size])[0, 70]
        assert value == pytest.approx(float(wanted), abs=1e-4)
